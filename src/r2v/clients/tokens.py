"""How many tokens a server says that it read and wrote."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from operator import add

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
    written_1h: int = 0
    """Of those, for an hour."""
    searches: int = 0
    """That the server made; no tokens, and not in `total`."""

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(*map(add, astuple(self), astuple(other)))

    @property
    def total(self) -> int:
        return self.prompt + self.output

    @classmethod
    def of(cls, usage: Json) -> Tokens:
        """From `usage` of a chat completion; 0 for a count that is none. What Gemini's server counts in the total alone is
        thinking, which costs as the answer does.
        """
        details, tools = (
            value if isinstance(value := usage.get(key), dict) else {}
            for key in ("prompt_tokens_details", "server_tool_use")
        )
        # LiteLLM and r2v say the first, OpenRouter the second.
        written = next((details[key] for key in ("cache_creation_tokens", "cache_write_tokens") if details.get(key)), None)
        counts = (*(usage.get(key) for key in ("prompt_tokens", "completion_tokens", "total_tokens")), written)
        prompt, output, total, written = (counted(count) or 0 for count in counts)
        cached, hour = (counted(details.get(key)) or 0 for key in ("cached_tokens", "cache_creation_1h_tokens"))
        searches = counted(tools.get("web_search_requests")) or 0
        return cls(prompt, max(output, total - prompt), cached, written, min(hour, written), searches)

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
