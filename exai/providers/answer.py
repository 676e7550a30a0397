"""One streamed answer, put together from the events of a chat-completions stream; no I/O.

The providers differ in where they put things, so each is looked for wherever it has been seen: reasoning in
`reasoning_content` or `reasoning`, usage at the top, in the first choice or in a chunk without choices. The answer is
whole only when the provider has said so, by a finish reason or by `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from exai.models import Delta, FinishReason, Usage
from exai.providers.sse import Event

DONE: Final = "[DONE]"

_FINISH_REASONS: Final[Mapping[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "content_filter": "content_filter",
    "sensitive": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
_BROKEN_OFF: Final = frozenset({"network_error", "error"})
"""Finish reasons that say the generation did not finish."""

_NOTHING: Final = Delta()
_MAX_NAME_CHARS: Final = 200


class UnusableAnswer(Exception):
    """The stream is not what the protocol says; the argument is the sentence for people."""


class ErrorInStream(Exception):
    """The provider reported an error inside a stream that began well; the argument is the decoded event."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__("error in stream")
        self.document = document


class Answer:
    """Give it the events in order; it answers with what each adds.

    `max_bytes` bounds text and reasoning together, `max_content_bytes` the text, which must fit in one message.
    """

    def __init__(self, max_bytes: int, max_content_bytes: int) -> None:
        self._max_bytes, self._max_content_bytes = max_bytes, max_content_bytes
        self._bytes = self._content_bytes = 0
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self.finish_reason: FinishReason | None = None
        self.done = False
        self.started = False
        self.usage = Usage()
        self.model: str | None = None
        self.request_id: str | None = None

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
        """Whether the provider has said that the answer is complete."""
        return self.finish_reason is not None or (self.done and self.started)

    def take(self, event: Event) -> Delta | None:
        """Add one event; return what the caller should hear of it. Raises `UnusableAnswer`, `ErrorInStream`."""
        if self.done:
            return None
        if event.data.strip() == DONE:
            self.done = True
            return None
        chunk = _decode(event)
        self._take_facts(chunk)
        choice = _first_choice(chunk)
        if choice is None:
            return None
        delta = self._take_delta(choice.get("delta"))
        self._take_finish(choice.get("finish_reason"))
        return delta

    def _take_facts(self, chunk: Mapping[str, Any]) -> None:
        for name in ("request_id", "id"):
            value = chunk.get(name)
            if self.request_id is None and isinstance(value, str) and value:
                self.request_id = value[:_MAX_NAME_CHARS]
        model = chunk.get("model")
        if isinstance(model, str) and model:
            self.model = model[:_MAX_NAME_CHARS]
        choice = _first_choice(chunk) or {}
        for usage in (chunk.get("usage"), choice.get("usage")):
            if isinstance(usage, dict):
                self.usage = _usage(usage)

    def _take_delta(self, delta: Any) -> Delta | None:
        if not isinstance(delta, dict):
            return None
        content = _text(delta.get("content"))
        reasoning = _text(delta.get("reasoning_content")) or _text(delta.get("reasoning"))
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

    def _take_finish(self, reason: Any) -> None:
        if not isinstance(reason, str) or not reason:
            return
        if reason in _BROKEN_OFF:
            raise UnusableAnswer(f"the provider broke the answer off ({reason})")
        self.finish_reason = _FINISH_REASONS.get(reason, "other")


def _decode(event: Event) -> dict[str, Any]:
    try:
        chunk = orjson.loads(event.data)
    except orjson.JSONDecodeError as error:
        raise UnusableAnswer("an event of the stream is not JSON") from error
    if not isinstance(chunk, dict):
        raise UnusableAnswer("an event of the stream is not a JSON object")
    if chunk.get("error") or event.name == "error" or ("choices" not in chunk and "code" in chunk):
        raise ErrorInStream(chunk)
    return chunk


def _first_choice(chunk: Mapping[str, Any]) -> dict[str, Any] | None:
    choices = chunk.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    return choices[0]


def _text(value: Any) -> str:
    # Postgres text cannot hold NUL, and an answer must not be lost for one character.
    return value.replace("\x00", "\ufffd") if isinstance(value, str) else ""


def _size_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _usage(usage: Mapping[str, Any]) -> Usage:
    prompt = usage.get("prompt_tokens_details")
    completion = usage.get("completion_tokens_details")
    prompt = prompt if isinstance(prompt, dict) else {}
    completion = completion if isinstance(completion, dict) else {}
    return Usage(
        input_tokens=_tokens(usage.get("prompt_tokens")),
        output_tokens=_tokens(usage.get("completion_tokens")),
        cached_tokens=_tokens(usage.get("cached_tokens")) or _tokens(prompt.get("cached_tokens")),
        reasoning_tokens=_tokens(completion.get("reasoning_tokens")) or _tokens(usage.get("reasoning_tokens")),
    )


def _tokens(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
