"""Read providers' JSON leniently: values from event data, text from content, token counts.

Invariant: no input of a provider raises an exception unless documented. Parts without plain text are counted or named
in the returned values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final

import orjson

DONE: Final = "[DONE]"
MAX_TOKENS: Final = 2**53
"""Counts above this are not exact in JSON; a larger one is a defect of the provider."""

MAX_NAME_CHARS: Final = 200

_MAX_DIGITS: Final = 300
_MAX_PART_DEPTH: Final = 8
_IDLE: Final = re.compile(
    r"[\s.:*!-]*[<\[(]?(?:ping|pong|keep[\s_-]?alive|heart[\s_-]?beat|ok|connect(?:ed|ing)|processing|start(?:ed)?"
    r"|open|waiting|queued)?[>\])]?[\s.:*!-]*",
    re.IGNORECASE,
)
_MAX_IDLE_CHARS: Final = 200
_CONTENT_FIELDS: Final = ("content", "text", "output_text", "value", "answer", "response", "parts")
_REASONING_FIELDS: Final = (
    "reasoning_content",
    "reasoning",
    "reasoning_details",
    "thinking",
    "thinking_blocks",
    "reasoning_text",
    "thought",
    "thoughts",
)
_KNOWN_FIELDS: Final = frozenset(
    {
        *_CONTENT_FIELDS,
        *_REASONING_FIELDS,
        "annotations",
        "audio",
        "channel",
        "citations",
        "executed_tools",
        "finish_reason",
        "function_call",
        "id",
        "images",
        "index",
        "logprobs",
        "message",
        "metadata",
        "name",
        "object",
        "obfuscation",
        "phase",
        "prefix",
        "provider_specific_fields",
        "reasoning_signature",
        "recipient",
        "refusal",
        "role",
        "signature",
        "status",
        "stop_reason",
        "stop_sequence",
        "token_ids",
        "tool_call_id",
        "tool_calls",
        "type",
        "usage",
        "web_search",
    }
)
_REASONING_TYPES: Final = ("reasoning", "thinking", "thought", "summary")
_PART_FIELDS: Final = ("text", "content", "value", "refusal", "output_text", "transcript", "parts")
_THOUGHT_FIELDS: Final = ("text", "thinking", "summary", "content", "reasoning", "value")
_SILENT_TYPES: Final = ("encrypted", "redacted", "signature")
_NAMES: Final[Mapping[str, str]] = {
    "image": "an image",
    "audio": "audio",
    "video": "a video",
    "file": "a file",
    "tool": "a tool call",
    "function": "a tool call",
}


@dataclass(slots=True)
class ParsedPiece:
    """What one piece of a message holds. `named` lists what has no text, `unread` counts what was not understood.

    `refuses` is true if the model marks its text as a refusal.
    """

    content: str = ""
    reasoning: str = ""
    reasoning_field: str = ""
    unread: int = 0
    named: list[str] = field(default_factory=list)
    refuses: bool = False


def values_of(data: str) -> tuple[list[Any], int]:
    """Return the JSON values in the data of one event, `DONE` for its marker, and how many lines are no JSON.

    Several values in one event come from servers that leave out the blank line between events.
    """
    text = data.strip().lstrip("\ufeff")
    while text.startswith("data:"):
        # A proxy has prefixed the field name to a line that already had it.
        text = text.removeprefix("data:").lstrip()
    if _is_done(text):
        return [DONE], 0
    if _is_idle(text):
        return [], 0
    try:
        return [decode(text)], 0
    except ValueError:
        pass
    values: list[Any] = []
    unread = 0
    for line in filter(None, map(str.strip, text.split("\n"))):
        if _is_done(line):
            values.append(DONE)
        elif not _is_idle(line):
            try:
                values += _sequence(line)
            except ValueError:
                unread += 1
    return values, unread


def decode(text: str | bytes) -> Any:
    """Return one JSON value; also with NaN, Infinity, halves of surrogate pairs, control characters and huge numbers.

    Raises `ValueError`.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return _LENIENT.decode(text if isinstance(text, str) else text.decode("utf-8-sig", errors="replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_message(message: Mapping[str, Any]) -> ParsedPiece:
    """Return the contents of a delta or message, in the fields of any known provider."""
    found = ParsedPiece()
    for name in _CONTENT_FIELDS:
        if message.get(name) not in (None, "", [], {}):
            _read_content(message[name], found, 0)
            break
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        found.content += refusal
        found.refuses = True
    audio = message.get("audio")
    if isinstance(audio, Mapping):
        transcript = audio.get("transcript")
        if isinstance(transcript, str):
            found.content += transcript
        if audio.get("data"):
            found.named.append("audio")
    for name in _REASONING_FIELDS:
        if thought := _thought(message.get(name), 0):
            found.reasoning += thought
            found.reasoning_field = name
            break
    if message.get("images"):
        found.named.append("an image")
    found.named += _calls(message)
    if not (found.content or found.reasoning or found.named or found.unread):
        _read_the_unknown(message, found)
    return found


def _read_the_unknown(message: Mapping[str, Any], found: ParsedPiece) -> None:
    """Search a piece without text for a nested message or unknown fields."""
    inner = message.get("message")
    if isinstance(inner, Mapping) and "message" not in inner:
        within = read_message(inner)
        found.content, found.reasoning = within.content, within.reasoning
        found.named, found.unread = within.named, within.unread
        return
    for name, value in message.items():
        if name not in _KNOWN_FIELDS and isinstance(value, str | list | dict) and len(value) > 1:
            found.named.append(f"the unknown field {clean_name(name)}")


def tokens(value: Any) -> int:
    """Return a count of tokens; 0 for an invalid value."""
    if isinstance(value, str) and len(value) < _MAX_DIGITS:
        try:
            value = float(value)
        except ValueError:
            return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value <= 0:
        return 0
    return int(min(value, MAX_TOKENS))


def clean_name(value: str) -> str:
    """Return a name from a provider, cleaned for storage, logs and display."""
    return "".join(char if char.isprintable() else "\ufffd" for char in value[:MAX_NAME_CHARS])


class TextJoiner:
    """Joins the pieces of one stream of text, which may split surrogate pairs.

    A piece may end with half a surrogate pair whose other half begins the next one. What cannot be stored, NUL and
    halves without their other half, is replaced.
    """

    __slots__ = ("_half",)

    def __init__(self) -> None:
        self._half = ""

    def join(self, piece: str) -> str:
        """Return the text that is complete with `piece`."""
        if not self._half and piece.isascii():
            return piece.replace("\x00", "\ufffd")
        text = self._half + piece
        self._half = ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return _paired(text).replace("\x00", "\ufffd")

    def end(self) -> str:
        """Return the replacement of an unpaired half."""
        left, self._half = self._half, ""
        return "\ufffd" if left else ""


def _paired(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _is_done(text: str) -> bool:
    return len(text) <= len(DONE) + 2 and text.strip("\"'[]<>").upper() == DONE.strip("[]")


def _is_idle(text: str) -> bool:
    return len(text) <= _MAX_IDLE_CHARS and _IDLE.fullmatch(text) is not None


def _int(digits: str) -> int | float:
    # `int` refuses more than 4,300 digits.
    return int(digits) if len(digits) < _MAX_DIGITS else float(digits)


_LENIENT: Final = json.JSONDecoder(strict=False, parse_int=_int)


def _sequence(line: str) -> Iterator[Any]:
    values: list[Any] = []
    at = 0
    try:
        while at < len(line):
            value, at = _LENIENT.raw_decode(line, at)
            values.append(value)
            while at < len(line) and line[at] in " \t,":
                at += 1
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return iter(values)


def _read_content(value: Any, found: ParsedPiece, depth: int) -> None:
    if isinstance(value, str):
        found.content += value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found.content += str(value)
    elif isinstance(value, list) and depth < _MAX_PART_DEPTH:
        for part in value:
            _read_content(part, found, depth + 1)
    elif isinstance(value, dict) and depth < _MAX_PART_DEPTH:
        _read_part(value, found, depth)
    elif value is not None and value is not False:
        found.unread += 1


def _read_part(part: Mapping[str, Any], found: ParsedPiece, depth: int) -> None:
    kind = part.get("type")
    kind = kind.lower() if isinstance(kind, str) else ""
    if any(word in kind for word in _REASONING_TYPES) or part.get("thought") is True:
        found.reasoning += _thought(part, depth)
        return
    found.refuses = found.refuses or kind == "refusal" or bool(part.get("refusal"))
    word = next((word for key in (kind, *map(str, part)) for word in _NAMES if word in key.lower()), None)
    own = part.get(str(part.get("type")))
    if word is None and isinstance(own, str) and own:
        found.content += own
        return
    for name in _PART_FIELDS:
        if part.get(name) not in (None, "", [], {}):
            _read_content(part[name], found, depth + 1)
            return
    if any(name in part for name in _PART_FIELDS):
        # The text field exists, and is empty.
        return
    if word is not None:
        found.named.append(_NAMES[word])
    elif part:
        found.unread += 1


def _thought(value: Any, depth: int) -> str:
    if isinstance(value, str):
        return value
    if depth >= _MAX_PART_DEPTH:
        return ""
    if isinstance(value, list):
        return "".join(_thought(part, depth + 1) for part in value)
    if isinstance(value, dict):
        kind = value.get("type")
        if isinstance(kind, str) and any(word in kind.lower() for word in _SILENT_TYPES):
            return ""
        return next(filter(None, (_thought(value.get(name), depth + 1) for name in _THOUGHT_FIELDS)), "")
    return ""


def _calls(message: Mapping[str, Any]) -> list[str]:
    calls = message.get("tool_calls")
    calls = calls if isinstance(calls, list) else [calls] if isinstance(calls, dict) else []
    named = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        named.append(_call(function if isinstance(function, dict) else call))
    if message.get("function_call"):
        named.append(_call(message["function_call"]))
    return named


def _call(function: Any) -> str:
    name = function.get("name") if isinstance(function, dict) else None
    return f"a call of the tool {clean_name(name)}" if isinstance(name, str) and name else "a tool call"
