"""Public test tools: what Pylon's own tests use, for anyone who builds on it.

``relay``: ``MemoryRelay``, the embedded relay without sockets, for virtual time, with the faults that real relays have.
``backend``: ``ScriptedBackend``, which says what it was told to say, as slowly and as badly as wished.
``scripted_claude``: an executable that speaks as Claude Code does, and plays a script. ``tunnel_messages``: strategies.
``provider_process``: the real daemon over such a backend. ``clock``: one that jumps. ``soak``: real processes for long.
``sim``: a whole market in virtual time, from one seed.
"""
