"""Signs of life of NIP-90 providers: kind 11998, replaceable, as proposed for NIP-90 (nips pull request 2465).

An announcement outlives who made it. A provider that beats says every 300 s that it is there; who has beaten once and
is silent for three beats is held to be gone. Nobody has to beat.
"""

from __future__ import annotations

from protocols.keys import SecretKey
from protocols.nip01 import Event, sign_event

KIND = 11998
EVERY_SECONDS = 300
SILENT_SECONDS = 900
"""Three beats: after this long without any sign of life a provider that beats is gone."""
KEPT_SECONDS = 86_400
"""The beat's NIP-40 expiration. It is longer than a beat counts: that the last one is old tells more than none."""


def build_heartbeat(secret: SecretKey, *, d: str, created_at: int) -> Event:
    """A kind 11998 event. ``d`` is that of the instance's announcement; ``created_at`` is in Unix seconds."""
    tags = [["d", d], ["expiration", str(created_at + KEPT_SECONDS)]]
    return sign_event(secret, kind=KIND, tags=tags, created_at=created_at)
