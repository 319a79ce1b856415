"""Pylon: the local runtime for sovereign AI agents.

The package is kept empty on purpose: ``import pylon`` must cost nothing, since ``pylon --help`` pays for it.
"""

__version__ = "0.1.0"
