"""How many tokens a server says that it read and wrote."""

from __future__ import annotations

from dataclasses import dataclass

from r2v.messages.conversation import Json, counted


@dataclass(frozen=True, slots=True)
class Tokens:
    """Numbers of tokens that a server counted; 0 where it did not report them."""

    prompt: int = 0
    """The whole prompt."""
    output: int = 0
    cached: int = 0
    """Of the prompt, read from the provider's cache."""
    cache_written: int = 0
    """Of the prompt, written to the provider's cache."""

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            self.prompt + other.prompt, self.output + other.output, self.cached + other.cached,
            self.cache_written + other.cache_written,
        )  # fmt: skip

    @property
    def total(self) -> int:
        return self.prompt + self.output

    @classmethod
    def of(cls, usage: Json) -> Tokens:
        """From `usage` of a chat completion; 0 for a count that is none."""
        details = usage.get("prompt_tokens_details")
        details = details if isinstance(details, dict) else {}
        counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        # LiteLLM and r2v say the first, OpenRouter the second.
        written = next((details[key] for key in ("cache_creation_tokens", "cache_write_tokens") if details.get(key)), None)
        caches = (details.get("cached_tokens"), written)
        return cls(*(counted(count) or 0 for count in (*counts, *caches)))

    @property
    def usage(self) -> Json:
        """`usage` of a chat completion."""
        details = {"cached_tokens": self.cached}
        if self.cache_written:
            details["cache_creation_tokens"] = self.cache_written
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.output,
            "total_tokens": self.total,
            "prompt_tokens_details": details,
        }
