"""What a session costs, repriced from what each call read and wrote: the records hold no bills.

A model that is called again within a session reads what it has read before from the provider's cache; one that comes in
the middle reads all of it anew. Tokens are counted at four characters each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from r2v.clients.settings import PriceSettings
from r2v.studies.costs import CHARACTERS

LIST: Mapping[str, PriceSettings] = {
    "gpt-3.5": PriceSettings(input=0.5, output=1.5),
    "gpt-4": PriceSettings(input=30.0, output=60.0),
    "gpt-4-turbo": PriceSettings(input=10.0, output=30.0),
    "gpt-4o-mini": PriceSettings(input=0.15, output=0.6, cached=0.075),
    "gpt-4o": PriceSettings(input=2.5, output=10.0, cached=1.25),
    "gpt-4.1": PriceSettings(input=2.0, output=8.0, cached=0.5),
    "claude-instant": PriceSettings(input=0.8, output=2.4),
    "claude-2": PriceSettings(input=8.0, output=24.0),
    "claude-3-haiku": PriceSettings(input=0.25, output=1.25, cached=0.03),
    "claude-3-sonnet": PriceSettings(input=3.0, output=15.0, cached=0.3),
    "claude-3-opus": PriceSettings(input=15.0, output=75.0, cached=1.5),
    "claude-3.5-sonnet": PriceSettings(input=3.0, output=15.0, cached=0.3),
    "claude-3.7-sonnet": PriceSettings(input=3.0, output=15.0, cached=0.3),
    "gemini-1.5-flash": PriceSettings(input=0.075, output=0.3),
    "gemini-1.5-pro": PriceSettings(input=1.25, output=5.0),
    "gemini-2.0-flash": PriceSettings(input=0.1, output=0.4, cached=0.025),
    "command-r": PriceSettings(input=0.15, output=0.6),
    "command-r-plus": PriceSettings(input=2.5, output=10.0),
    "mixtral-8x7b": PriceSettings(input=0.6, output=0.6),
    "llama-3-70b": PriceSettings(input=0.9, output=0.9),
    "llama-2-70b": PriceSettings(input=0.9, output=0.9),
    "codellama-34b": PriceSettings(input=0.78, output=0.78),
    "llama-2-13b": PriceSettings(input=0.2, output=0.2),
}
"""The providers' list prices in USD per million tokens (open weights: as rented), of the years in which the models were
recorded. Rows are compared on them, so all that counts is about how far apart they are."""


@dataclass
class Bill:
    """Adds up the calls of one session, in their order."""

    prices: Mapping[str, PriceSettings]
    """Of each model that may be called."""
    usd: float = 0.0
    _read: dict[str, float] = field(default_factory=dict)
    """Characters that each model read at its latest call: of the same session's next one they are the beginning."""

    def call(self, model: str, read: float, written: float) -> None:
        """Add one call.

        Args:
            model: which one.
            read: characters of all that it read, a continuation of what it read before.
            written: characters that it wrote.
        """
        cached = min(self._read.get(model, 0.0), read)
        self._read[model] = read
        self.usd += self.prices[model].usd(read, written, cached) / CHARACTERS
