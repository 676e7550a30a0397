"""Spans of turns and of calls of models, in the names of OpenTelemetry's conventions for generative AI.

The conventions are in development, so all their names are here. `exai.monitoring.otel` installs a tracer; without one a
span costs one comparison. Invariant: no text of a user or a model is in a span unless `captures_content` is set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Final, Protocol, TypeAlias

from exai.models import Usage

TRACE_PARENT: Final = "traceparent"
"""The W3C trace context: a header of HTTP, and a member of `_meta` in MCP."""

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
CONVERSATION: Final = "gen_ai.conversation.id"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
ERROR_TYPE: Final = "error.type"
SESSION: Final = "session.id"
USER: Final = "user.id"
"""The last two are what Langfuse groups traces by."""

COST_USD: Final = "exai.cost_usd"
DUPLICATE: Final = "exai.duplicate"

AttributeValue: TypeAlias = str | int | float | bool | Sequence[str]

trace_parent: ContextVar[str] = ContextVar("trace_parent", default="")
"""The trace context that the caller of the current request has sent; "" without one."""


class ActiveSpan(Protocol):
    """A span that has begun."""

    def set(self, name: str, value: AttributeValue | None) -> None:
        """Set an attribute; None sets nothing."""


class Tracer(Protocol):
    """The interface to OpenTelemetry. A span ends with its block, and records the error that ends it."""

    @property
    def captures_content(self) -> bool:
        """Whether texts of users and models may be in spans."""

    def span(
        self, name: str, attributes: Mapping[str, AttributeValue], *, is_client: bool, parent: str
    ) -> AbstractContextManager[ActiveSpan]:
        """Begin a span below the current one, or below `parent` of another process."""


class _NoSpan:
    def set(self, name: str, value: AttributeValue | None) -> None:
        """Discard an attribute."""


_NOTHING: Final[AbstractContextManager[ActiveSpan]] = nullcontext(_NoSpan())
_installed: list[Tracer] = []


@contextmanager
def installed(tracer: Tracer) -> Iterator[None]:
    """Use a tracer in this process while the block runs."""
    _installed.append(tracer)
    try:
        yield
    finally:
        _installed.remove(tracer)


def is_on() -> bool:
    """Return whether spans are made, so that the caller's trace context is of use."""
    return bool(_installed)


def turn_span(owner: str, continuation_id: str | None) -> AbstractContextManager[ActiveSpan]:
    """Begin the span of a chat turn."""
    if not _installed:
        return _NOTHING
    attributes = {OPERATION: "invoke_agent", USER: owner, **conversation_attributes(continuation_id)}
    return _installed[-1].span("exai turn", attributes, is_client=False, parent=trace_parent.get())


def model_span(provider: str, model: str, max_tokens: int | None) -> AbstractContextManager[ActiveSpan]:
    """Begin the span of one call of a model, with its retries."""
    if not _installed:
        return _NOTHING
    attributes: dict[str, AttributeValue] = {OPERATION: "chat", PROVIDER: provider, REQUEST_MODEL: model}
    if max_tokens is not None:
        attributes[REQUEST_MAX_TOKENS] = max_tokens
    return _installed[-1].span(f"chat {model}", attributes, is_client=True, parent=trace_parent.get())


def conversation_attributes(continuation_id: str | None) -> dict[str, str]:
    """Return the attributes that name a conversation."""
    return {} if continuation_id is None else {CONVERSATION: continuation_id, SESSION: continuation_id}


def set_usage(span: ActiveSpan, usage: Usage) -> None:
    """Set the token counts."""
    span.set(INPUT_TOKENS, usage.input_tokens)
    span.set(OUTPUT_TOKENS, usage.output_tokens)
    span.set(CACHED_TOKENS, usage.cached_tokens or None)
    span.set(REASONING_TOKENS, usage.reasoning_tokens or None)


def set_content(span: ActiveSpan, name: str, text: str) -> None:
    """Set a text of a user or a model, if that is switched on."""
    if _installed and _installed[-1].captures_content:
        span.set(name, text)
