"""Spans arrive at an OTLP/HTTP receiver: one per turn and model call, below the caller's trace, without any text."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from exai import tracing
from tests.support.client import call, connect
from tests.support.daemon import Daemon, start_daemon
from tests.support.provider_server import ProviderServer, kimi_answer

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
QUESTION, ANSWER = "a secret question", "a secret answer"


class Receiver:
    """Collects the spans that are posted to it."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = ExportTraceServiceRequest()
                sent.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/traces"
                for resource in sent.resource_spans:
                    receiver.resources.append(attributes(resource.resource))
                    receiver.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def attributes(of: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in of.attributes}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, args=(0.01,))
    thread.start()
    yield receiver
    receiver.server.shutdown()
    thread.join()
    receiver.server.server_close()


@pytest.fixture
def settings(
    provider: ProviderServer, postgres_url: str, redis_url: str, tmp_path: Path, receiver: Receiver
) -> dict[str, str]:
    return {
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "EXAI_TELEMETRY__TRACES": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.server.server_port}",
        "OTEL_SERVICE_NAME": "exai-test",
        "KIMI_API_KEY": "sk-test",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
    }


@contextmanager
def daemon_with(settings: Mapping[str, str]) -> Iterator[Daemon]:
    """A daemon that is stopped in order, so that it has sent all spans at the end."""
    with start_daemon(settings) as daemon:
        yield daemon
        assert daemon.stop() == 0


async def test_a_chat_is_one_span_with_one_below_it(
    settings: dict[str, str], receiver: Receiver, provider: ProviderServer
) -> None:
    """Names of the conventions, tokens, conversation and user; a cached read is no span, and no text is in any."""
    provider.script(kimi_answer(ANSWER))
    with daemon_with(settings) as daemon:
        async with connect(daemon.url) as client:
            answer = await call(client, "chat", prompt=QUESTION)
            await call(client, "conversation_get", continuation_id=answer["continuation_id"])
    asked, turn = sorted(receiver.spans, key=lambda span: span.name)
    assert (turn.name, asked.name) == ("exai turn", f"chat {answer['model']}")
    assert (asked.trace_id, asked.parent_span_id) == (turn.trace_id, turn.span_id)
    assert turn.parent_span_id == b""
    of_turn, of_call = attributes(turn), attributes(asked)
    assert of_turn[tracing.CONVERSATION] == of_turn[tracing.SESSION] == answer["continuation_id"]
    assert of_turn[tracing.USER] == "local"
    assert (of_call[tracing.OPERATION], of_call[tracing.PROVIDER]) == ("chat", "kimi")
    assert of_call[tracing.INPUT_TOKENS] == of_turn[tracing.INPUT_TOKENS] > 0
    assert QUESTION not in str(receiver.spans)
    assert ANSWER not in str(receiver.spans)
    assert receiver.resources[0]["service.name"] == "exai-test"


async def test_the_callers_trace_goes_on(settings: dict[str, str], receiver: Receiver) -> None:
    """From the header of a POST, and from `_meta`, which is nearer to the call."""
    other = PARENT.replace(TRACE, TRACE[::-1])
    with daemon_with(settings) as daemon:
        async with httpx.AsyncClient(timeout=30) as client:
            for number, meta in enumerate(({}, {"traceparent": other})):
                body = {
                    "jsonrpc": "2.0",
                    "id": number,
                    "method": "tools/call",
                    "params": {"name": "chat", "arguments": {"prompt": f"question {number}"}, "_meta": meta},
                }
                headers = {
                    "traceparent": PARENT,
                    "accept": "application/json, text/event-stream",
                    "mcp-protocol-version": "2025-06-18",
                }
                answer = await client.post(f"http://127.0.0.1:{daemon.port}/mcp", json=body, headers=headers)
                assert answer.status_code == 200, answer.text
    turns = [span for span in receiver.spans if span.name == "exai turn"]
    assert [span.trace_id.hex() for span in turns] == [TRACE, TRACE[::-1]]
    assert {span.parent_span_id.hex() for span in turns} == {"b7ad6b7169203331"}


async def test_texts_are_in_spans_only_if_that_is_switched_on(
    settings: dict[str, str], receiver: Receiver, provider: ProviderServer
) -> None:
    """An error names its class, never its text."""
    provider.script(kimi_answer(ANSWER))
    with daemon_with(settings | {"EXAI_TELEMETRY__CONTENT": "true"}) as daemon:
        async with connect(daemon.url) as client:
            await call(client, "chat", prompt=QUESTION)
            failed = await client.call_tool("chat", {"prompt": QUESTION, "continuation_id": "unknown"})
            assert failed.isError
    turns = [attributes(span) for span in receiver.spans if span.name == "exai turn"]
    assert (turns[0][tracing.INPUT_MESSAGES], turns[0][tracing.OUTPUT_MESSAGES]) == (QUESTION, ANSWER)
    assert turns[1][tracing.ERROR_TYPE] == "not_found"


def test_a_span_costs_nothing_without_a_tracer() -> None:
    """One object serves all of them."""
    assert not tracing.is_on()
    assert tracing.turn_span("anna", "c") is tracing.model_span("kimi", "k3", None)
