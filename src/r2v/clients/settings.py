"""Settings of a model behind HTTP, the same for the pipeline and the gateway."""

from __future__ import annotations

import re
from typing import Literal

from r2v.runtime.settings import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings, check_variable


def is_url(text: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/]", text) is not None


class PriceSettings(Settings):
    """USD per million tokens. There is no default: an unknown price must not count as nothing."""

    input: NonNegativeFloat
    output: NonNegativeFloat
    cached: NonNegativeFloat | None = None
    """Of input read from the provider's cache; None: as other input."""
    cache_write: NonNegativeFloat | None = None
    """Of input written to the provider's cache, which Anthropic counts apart; None: as other input."""
    cache_write_1h: NonNegativeFloat | None = None
    """Of input that a client has kept there for an hour; None: twice as other input."""
    per_search: NonNegativeFloat = 0.01
    """USD for each search that the server makes."""

    def usd(
        self, prompt: float, output: float, cached: float = 0, cache_written: float = 0, written_1h: float = 0,
        searches: float = 0,
    ) -> float:  # fmt: skip
        """Of one call, from its tokens (`r2v.clients.tokens.Tokens`): those of the caches are part of the prompt."""
        hour = 2 * self.input if self.cache_write_1h is None else self.cache_write_1h
        read_again = self.input if self.cached is None else self.cached
        write = self.input if self.cache_write is None else self.cache_write
        read = (prompt - cached - cache_written) * self.input + cached * read_again
        written = (cache_written - written_1h) * write + written_1h * hour
        return (read + written + output * self.output) / 1e6 + searches * self.per_search


class ClientSettings(Settings):
    provider: str = "openai"
    """The protocol it speaks: openai (any `/chat/completions`), openai_responses (`/responses`), anthropic (`/v1/messages`),
    or a plug-in (`r2v.clients`)."""
    base_url: str
    """OpenAI style: up to and without /chat/completions, e.g. http://localhost:8000/v1. Anthropic: up to and without
    /v1/messages."""
    model: str
    api_key_env: str | None = None
    """Environment variable that holds the key; the key itself never stands in a file."""
    price: PriceSettings | None = None
    context_tokens: PositiveInt | None = None
    """Requests that are longer, at four characters a token, are not sent; None: every request is."""
    max_output_tokens: PositiveInt = 4096
    """Where a request names no limit: Anthropic's API needs one, and a budget in money reserves that much."""
    connect_timeout_s: PositiveFloat = 5.0
    timeout_s: PositiveFloat = 120.0
    """Without a byte of the answer."""
    total_s: PositiveFloat = 600.0
    """Of one try, until its answer is whole: one that sends a byte a second would be waited for as long as it does."""
    max_answer_bytes: PositiveInt = 32_000_000
    """Of one answer, unpacked; a larger one counts as none."""
    max_text_bytes: PositiveInt = 4_000_000
    """Of those, all but log-probabilities and what a stream wraps its pieces in."""
    retries: NonNegativeInt = 2
    """Further tries after failures that may pass. A server's Retry-After is honoured up to `longest_wait_s`."""
    backoff_s: PositiveFloat = 0.25
    """Wait before the first further try where the server names none; it doubles each time, up to 16 times this."""
    longest_wait_s: PositiveFloat = 20.0
    concurrency: PositiveInt = 256
    """Requests in flight at once, and connections, of one client."""
    breaker_failures: PositiveInt | None = None
    """Failures in a row after which it is not called for `breaker_s`; None: it always is."""
    breaker_s: PositiveFloat = 15.0
    offers_n: bool = True
    """Whether one request may ask for several candidates; otherwise they are parallel requests."""
    offers_logprobs: bool = True
    """Whether it may ask for log-probabilities. A server that refuses these, or `n`, is asked again without."""
    top_logprobs: NonNegativeInt = 5
    """Alternatives of each token to ask for: the entropy is computed from them."""
    parse_tools: Literal["auto", "off"] = "auto"
    """auto: where tools are offered, calls that the model wrote as text become calls of its answer, if all of them fit the
    tools (`r2v.messages.tool_text`); answers with calls of their own stay as they are. off: text stays text."""
    max_tokens_name: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto"
    """What a `/chat/completions` server calls the limit of an answer. auto: `max_completion_tokens` for OpenAI's and Azure's
    hosts, for models named o1, gpt-5 and the like, and from then on where a server refuses the other name; `max_tokens` for
    all others, since many overlook the newer name and then write without a limit."""
    keeps_reasoning: bool = False
    """Whether a `/chat/completions` server is sent the `reasoning_content` of earlier messages: all but what another model
    is known to have written, and an empty one with calls that have none. DeepSeek's servers want that in a loop of tools;
    others refuse it, even some that write it."""
    vocabulary: PositiveInt | None = None
    """Its number of tokens: what the alternatives leave out is then spread evenly over the others, as where routers are
    trained; None: it counts as one token."""

    def __post_init__(self) -> None:
        check_variable("api_key_env", self.api_key_env)
        if not is_url(self.base_url):
            raise ValueError(f"base_url {self.base_url!r} is no URL; write one such as http://localhost:8000/v1")


class JudgeModelSettings(ClientSettings):
    """Of a model that is asked to judge: what it costs must be known."""

    price: PriceSettings
