"""What a job costs by its tokens: the rule that provider and customer share, so that both reckon the same price.

NIP-90 knows one price for a job. Ours is announced with NIP-89 as a minimum, and where tokens count as a price of 1,000
tokens of the prompt and of 1,000 tokens of the longest answer that is asked for.
"""

from __future__ import annotations

import attrs

PRICED_TOKENS = 1_000
"""How many tokens the prices by tokens are for."""


@attrs.frozen
class Tariff:
    """Prices in msats."""

    minimum: int
    """Of any job."""
    prompt: int = 0
    """Of 1,000 tokens of a prompt."""
    answer: int = 0
    """Of 1,000 tokens of the longest answer."""

    def price(self, tokens_in: int, tokens_out: int) -> int:
        """Of one job, msats, rounded up."""
        tokens = self.prompt * tokens_in + self.answer * tokens_out
        return max(self.minimum, -(-tokens // PRICED_TOKENS))


def estimate_tokens(text: str) -> int:
    """About how many tokens a text is, for any model: four ASCII characters a token, three bytes of anything else.

    Good enough to price it, and to refuse before the money is taken what no context can hold. A text has at least one.
    """
    size = len(text.encode("utf-8", "replace"))
    plain = sum(1 for char in text if char.isascii())
    return -(-plain // 4) + -(-(size - plain) // 3)
