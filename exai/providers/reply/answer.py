"""Assemble one answer from the events of a chat-completions stream; no I/O.

Providers use different fields, so each value is read from every field in which it has been seen: reasoning from
`reasoning_content`, `reasoning`, `reasoning_details` or `thinking`, text from `delta`, `message` or `text`, usage from
the top level, a choice or a chunk without choices. An answer is complete only after a finish reason or `[DONE]`.

Invariant: no part of an answer is dropped silently. Parts without text are listed in `named`, unreadable ones are
counted in `unread`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn

import orjson

from exai.models import Delta, FinishReason, Usage, WebSource
from exai.providers.reply.calls import ToolCall, take_calls
from exai.providers.reply.chunks import (
    END_FLAGS,
    LOOSE_FIELDS,
    choices_of,
    error_beside,
    has_choices,
    is_error,
    says_something,
    usage_after,
)
from exai.providers.reply.reading import DONE, ParsedPiece, TextJoiner, clean_name, read_message, tokens, values_of
from exai.providers.reply.sources import FIELDS, MAX_SOURCES, sources_in, sources_of
from exai.providers.reply.sse import Event

_FINISH_REASONS: Final[Mapping[str, FinishReason]] = {
    "stop": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "complete": "stop",
    "completed": "stop",
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "max_length": "length",
    "model_context_window_exceeded": "length",
    "content_filter": "content_filter",
    "sensitive": "content_filter",
    "safety": "content_filter",
    "refusal": "content_filter",
    "recitation": "content_filter",
    "prohibited_content": "content_filter",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
}
_BROKEN_OFF: Final = frozenset(
    {"network_error", "error", "abort", "aborted", "cancelled", "canceled", "timeout", "insufficient_system_resource"}
)
"""Finish reasons of an answer that is not complete."""

_PLAIN_DELTA: Final = frozenset({"role", "content"})
_PLAIN_REASONING: Final = "reasoning_content"
_PLAIN_THOUGHT: Final = frozenset({"role", "content", _PLAIN_REASONING})
_PLAIN_CHUNK: Final = frozenset(
    {"id", "object", "created", "model", "choices", "system_fingerprint", "service_tier", "request_id", "usage"}
)
_PLAIN_CHOICE: Final = frozenset({"index", "delta", "finish_reason", "logprobs"})
_IDLE_EVENTS: Final = frozenset({"ping", "pong", "keepalive", "keep-alive", "keep_alive", "heartbeat"})
_END_EVENTS: Final = frozenset({"done", "end", "close", "complete", "finish", "finished"})
_END_TYPES: Final = frozenset({"message_stop", "response.completed", "response.done"})
_ENVELOPES: Final = ("data", "result", "response")
_REASON_FIELDS: Final = ("finish_reason", "stop_reason", "done_reason")
_UNKNOWN_TEXT_FIELDS: Final = (
    "token",
    "generated_text",
    "output",
    "outputs",
    "answer",
    "result",
    "completion",
    "candidates",
    "generations",
    "predictions",
)
_REPEATED_CHARS: Final = 20
"""A message that begins with at least this much of the text so far repeats it."""

MAX_NAMED: Final = 20


class UnusableAnswer(Exception):
    """The stream violates the protocol; the argument is the error message."""


class ErrorInStream(Exception):
    """The provider reported an error inside a stream that began well; the argument is the decoded event."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__("error in stream")
        self.document = document


class AnswerAssembler:
    """Assembles the events passed to `take` in order; `settle` must follow the last one.

    `max_bytes` limits text and reasoning together, `max_content_bytes` the text, which must fit in one message. `lost`
    is the reason why the end of the stream may be missing despite a finish reason. `may_go_on` is set if the finish
    reason came with text, as from servers that send it with every piece; `goes_on` if more text followed.
    """

    def __init__(self, max_bytes: int, max_content_bytes: int) -> None:
        self._max_bytes, self._max_content_bytes = max_bytes, max_content_bytes
        self._bytes = self._content_bytes = self._spare_bytes = 0
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._content_joiner, self._reasoning_joiner = TextJoiner(), TextJoiner()
        self._spare: list[Mapping[str, Any]] = []
        self._has_own_choice = self._has_deltas = False
        self.reasoning_field = ""
        self.finish_reason: FinishReason | None = None
        self.refuses = False
        self.done = False
        self.started = False
        self.may_go_on = self.goes_on = False
        self.usage = Usage()
        self.model: str | None = None
        self._model_said = ""
        self.request_id: str | None = None
        self.unread = 0
        self.named: dict[str, None] = {}
        self.lost: str | None = None
        self.calls: dict[int, ToolCall] = {}
        self.sources: dict[str, WebSource] = {}

    @property
    def content(self) -> str:
        """The text so far."""
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        """The reasoning so far."""
        return "".join(self._reasoning)

    @property
    def whole(self) -> bool:
        """Whether the provider has marked the answer as complete."""
        return self.finish_reason is not None or (self.done and self.started)

    @property
    def is_partial(self) -> bool:
        """Whether the text may be incomplete."""
        return bool(self.lost or self.unread or self.named)

    def take(self, event: Event) -> Delta | None:
        """Add one event; return the delta for the caller. Raises `UnusableAnswer`, `ErrorInStream`."""
        name = event.name.strip().lower()
        if self.done or name in _IDLE_EVENTS:
            return None
        if not name and event.data.startswith('{"') and (piece := self._plain_piece(event.data)) is not None:
            return self._add(piece)
        values, unread = values_of(event.data)
        self.unread += unread
        added = ParsedPiece()
        for value in values:
            if value == DONE:
                self.done = True
                break
            for chunk in value if isinstance(value, list) else [value]:
                self._take_value(chunk, name, added)
        self.done = self.done or name in _END_EVENTS
        return self._add(added)

    def _plain_piece(self, data: str) -> ParsedPiece | None:
        """Return the piece of a chunk that holds a part of the text or of the reasoning, and nothing new beside it.

        Nearly all chunks have this form. None for any other, which is read field by field.
        """
        try:
            chunk = orjson.loads(data)
            choice, *others = chunk["choices"]
            delta, is_known = choice["delta"], chunk["model"] == self._model_said
        except (ValueError, KeyError, TypeError):
            return None
        is_plain = (
            is_known
            and not others
            and type(delta) is dict
            and self.request_id is not None
            and self.finish_reason is None
            and choice.get("finish_reason") is None
            and choice.get("index") == 0
            and choice.keys() <= _PLAIN_CHOICE
            and chunk.keys() <= _PLAIN_CHUNK
            and chunk.get("usage") is None
        )
        if not is_plain:
            return None
        content, reasoning = delta.get("content"), delta.get(_PLAIN_REASONING)
        if type(content) is str and content and delta.keys() <= _PLAIN_DELTA:
            self._has_own_choice = self._has_deltas = True
            return ParsedPiece(content)
        is_thought = type(reasoning) is str and reasoning and self.reasoning_field == _PLAIN_REASONING
        if is_thought and content in (None, "") and delta.keys() <= _PLAIN_THOUGHT:
            self._has_own_choice = self._has_deltas = True
            return ParsedPiece("", reasoning)
        return None

    def settle(self) -> Delta | None:
        """Return the delta that can only be determined at the end of the stream. Raises as `take`."""
        added = ParsedPiece()
        if not self._has_own_choice:
            for choice in self._spare:
                self._take_own_choice(choice, added)
        self._spare.clear()
        delta = self._add(added) or Delta()
        content, reasoning = self._content_joiner.end(), self._reasoning_joiner.end()
        self._content.append(content)
        self._reasoning.append(reasoning)
        delta = Delta(delta.content + content, delta.reasoning + reasoning)
        return delta if delta.content or delta.reasoning else None

    def _take_value(self, value: Any, name: str, added: ParsedPiece) -> None:
        if isinstance(value, dict):
            self._take_chunk(value, name, added)
        elif isinstance(value, str) and value.strip():
            self.unread += 1

    def _take_chunk(self, chunk: Mapping[str, Any], name: str, added: ParsedPiece) -> None:
        inner = next(filter(has_choices, map(chunk.get, _ENVELOPES)), None)
        if isinstance(inner, dict) and "choices" not in chunk:
            chunk = inner
        if is_error(chunk, name):
            self._fail(chunk, added)
        self._take_facts(chunk)
        for choice in choices_of(chunk):
            if isinstance(choice, str):
                added.content += choice
            elif not isinstance(choice, dict):
                self.unread += 1
            elif choice is not chunk and tokens(choice.get("index")) and says_something(choice):
                self._keep_spare(choice)
            else:
                self._has_own_choice = True
                self._take_own_choice(choice, added)
        if "choices" not in chunk and any(chunk.get(field) for field in _UNKNOWN_TEXT_FIELDS):
            self.unread += 1
        if (late := error_beside(chunk)) is not None:
            self._fail({"error": late}, added)
        kind = chunk.get("type")
        self.done = self.done or (isinstance(kind, str) and kind in _END_TYPES)

    def _fail(self, document: Mapping[str, Any], added: ParsedPiece) -> NoReturn:
        """Raise `ErrorInStream`, after adding the text that precedes the error in the same event."""
        self._add(added)
        raise ErrorInStream(document)

    def _keep_spare(self, choice: Mapping[str, Any]) -> None:
        """Keep a choice of another index, which is used only if the stream has no choice of index 0."""
        first = self._spare[0].get("index") if self._spare else choice.get("index")
        if self._has_own_choice or choice.get("index") != first:
            return
        self._spare_bytes += len(str(choice))
        if self._spare_bytes <= self._max_bytes:
            self._spare.append(choice)
        else:
            self.unread += 1

    def _take_own_choice(self, choice: Mapping[str, Any], added: ParsedPiece) -> None:
        delta = choice.get("delta")
        if type(delta) is dict and delta.keys() <= _PLAIN_DELTA and choice.keys() <= _PLAIN_CHOICE:
            content = delta.get("content")
            if type(content) is str and content and choice.get("finish_reason") is None and self.finish_reason is None:
                # Fast path for the form of nearly all chunks; it takes a fifth of the time of the general one.
                self._has_deltas = True
                added.content += content
                return
        if choice.get("error"):
            self._fail({"error": choice["error"]}, added)
        for message in (delta, choice.get("message")):
            if isinstance(message, dict):
                take_calls(message, self.calls)
                self._take_sources(sources_of(message.get("annotations")))
        found = self._read_choice(choice)
        if found.content and self.finish_reason is not None:
            self.goes_on = True
        added.content += found.content
        added.reasoning += found.reasoning
        self.reasoning_field = self.reasoning_field or found.reasoning_field
        self.unread += found.unread
        self.refuses = self.refuses or found.refuses
        self._name(found.named)
        self._take_finish(choice, added)

    def _read_choice(self, choice: Mapping[str, Any]) -> ParsedPiece:
        delta, message = choice.get("delta"), choice.get("message")
        if isinstance(delta, str):
            return ParsedPiece(delta)
        found = read_message(delta) if isinstance(delta, dict) else ParsedPiece()
        if isinstance(delta, list):
            found = read_message({"content": delta})
        if found.content or found.reasoning:
            self._has_deltas = True
        elif isinstance(message, dict):
            found = self._rest_of(read_message(message))
        elif not found.named and not found.unread:
            loose = {name: choice[name] for name in LOOSE_FIELDS[2:] if choice.get(name)}
            found = read_message(loose)
        return found

    def _rest_of(self, found: ParsedPiece) -> ParsedPiece:
        """Return the new part of a complete message, in which servers repeat the text of earlier pieces."""
        so_far = self.content
        repeats = self._has_deltas or len(so_far) >= _REPEATED_CHARS
        if so_far and repeats and found.content.startswith(so_far):
            found.content, found.reasoning = found.content[len(so_far) :], ""
        elif so_far and self._has_deltas and found.content:
            if found.content.strip() not in so_far:
                found.unread += 1
            found.content = found.reasoning = ""
        return found

    def _take_facts(self, chunk: Mapping[str, Any]) -> None:
        for name in ("request_id", "id"):
            value = chunk.get(name)
            if self.request_id is None and isinstance(value, str) and value:
                self.request_id = clean_name(value)
        model = chunk.get("model")
        if isinstance(model, str) and model and model != self._model_said:
            self._model_said, self.model = model, clean_name(model)
        self.usage = usage_after(chunk, self.usage)
        if not FIELDS.isdisjoint(chunk):
            self._take_sources(sources_in(chunk))

    def _take_sources(self, found: Iterable[WebSource]) -> None:
        for source in found:
            if len(self.sources) < MAX_SOURCES:
                self.sources.setdefault(source.url, source)

    def _name(self, things: list[str]) -> None:
        for thing in things:
            known = thing in self.named or (thing == "a tool call" and any("tool" in each for each in self.named))
            if not known and len(self.named) < MAX_NAMED:
                self.named[thing] = None

    def _add(self, found: ParsedPiece) -> Delta | None:
        content = self._content_joiner.join(found.content)
        reasoning = self._reasoning_joiner.join(found.reasoning)
        if not content and not reasoning:
            return None
        self._bytes += _size_bytes(content) + _size_bytes(reasoning)
        self._content_bytes += _size_bytes(content)
        if self._bytes > self._max_bytes or self._content_bytes > self._max_content_bytes:
            limit = min(self._max_bytes, self._max_content_bytes)
            raise UnusableAnswer(f"the answer is larger than a message may be ({limit:,} bytes)")
        self.started = True
        if content:
            self._content.append(content)
        if reasoning:
            self._reasoning.append(reasoning)
        return Delta(content, reasoning)

    def _take_finish(self, choice: Mapping[str, Any], added: ParsedPiece) -> None:
        places = [place for place in (choice, choice.get("delta")) if isinstance(place, dict)]
        word = next(filter(None, (_word(place.get(name)) for place in places for name in _REASON_FIELDS)), "")
        if not word and any(choice.get(flag) is True for flag in END_FLAGS):
            word = "length" if choice.get("stopped_limit") is True else "stop"
        if not word:
            return
        if word in _BROKEN_OFF:
            # Text in the same chunk as the finish reason belongs to the answer that is kept.
            self._add(added)
            raise UnusableAnswer(f"the provider broke the answer off ({word})")
        self.finish_reason = _FINISH_REASONS.get(word, "other")
        if added.content:
            self.may_go_on = True


def _word(reason: Any) -> str:
    if isinstance(reason, dict):
        reason = reason.get("type")
    return reason.lower() if isinstance(reason, str) and reason.lower() != "null" else ""


def _size_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
