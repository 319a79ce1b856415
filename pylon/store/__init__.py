"""What Pylon remembers: one SQLite database, one writer.

``database`` opens it, ``schema`` says what is in it, ``vault`` seals what others must not read. On top of them, one
module for each promise: ``inbox`` and ``cursors`` (nothing taken twice), ``outbox`` (nothing signed is lost),
``intents`` and ``claims`` (nothing paid or counted twice), ``ledger`` and ``books`` (where every sat is), ``records``
(the machines).
"""
