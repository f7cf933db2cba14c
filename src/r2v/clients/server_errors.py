"""What a server of models means by an error, and what of it may be repeated: a code, and the field that it names."""

from __future__ import annotations

import re
from typing import Any

from r2v.core.errors import ModelError, PromptTooLong
from r2v.messages.conversation import Json, counted
from r2v.messages.json_size import decoded

TOO_LONG = re.compile(
    r"maximum (context|prompt|model) length|(exceed\w*|longer than)\b.{0,60}\bcontext.{0,4}(length|window|size|limit)"
    r"|prompt (is )?too long|input (prompt )?is too long for|input token count.{0,30}exceeds|`inputs` tokens \+",
    re.IGNORECASE,
)
"""How servers report that a request does not fit, where they have no code for it: OpenAI and vLLM, llama.cpp, Anthropic and
Ollama, Bedrock, Gemini, TGI. A field that is too long is none of it."""
TOO_LONG_CODES = frozenset(("context_length_exceeded", "exceed_context_size_error"))
NAMED = re.compile(r"(?:^|[`'\"])(\w+)\b")
"""How they name a field of the request."""
CODES = frozenset((
    "api_error", "authentication_error", "billing_error", "content_filter", "content_policy_violation",
    "context_length_exceeded", "exceed_context_size_error", "insufficient_quota", "internal_error", "invalid_api_key",
    "invalid_prompt",
    "invalid_request_error", "invalid_type", "invalid_value", "missing_required_parameter", "model_not_found",
    "not_found_error", "overloaded_error", "permission_error", "rate_limit_error", "rate_limit_exceeded",
    "request_too_large", "server_error", "string_above_max_length", "timeout_error", "unknown_parameter",
    "unsupported_parameter", "unsupported_value",
))  # fmt: skip
"""What OpenAI's and Anthropic's APIs call their errors."""
ESCAPED = re.compile(rb"\\(u00[0-7][0-9a-fA-F]|.)")
"""Quotes and ends of lines in JSON, which stand beside words."""


class Refusal(ModelError):
    """The server answered with an HTTP status that no further try will change."""

    def __init__(self, reason: str, http: int = 400, content: bytes = b"") -> None:
        """`content`: what the server said, which is not repeated (`said_of`). Pickle gives the reason alone."""
        fault = http in (400, 404, 413, 422)
        super().__init__(reason, status=http if fault else 502, clients_fault=fault)
        self.http = http
        self._content = ESCAPED.sub(b" ", content)

    def says(self, words: re.Pattern[bytes]) -> re.Match[bytes] | None:
        return words.search(self._content)


def refusal(name: str, status: int, content: bytes, body: Json) -> ModelError:
    """The error for an answer that no further try will change. What is too long for this model may fit another.

    Args:
        name: of the model.
        status: of the answer.
        content: of the answer.
        body: of the request.
    """
    try:
        answer = decoded(content)
    except ValueError:
        answer = None
    said, counts = said_of(answer, body)
    if counts is not None:
        return PromptTooLong(f"{name}: HTTP {status}{said}", counts)
    return Refusal(f"{name}: HTTP {status}{said}", status, content)


def said_of(answer: Any, body: Json) -> tuple[str, tuple[int, ...] | None]:
    """What may be repeated of a server's error: a code of `CODES`, and the field of the request that it names. Its words may
    hold anything, the key that it was sent among it, and are not repeated.

    Returns:
        (text to append, `PromptTooLong.counts` where the request is too long for the model, else None).
    """
    answer = answer[0] if isinstance(answer, list) and answer else answer  # as Gemini's server has it
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    fields = error if isinstance(error, dict) else {"message": error}
    words, codes = str(fields.get("message"))[:2000], [fields.get("code"), fields.get("type")]
    found = [code for code in codes if isinstance(code, str) and code in CODES]
    if TOO_LONG.search(words) or TOO_LONG_CODES & set(found):
        words = re.sub(r"(\d{1,9}) \+ (\d{1,9})", lambda both: str(int(both[1]) + int(both[2])), words)
        named = [counted(fields.get(key)) for key in ("n_prompt_tokens", "n_ctx")]  # llama.cpp's
        counts = [one for one in named if one] or [int(one) for one in re.findall(r"\b\d{3,9}\b", words)[:2]]
        counts = sorted(counts, reverse=True) if len(counts) == 2 else []
        found.append("the prompt is too long" + (": {} > {} tokens".format(*counts) if counts else ""))
        return " " + " ".join(found), tuple(counts)
    param = re.split(r"[.\[]", str(fields.get("param")))[0]
    if param not in body:
        named_fields = set(NAMED.findall(words))
        param = next((key for key in body if key in named_fields), None)
    if param is not None:
        found.append(f"because of `{param}`")
    return " " + " ".join(found) if found else "", None


def error_of(event: Json) -> Json | None:
    """An event that ends a stream with an error, as the body of one; None for any other."""
    kind, answer = event.get("type"), event.get("response")
    failed = answer if kind == "response.failed" and isinstance(answer, dict) else event
    return failed if failed.get("error") else {"error": event} if kind == "error" else None
