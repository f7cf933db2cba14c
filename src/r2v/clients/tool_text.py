"""What `ClientSettings.parse_tools` does: tool calls that a model wrote into its text become the calls of its answer."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import msgspec

from r2v.messages.conversation import Json, Request, tools_of
from r2v.messages.openai_chat import chunk_of
from r2v.messages.protocol import Piece, Reply
from r2v.messages.tool_text import CALLS, ToolText
from r2v.runtime.json_schema import JsonSchema, Work


@dataclass(frozen=True)
class OfferedTools:
    """What a request allows to call."""

    schemas: dict[str, Json]
    """Of the arguments, by the name of the tool."""
    most: int
    """Calls in one answer."""
    step: int
    """Messages before the answer: the same call at another step has another id."""
    work: Work = field(default_factory=Work)
    """What checking all answers to the request may take."""
    checks: dict[str, JsonSchema] = field(default_factory=dict)
    """Of those tools that an answer has named."""

    @classmethod
    def of(cls, request: Request) -> OfferedTools | None:
        """None where no call is allowed."""
        form = _read(request, "response_format")
        if isinstance(form, dict) and str(form.get("type")).startswith("json"):  # an object that looks like a call is none
            return None
        choice = _read(request, "tool_choice")
        schemas = {
            tool["name"]: tool["parameters"]
            for tool in tools_of(request.tools)
            if "custom" not in tool and _may_be_called(tool["name"], choice)
        }
        most = 1 if _read(request, "parallel_tool_calls") is False else CALLS
        return cls(schemas, most, len(request.messages)) if schemas else None

    def accept(self, name: str, arguments: str) -> bool:
        """Whether a call is one of an offered tool, and its arguments are known to fit. A schema is no arguments: models
        repeat how tools are defined.
        """
        if (schema := self.schemas.get(name)) is None:
            return False
        check = self.checks.setdefault(name, JsonSchema(schema))
        return check.fits(arguments, self.work) is True and not (schema and msgspec.json.decode(arguments) == schema)

    def text(self) -> ToolText:
        """For one answer."""
        return ToolText(self.accept, self.most)

    def calls_of(self, text: ToolText) -> list[Json]:
        """The calls in the neutral form."""
        return [
            {"id": self._id(i, name, arguments), "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(text.calls)
        ]

    def _id(self, i: int, name: str, arguments: str) -> str:
        content = msgspec.json.encode([self.step, i, name, arguments])
        return "call_" + hashlib.sha256(content).hexdigest()[:24]


def with_calls(reply: Reply, offered: OfferedTools) -> Reply:
    """An answer with the calls that its text holds; the answer itself where it has calls already, or the text none."""
    message = reply.choice["message"]
    content = message.get("content")
    if message.get("tool_calls") or not isinstance(content, str):
        return reply
    text = offered.text()
    text.add(content)
    text.end()
    return _made(reply, text, offered)


def _made(reply: Reply, text: ToolText, offered: OfferedTools) -> Reply:
    """The answer with the calls of its text, which has ended."""
    if not text.calls:
        return reply
    words, calls = text.words, offered.calls_of(text)
    message = reply.choice["message"] | {"content": words if words.strip() else None, "tool_calls": calls}
    choice = reply.choice | {"message": message, "finish_reason": "tool_calls"}
    return replace(reply, choice=choice, parsed_calls=len(calls))


class HeldStream:
    """The pieces of a streamed answer. Those whose text may be a call are held back until that is known."""

    def __init__(self, offered: OfferedTools) -> None:
        self._offered, self._text = offered, offered.text()
        self._held: deque[tuple[int, int, Piece]] = deque()
        """(characters of text up to its end, how many of them have to be words before it may be passed on, piece)."""
        self._passed = 0
        """Characters of text that have been passed on."""

    def add(self, piece: Piece) -> Iterator[Piece]:
        """A piece of the answer; yields those that may be passed on."""
        for choice in ((piece.chunk or {}).get("choices") or [])[:1]:
            delta = choice.get("delta") or {}
            if isinstance(delta.get("content"), str):
                self._text.add(delta["content"])
            if delta.get("tool_calls"):  # the server reads them itself
                self._text.give_up()
        begins = piece.own is not None and _begins_text(piece.own)
        words = begins * (2 if self._text.length else 1)  # the first may be no more than what parts it from the one before
        self._held.append((self._text.length, self._text.length + words, piece))
        while self._held and self._held[0][1] <= self._text.clear:
            self._passed, _, piece = self._held.popleft()
            yield piece

    def end(self, reply: Reply) -> Iterator[Piece | Reply]:
        """The whole answer; yields what is left of the pieces, or what takes their place, and the answer."""
        if reply.choice["message"].get("tool_calls"):
            self._text.give_up()
        self._text.end()
        made = _made(reply, self._text, self._offered)
        if made is reply:
            yield from (piece for _, _, piece in self._held)
        else:
            message = made.choice["message"]
            if words := (message["content"] or "")[self._passed :]:
                yield Piece(chunk_of({"content": words}), None)
            for i, call in enumerate(message["tool_calls"]):
                yield Piece(chunk_of({"tool_calls": [{"index": i, **call}]}), None)
            yield Piece(chunk_of({}, "tool_calls"), None)
        yield made


def _may_be_called(name: str, choice: object) -> bool:
    """Whether the `tool_choice` of a request allows a function."""
    if not isinstance(choice, dict):
        return choice != "none"
    allowed = choice.get("allowed_tools") or {"tools": [choice]}
    return any((tool.get("function") or {}).get("name") == name for tool in allowed.get("tools") or ())


def _begins_text(own: Json) -> bool:
    """Whether an event begins a part that holds text: where all of that is calls, there is to be no such part."""
    begun = own.get("content_block") or own.get("item") or own.get("part")
    kind = begun.get("type") if isinstance(begun, dict) else None
    return (own.get("type"), kind) in (
        ("content_block_start", "text"),
        ("response.output_item.added", "message"),
        ("response.content_part.added", "output_text"),
    )


def _read(request: Request, key: str) -> object:
    """A field in the neutral form."""
    return msgspec.json.decode(request.fields.get(key, b"null"))
