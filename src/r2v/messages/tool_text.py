"""Tool calls that a model wrote into its text, because its server does not know its way of writing them.

What is read, alone or several times, with words before it:

    ```json                                        also a fence without a language, or ```tool_call
    {"name": "look", "arguments": {}}              also function, tool, tool_name; parameters, args; a list of such objects
    ```
    {"name": "look", "arguments": {}}              the same without a fence, on lines of its own
    <tool_call>{"name": ...}</tool_call>           Hermes, Qwen; {{"name": ...}}, too
    <|python_tag|>{"name": ..., "parameters": {}}  Llama 3; <function=look>{}</function>, too
    [TOOL_CALLS][{"name": ...}]                    Mistral; [TOOL_CALLS]look[ARGS]{}, too

Words may also follow a call with a tag. What only shows a call is left alone: JSON that words follow, for they explain it,
and calls inside of a sentence, of a fence in another language, of a fence around a fence, of <think>. All calls of a text
are made or none is: where one names a tool that is not offered, has arguments that do not fit, or is cut off, the text
stays as it is. The time is linear in the text, and no text of more than `LONGEST` is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from r2v.core.untrusted import parsed_json
from r2v.messages.conversation import Json

LONGEST = 200_000
"""Characters of a text in which calls are sought."""
VALUES = 20_000
"""JSON values of one call at most."""
OPENINGS = 1_000
"""Places of a text that look like the beginning of a call and are none; more are not looked at."""
CALLS = 32
"""Of one text."""
SMALL = 64
"""Characters of a call begun that are read again with each piece; more only when they have doubled: the time is linear."""
NAMES = ("name", "function", "tool", "tool_name")
ARGUMENTS = ("arguments", "parameters", "args")
AROUND = ("function", "function_call", "tool_call", "tool_calls")
"""Keys under which a whole call may stand."""
BESIDE = ("id", "type")
"""Keys of a call that say nothing. Any other one makes an object something else: the definition of a tool, for one."""
KEYS = frozenset((*NAMES, *ARGUMENTS, *AROUND, *BESIDE))
LANGUAGES = ("", "json", "tool_call")
CLOSING = {"<tool_call>": "</tool_call>", "<|python_tag|>": "", "<function=": "</function>", "[TOOL_CALLS]": ""}
"""Tag before a call -> the one after it, which models leave out at times."""
THINK, END_OF_THINK = "<think>", "</think>"
TAGS = (*CLOSING, THINK, END_OF_THINK)
OPENING = re.compile(
    rf"^[ \t]*+(?P<fence>`{{3,}}+|~{{3,}}+)|(?P<tag>{'|'.join(map(re.escape, TAGS))})|^ ?(?=[\[{{])(?! ?\[TOOL_CALLS\])",
    re.M,
)
LINE_BEGUN = re.compile(r"[ \t]*(?:`*|~*)[ \t\r]*")
FENCE = re.compile(r"`{3,}|~{3,}")
FENCE_LINE = re.compile(r"^[ \t]*+(`{3,}+|~{3,}+)[ \t\r]*+(?:\n|\Z)", re.M)
LANGUAGE = re.compile(r"[^\n\[{]*")
FIRST_KEY = re.compile(r'(?:\[\s*)?(?:\{\s*(?:"(\w*)("?))?)?')
BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.S)
"""A bracket, or a whole string, whose brackets do not count."""
SPACE, BETWEEN, REST_OF_LINE = re.compile(r"\s*"), re.compile(r"[\s;,]*"), re.compile(r"[ \t\r]*(?:\n|\Z)")
FUNCTION = re.compile(r"([\w.:-]{0,200})(>?)")
NAMED = re.compile(r"([\w.:-]{1,200})(?:\[CALL_ID\]\w{0,100})?\[ARGS\]")
LONGEST_NAMED = 330


class _Unfinished(Exception):
    """What may be a call goes on behind the text."""


class _NoCall(Exception):
    """What looked like a call is none; the argument is where to read on."""


class _Refused(Exception):
    """It is a call, and may not be made."""


class ToolText:
    """Seeks calls in a text that comes in pieces; how it is cut makes no difference."""

    def __init__(self, accepts: Callable[[str, str], bool], most: int = CALLS) -> None:
        """
        Args:
            accepts: whether a call may be made, from its name and its arguments as JSON.
            most: number of calls that may be made at once.
        """
        self._accepts, self._most = accepts, most
        self.calls: list[tuple[str, str]] = []
        """(name, arguments as JSON); after `end` they are all."""
        self.length = 0
        self.clear = 0
        """Characters from the beginning on that are words, whatever follows. Space alone is not: it may be that before a
        call."""
        self._pieces: list[str] = []
        self._cuts: list[tuple[int, int]] = []
        """Where the calls stand in the whole text."""
        self._text, self._at = "\n", 1
        """What is not read yet behind the character before it, and where to read on in it."""
        self._later: list[str] = []
        """Pieces after that."""
        self._skipping = ""
        """The fence, or the tag, that ends a part in which no call is sought."""
        self._next = self._openings = 0
        self._blank, self._given_up = True, False
        self._untagged = False
        """Whether there is a call without a tag, so that no words may follow."""

    def add(self, piece: str) -> None:
        self.length += len(piece)
        if self.length > LONGEST:
            self.give_up()
        if self._given_up:
            self.clear = self.length
            return
        self._pieces.append(piece)
        self._later.append(piece)
        if self.length >= self._next:
            self._read(final=False)

    def end(self) -> None:
        """No piece follows."""
        if not self._given_up:
            self._read(final=True)
        if not self.calls:
            self.give_up()

    def give_up(self) -> None:
        """All of the text is words."""
        self._given_up, self.calls, self._cuts, self.clear = True, [], [], self.length

    @property
    def words(self) -> str:
        """The text without the calls in it."""
        text, found, at = "".join(self._pieces), [], 0
        for begin, end in self._cuts:
            found.append(text[at:begin])
            at = end
        return "".join((*found, text[at:]))

    def _read(self, *, final: bool) -> None:
        self._text, self._later = "".join((self._text, *self._later)), []
        try:
            while self._at < len(self._text) and self._step(final):
                pass
        except _Refused:
            self.give_up()
            return
        self._blank = self._blank and not self._text[1 : self._at].strip()
        if not (self._blank or self._cuts):
            self.clear = self._place(self._at)
        self._text, self._at = self._text[self._at - 1 :], 1
        self._next = self.length + (len(self._text) if len(self._text) > SMALL else 0)

    def _place(self, at: int) -> int:
        """In the whole text."""
        return self.length - len(self._text) + at

    def _step(self, final: bool) -> bool:
        """Read on up to the end of the next thing that looks like a call. False where there is none, or not yet."""
        if self._skipping:
            end = self._end_of_skipped(final)
            self._at, self._skipping = (self._unsettled(final), self._skipping) if end is None else (end, "")
            return end is not None
        found, begun = OPENING.search(self._text, self._at), self._at
        self._at = self._unsettled(final) if found is None else found.start()
        if self._untagged and self._text[begun : self._at].strip():
            raise _Refused
        if found is None:
            return False
        try:
            calls, end = self._candidate(found, final)
        except _Unfinished:
            if final:
                raise _Refused from None
            return False
        except _NoCall as error:
            (self._at,) = error.args
            self._openings += 1
            if self._openings > OPENINGS or self._untagged:
                raise _Refused from None
            return True
        self._take(calls, end)
        self._untagged |= not found["tag"]
        return True

    def _take(self, calls: list[tuple[str, Json]], end: int) -> None:
        """Calls that stand from here to the end. Raises _Refused."""
        for name, values in calls:
            arguments = json.dumps(values, ensure_ascii=False)
            if len(self.calls) == self._most or not self._accepts(name, arguments):
                raise _Refused
            self.calls.append((name, arguments))
        self._cuts.append((self._place(self._at), self._place(end)))
        self._at = end

    def _unsettled(self, final: bool) -> int:
        """From where on the text may be the beginning of something."""
        text, line = self._text, self._text.rfind("\n") + 1
        if final:
            return len(text)
        if line and LINE_BEGUN.fullmatch(text, line):
            return max(self._at, line)
        longest = min(max(map(len, TAGS)) - 1, len(text) - self._at)
        sizes = (size for size in range(longest, 0, -1) if any(tag.startswith(text[-size:]) for tag in TAGS))
        return len(text) - next(sizes, 0)

    def _end_of_skipped(self, final: bool) -> int | None:
        if self._skipping == END_OF_THINK:
            found = self._text.find(END_OF_THINK, self._at)
            return None if found < 0 else found + len(END_OF_THINK)
        for line in FENCE_LINE.finditer(self._text, self._at):
            if line[1].startswith(self._skipping) and (final or line[0].endswith("\n")):
                return line.end()
        return None

    # Each of these raises _NoCall, _Unfinished or _Refused where it does not find what it says.

    def _candidate(self, opening: re.Match[str], final: bool) -> tuple[list[tuple[str, Json]], int]:
        """Calls, and where they end."""
        if opening["fence"]:
            try:
                return self._fenced(opening["fence"], opening.end(), final)
            except _NoCall:
                self._skipping = opening["fence"]
                raise _NoCall(opening.end()) from None
        if opening["tag"]:
            return self._tagged(opening["tag"], opening.end(), final)
        if not final and any(tag.startswith(self._text[opening.end() :]) for tag in TAGS):
            raise _Unfinished
        calls, end = self._objects(opening.end(), final)
        rest = REST_OF_LINE.match(self._text, end)
        if rest is None:
            raise _NoCall(end)
        if not (final or rest[0].endswith("\n")):
            raise _Unfinished
        return calls, end

    def _fenced(self, fence: str, at: int, final: bool) -> tuple[list[tuple[str, Json]], int]:
        language = _match(LANGUAGE, self._text, at)
        word = language[0].strip().lower()
        if language.end() == len(self._text) and not final and any(known.startswith(word) for known in LANGUAGES):
            raise _Unfinished
        if word not in LANGUAGES:
            raise _NoCall
        calls, end = self._objects(self._next_word(language.end(), final), final)
        at = _match(SPACE, self._text, end).end()
        if at == len(self._text):  # the last fence may be missing
            if not final:
                raise _Unfinished
            return calls, end
        closing = FENCE.match(self._text, at)
        if closing is None or not closing[0].startswith(fence):
            if not final and set(self._text[at:]) == {fence[0]}:
                raise _Unfinished
            raise _NoCall
        if closing.end() == len(self._text) and not final:
            raise _Unfinished
        return calls, closing.end()

    def _tagged(self, tag: str, at: int, final: bool) -> tuple[list[tuple[str, Json]], int]:
        text, begun = self._text, at
        if tag == THINK:
            self._skipping = END_OF_THINK
        if tag == END_OF_THINK:  # a template may begin the thoughts: then all of it was thought so far
            self.calls, self._cuts, self._untagged = [], [], False
        if tag not in CLOSING:
            raise _NoCall(at)
        name = None
        if tag == "<function=":
            function = _match(FUNCTION, text, at)
            if function.end() == len(text) and not final and not function[2]:
                raise _Unfinished
            name, at = function[1], function.end()
            if not function[2]:
                raise _NoCall(begun)
        at = self._next_word(at, final)
        if tag == "[TOOL_CALLS]" and text[at] not in "[{":
            named = NAMED.match(text, at)
            if named is None:
                if not final and len(text) - at < LONGEST_NAMED and not re.search(r"\s", text[at:]):
                    raise _Unfinished
                raise _NoCall(begun)
            name, at = named[1], self._next_word(named.end(), final)
        if text[at] not in "[{":
            raise _NoCall(begun)
        try:
            if name is None:
                calls, end = self._objects(at, final)
            else:
                values, end = self._json(at, final)
                if not isinstance(values, dict):
                    raise _Refused
                calls = [(name, values)]
        except _NoCall:
            raise _Refused from None
        closing, at = CLOSING[tag], _match(SPACE, text, end).end()
        if not final and closing.startswith(text[at:]) and text[at:] != closing:
            raise _Unfinished
        return calls, at + len(closing) if closing and text.startswith(closing, at) else end

    def _next_word(self, at: int, final: bool) -> int:
        """Where the text goes on after space."""
        end = _match(SPACE, self._text, at).end()
        if end == len(self._text):
            raise _NoCall(at) if final else _Unfinished
        return end

    def _objects(self, at: int, final: bool) -> tuple[list[tuple[str, Json]], int]:
        """Calls as JSON objects, one after the other."""
        calls: list[tuple[str, Json]] = []
        end = at
        while True:
            try:
                doubled = self._text.startswith("{{", at)  # as Qwen2.5's own template shows it
                self._check_first_key(at + doubled, final)
                value, after = self._json(at + doubled, final)
                if doubled:
                    after = self._behind_brace(after, final)
                if (found := _calls_of(value)) is None:
                    raise _NoCall(after)
            except _NoCall:
                if not calls:
                    raise
                return calls, end
            calls, end = calls + found, after
            at = _match(BETWEEN, self._text, end).end()
            if at == len(self._text):
                if not final:
                    raise _Unfinished
                return calls, end
            if self._text[at] not in "[{":
                return calls, end

    def _behind_brace(self, at: int, final: bool) -> int:
        if at == len(self._text) and not final:
            raise _Unfinished
        if not self._text.startswith("}", at):
            raise _NoCall(at)
        return at + 1

    def _check_first_key(self, at: int, final: bool) -> None:
        """That it is one of a call's: other JSON is passed on as it comes."""
        found = _match(FIRST_KEY, self._text, at)
        key, closed = found[1] or "", found[2]
        if found.end() == len(self._text) and not final and not closed and any(known.startswith(key) for known in KEYS):
            raise _Unfinished
        if not closed or key not in KEYS:
            raise _NoCall(at + 1)

    def _json(self, at: int, final: bool) -> tuple[Any, int]:
        """A JSON object or list, and where it ends."""
        depth = 0
        for i, found in enumerate(BRACKET.finditer(self._text, at)):
            depth += (found[0] in "[{") - (found[0] in "]}")
            if i > VALUES:
                raise _Refused
            if depth == 0:
                break
        else:
            raise _Unfinished
        text = self._text[at : found.end()]
        if sum(map(text.count, ",[{")) > VALUES:
            raise _Refused
        try:
            return parsed_json(text), found.end()
        except ValueError:
            raise _NoCall(found.end()) from None


def _match(pattern: re.Pattern[str], text: str, at: int) -> re.Match[str]:
    """The match of a pattern that matches anything, if only nothing."""
    found = pattern.match(text, at)
    assert found is not None
    return found


def _calls_of(value: Any) -> list[tuple[str, Json]] | None:
    """The (name, arguments) that JSON says; None for what is no call, or not only calls."""
    if isinstance(value, list):
        several = [_calls_of(one) for one in value]
        return None if None in several else [call for calls in several for call in calls or ()] or None
    if not isinstance(value, dict):
        return None
    said = {key: one for key, one in value.items() if key not in BESIDE}
    if len(said) == 1:
        ((key, inner),) = said.items()
        return _calls_of(inner) if key in AROUND and isinstance(inner, dict | list) else None
    names = [said[key] for key in NAMES if key in said]
    arguments = [said[key] for key in ARGUMENTS if key in said]
    if len(said) != 2 or len(names) != 1 or len(arguments) != 1 or not isinstance(names[0], str):
        return None
    if isinstance(arguments[0], str):
        try:
            arguments = [parsed_json(arguments[0])]
        except ValueError:
            return None
    return [(names[0], arguments[0])] if isinstance(arguments[0], dict) else None
