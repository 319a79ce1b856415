"""Public test tools: what Pylon's own tests use, for anyone who builds on it.

``relay``: ``MemoryRelay``, the embedded relay without sockets, for virtual time, with the faults that real relays have.
"""
