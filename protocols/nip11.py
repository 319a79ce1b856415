"""NIP-11: what a relay says of itself, read leniently, written strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import orjson

MEDIA_TYPE = "application/nostr+json"
_MAX_BYTES = 262_144


class InformationInvalid(ValueError):
    """No relay information document."""


@attrs.frozen
class Limitation:
    """Limits that a relay announces; ``None``: not said."""

    max_message_length: int | None = None
    max_subscriptions: int | None = None
    max_filters: int | None = None
    max_limit: int | None = None
    max_subid_length: int | None = None
    max_event_tags: int | None = None
    max_content_length: int | None = None
    created_at_lower_limit: int | None = None
    created_at_upper_limit: int | None = None
    default_limit: int | None = None
    min_pow_difficulty: int | None = None
    auth_required: bool | None = None
    payment_required: bool | None = None
    restricted_writes: bool | None = None


@attrs.frozen
class RelayInformation:
    """The document; an empty text or list: not said."""

    name: str = ""
    description: str = ""
    pubkey: str = ""
    contact: str = ""
    software: str = ""
    version: str = ""
    supported_nips: tuple[int, ...] = ()
    limitation: Limitation = attrs.field(factory=Limitation)

    @classmethod
    def parse(cls, value: object) -> RelayInformation:
        """From decoded JSON; a field of the wrong type counts as not said. Raises ``InformationInvalid``."""
        if not isinstance(value, Mapping):
            raise InformationInvalid("a relay information document is a JSON object")
        texts = {
            field.name: value[field.name]
            for field in attrs.fields(cls)
            if field.type in (str, "str") and isinstance(value.get(field.name), str)
        }
        nips = value.get("supported_nips")
        limits = value.get("limitation")
        return cls(
            **texts,
            supported_nips=tuple(nip for nip in nips if type(nip) is int) if isinstance(nips, list) else (),
            limitation=_limitation(limits if isinstance(limits, Mapping) else {}),
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> RelayInformation:
        """Raises ``InformationInvalid``."""
        if len(text) > _MAX_BYTES:
            raise InformationInvalid("the document is too long")
        try:
            return cls.parse(orjson.loads(text))
        except orjson.JSONDecodeError:
            raise InformationInvalid("not JSON") from None

    def to_dict(self) -> dict[str, Any]:
        """What is said, and nothing else."""
        said = {
            field.name: getattr(self, field.name)
            for field in attrs.fields(type(self))
            if field.name != "limitation" and getattr(self, field.name)
        }
        limits = attrs.asdict(self.limitation, filter=lambda _, limit: limit is not None)
        return {**said, "limitation": limits} if limits else said

    def to_json(self) -> str:
        """Compact JSON of ``to_dict``."""
        return orjson.dumps(self.to_dict()).decode()


_FLAGS = frozenset({"auth_required", "payment_required", "restricted_writes"})


def _limitation(value: Mapping[str, Any]) -> Limitation:
    return Limitation(
        **{
            field.name: value[field.name]
            for field in attrs.fields(Limitation)
            if type(value.get(field.name)) is (bool if field.name in _FLAGS else int)
        }
    )
