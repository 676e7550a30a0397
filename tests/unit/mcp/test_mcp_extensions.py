"""The tasks extension in the core: its announcement, its use, and the form of a handle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from exai.mcp.core.connection import Connection
from exai.mcp.core.jsonrpc import Json, RpcError, parse
from exai.mcp.core.protocol import Action, Call, CallContext, Feature, Method, Send, Start, Surface
from exai.mcp.core.versions import META_CAPABILITIES, META_SERVER, MODERN, TASKS, declares
from exai.mcp.core.versions import declared as kept_of
from exai.mcp.transport.http.headers import legacy_version
from tests.support.mcp_server import Tools, handshake, modern, request, tool_call
from tests.support.stateless import KNOWS_TASKS

METHODS = ("tasks/get", "tasks/update", "tasks/cancel")
UNDECLARED: list[Mapping[str, Any]] = [
    {},
    {"extensions": {}},
    {"extensions": {"com.example/other": {}}},
    {"extensions": {TASKS: None}},
    {"extensions": {TASKS: True}},
    {"extensions": [TASKS]},
    {"extensions": None},
    {"tasks": {}},
    {TASKS: {}},
]


async def _work(call: Call, context: CallContext) -> Json:
    return {}


OFFERED = Feature({"extensions": {TASKS: {}}}, [Method(name, work=_work, extension=TASKS) for name in METHODS])
LISTENABLE = Feature({"resources": {"subscribe": True, "listChanged": True}}, [Method("resources/read", work=_work)])


def connection(*features: Feature) -> Connection:
    surface = Surface("exai-test", "1.2.3", (Tools().registry.feature(), *(features or (OFFERED, LISTENABLE))))
    return Connection(surface, max_in_flight=4, reply_max_bytes=10_000)


def give(peer: Connection, message: object) -> Action:
    return peer.accept(parse(orjson.dumps(message)))


def said(action: Action) -> dict[str, Any]:
    assert isinstance(action, Send), action
    found = orjson.loads(action.data)
    assert isinstance(found, dict)
    return found


def declared(capabilities: Mapping[str, Any] = KNOWS_TASKS) -> dict[str, Any]:
    return {META_CAPABILITIES: capabilities}


class TestWhoIsTold:
    def test_discovery_names_the_extension(self) -> None:
        """Capability negotiation: an empty object offers it."""
        found = said(give(connection(), modern(1, "server/discover")))["result"]
        assert found["capabilities"]["extensions"] == {TASKS: {}}

    @pytest.mark.parametrize("version", ["2024-11-05", "2025-06-18", "2025-11-25"])
    def test_a_handshake_does_not(self, version: str) -> None:
        """These revisions know no extensions, and one of them has other tasks."""
        found = said(give(connection(), handshake(version)))["result"]
        assert found["capabilities"].keys() == {"tools", "resources"}

    @pytest.mark.parametrize("method", [*METHODS, "tasks/list", "tasks/result"])
    def test_its_methods_do_not_exist_in_the_initialize_era(self, method: str) -> None:
        """Unknown before and after the handshake, for any capabilities of the client."""
        peer = connection()
        assert said(give(peer, request(1, method, {"taskId": "a"})))["error"]["code"] == -32601
        shake = handshake()
        shake["params"]["capabilities"] = KNOWS_TASKS
        give(peer, shake)
        assert said(give(peer, request(2, method, {"taskId": "a"})))["error"]["code"] == -32601

    @pytest.mark.parametrize("method", ["tasks/list", "tasks/result"])
    def test_methods_the_extension_has_dropped_do_not_exist(self, method: str) -> None:
        """They were part of 2025-11-25."""
        assert said(give(connection(), modern(1, method, **declared())))["error"]["code"] == -32601


class TestWhoMayUseIt:
    @pytest.mark.parametrize("method", METHODS)
    def test_a_request_that_declares_it_is_admitted(self, method: str) -> None:
        """Declared with each request; nothing is remembered."""
        peer = connection()
        assert isinstance(give(peer, modern(1, method, {"taskId": "a"}, **declared())), Start)
        assert said(give(peer, modern(2, method, {"taskId": "a"})))["error"]["code"] == -32021

    @pytest.mark.parametrize("capabilities", UNDECLARED, ids=str)
    @pytest.mark.parametrize("method", METHODS)
    def test_any_other_client_is_refused_with_the_missing_capability(
        self, method: str, capabilities: Mapping[str, Any]
    ) -> None:
        """Missing required client capability, in a form for programs."""
        message = modern(1, method, {"taskId": "a"}, **declared(capabilities))
        error = said(give(connection(), message))["error"]
        assert error["code"] == -32021
        assert error["data"] == {"requiredCapabilities": {"extensions": {TASKS: {}}}}

    def test_no_notices_of_tasks_are_promised(self) -> None:
        """An acknowledgement without taskIds means that the client polls."""
        listen = {"notifications": {"taskIds": ["a"], "resourcesListChanged": True}}
        peer = connection()
        assert said(give(peer, modern(1, "subscriptions/listen", listen)))["error"]["code"] == -32021
        told = said(give(peer, modern(2, "subscriptions/listen", listen, **declared())))
        assert told["method"] == "notifications/subscriptions/acknowledged"
        assert told["params"]["notifications"] == {"resourcesListChanged": True}

    def test_a_server_without_the_extension_has_no_methods_of_it(self) -> None:
        """A subscription to tasks is ignored as one to any other unannounced type."""
        peer = connection(LISTENABLE)
        assert said(give(peer, modern(1, "tasks/get", **declared())))["error"]["code"] == -32601
        listen = {"notifications": {"taskIds": ["a"]}}
        assert said(give(peer, modern(2, "subscriptions/listen", listen)))["params"]["notifications"] == {}


class TestWhatGoesOut:
    def test_a_handle_keeps_its_type(self) -> None:
        """A client distinguishes a handle from a result by `resultType`."""
        peer = connection()
        started = give(peer, modern(1, "tools/call", tool_call("slow"), **declared()))
        assert isinstance(started, Start)
        sent = peer.complete(started.call, {"resultType": "task", "taskId": "a", "status": "working"})
        assert sent is not None
        assert orjson.loads(sent.data)["result"] == {
            "resultType": "task",
            "taskId": "a",
            "status": "working",
            "_meta": {META_SERVER: {"name": "exai-test", "version": "1.2.3"}},
        }


class TestRouting:
    @pytest.mark.parametrize("method", METHODS)
    def test_the_name_header_mirrors_the_tasks_id(self, method: str) -> None:
        """Streamable HTTP, routing headers."""
        message = parse(orjson.dumps(modern(1, method, {"taskId": "a b"}, **declared())))
        headers = {"mcp-protocol-version": "2026-07-28", "mcp-method": method}
        legacy_version({**headers, "mcp-name": "a b"}, message)
        legacy_version({**headers, "mcp-name": "=?base64?YSBi?="}, message)
        for name in ({}, {"mcp-name": "b"}):
            with pytest.raises(RpcError) as caught:
                legacy_version({**headers, **name}, message)
            assert caught.value.code == -32020


def test_of_a_clients_capabilities_only_the_names_are_kept() -> None:
    """They live as long as the connection, and there may be thousands, each with 8 MB of them."""
    extensions = {"other": {"b": ["y" * 1_000_000]}, "none": 5, **{f"e{n}": {} for n in range(100)}, TASKS: {}}
    given = {
        "roots": {"a": "x" * 1_000_000},
        "x" * 1_000: {},
        "extensions": extensions,
        **{f"c{number}": {} for number in range(1_000)},
    }
    kept = kept_of(given)
    assert len(orjson.dumps(kept)) < 2_000
    assert kept["roots"] == {}
    assert "none" not in kept["extensions"]
    assert declares(MODERN, kept, TASKS)
    assert kept_of({}) == {}
