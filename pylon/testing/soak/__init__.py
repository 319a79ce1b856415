"""The soak: two homes, a hundred agents, a real model and a relay, each of them killed again and again for long.

``python -m pylon.testing.soak --minutes 30`` is one run; ``make soak`` is it. ``cast`` starts, kills and asks the
processes, ``play`` is what happens to them, ``looks`` is what must be true at the end, ``plot`` draws the memory.
"""
