"""Sends spans to an OpenTelemetry collector over OTLP/HTTP; the extra `otel` installs the required packages.

The variables OTEL_* of OpenTelemetry's own specification name the address, its headers and the service. Invariant:
spans are sent by a thread of the SDK, in batches; a collector that is away costs a request nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

from exai import __version__
from exai.errors import ExaiError, StartupError
from exai.settings.load import TelemetrySettings
from exai.tracing import ERROR_TYPE, TRACE_PARENT, ActiveSpan, AttributeValue, installed

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

SHUTDOWN_LIMIT_MS: Final = 2_000


class _SpanOfSdk:
    def __init__(self, span: Span) -> None:
        self._span = span

    def set(self, name: str, value: AttributeValue | None) -> None:
        """Set an attribute."""
        if value is not None:
            self._span.set_attribute(name, value)


class OtelTracer:
    """Implements `exai.tracing.Tracer`."""

    def __init__(self, provider: TracerProvider, *, captures_content: bool) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = provider.get_tracer("exai", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self.captures_content = captures_content

    @contextmanager
    def span(
        self, name: str, attributes: Mapping[str, AttributeValue], *, is_client: bool, parent: str
    ) -> Iterator[ActiveSpan]:
        """Begin a span below the current one, or below `parent` of another process."""
        from opentelemetry import trace

        context = None
        if parent and not trace.get_current_span().get_span_context().is_valid:
            context = self._propagator.extract({TRACE_PARENT: parent})
        kind = trace.SpanKind.CLIENT if is_client else trace.SpanKind.SERVER
        with self._tracer.start_as_current_span(
            name, context, kind, dict(attributes), record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield _SpanOfSdk(span)
            except BaseException as error:
                # Neither the message nor the traceback: both may contain text of a user or a model.
                code = error.code if isinstance(error, ExaiError) else type(error).__name__
                span.set_attribute(ERROR_TYPE, code)
                span.set_status(trace.StatusCode.ERROR, code)
                raise


@asynccontextmanager
async def traced(settings: TelemetrySettings) -> AsyncIterator[None]:
    """Send spans while the block runs, if that is switched on. Raises `StartupError` without the extra."""
    if not settings.traces:
        yield
        return
    provider = _provider()
    try:
        with installed(OtelTracer(provider, captures_content=settings.content)):
            yield
    finally:
        await asyncio.to_thread(provider.force_flush, SHUTDOWN_LIMIT_MS)
        await asyncio.to_thread(provider.shutdown)


def _provider() -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise StartupError(
            "EXAI_TELEMETRY__TRACES",
            "needs packages that are not installed",
            'Install them with pip install "exai[otel]", or unset it',
        ) from error
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override these.
    own = {"service.name": "exai", "service.version": __version__}
    given = Resource.create().attributes
    named = {} if str(given.get("service.name", "")).startswith("unknown_service") else given
    provider = TracerProvider(resource=Resource({**given, **own, **named}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
