"""The protocol core, message by message: both eras, refusals, cancellation, progress, subscriptions."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from exai.errors import DatabaseBusy, DeadlineExceeded, NotFound, ShuttingDown
from exai.mcp.core.connection import Connection
from exai.mcp.core.jsonrpc import Json, RpcError, parse
from exai.mcp.core.protocol import Call, CallContext, Cancel, Feature, Ignore, Method, Send, Start, Surface
from exai.mcp.core.versions import META_CAPABILITIES, META_PART, META_SERVER, META_SUBSCRIPTION, META_VERSION
from exai.mcp.features.paging import paged
from tests.support.mcp_server import Tools, handshake, modern, request, tool_call


async def _read(call: Call, context: CallContext) -> Json:
    return {"contents": []}


LISTENABLE = Feature({"resources": {"subscribe": True, "listChanged": True}}, [Method("resources/read", work=_read)])


def connect(version: str | None = "2025-11-25", *features: Feature, **limits: int) -> Connection:
    """A connection that has had its handshake, unless `version` is None."""
    surface = Surface("exai-test", "1.2.3", (Tools().registry.feature(), *features), instructions="Test tools.")
    connection = Connection(surface, **{"max_in_flight": 4, "reply_max_bytes": 10_000, **limits})
    if version is not None:
        connection.accept(parse(orjson.dumps(handshake(version))))
    return connection


def give(connection: Connection, message: object) -> Any:
    return connection.accept(parse(orjson.dumps(message)))


def answer(action: object) -> dict[str, Any]:
    assert isinstance(action, Send), action
    found = orjson.loads(action.data)
    assert isinstance(found, dict)
    return found


def settled(answered: Send | None) -> Any:
    """The message that settles a call."""
    assert answered is not None
    return orjson.loads(answered.data)


def error(action: object) -> dict[str, Any]:
    found = answer(action)
    assert "error" in found, found
    return {"id": found.get("id"), **found["error"]}


def started(action: object) -> Call:
    assert isinstance(action, Start), action
    return action.call


class TestHandshake:
    @pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
    def test_supported_version_is_echoed(self, version: str) -> None:
        """Lifecycle, version negotiation."""
        result = answer(give(connect(None), handshake(version)))["result"]
        assert result["protocolVersion"] == version
        assert result["serverInfo"] == {"name": "exai-test", "version": "1.2.3"}
        assert result["instructions"] == "Test tools."
        assert result["capabilities"] == {"tools": {}}

    @pytest.mark.parametrize("version", ["2026-07-28", "2030-01-01", "", 5, None, {}])
    def test_any_other_version_gets_the_latest_with_a_handshake(self, version: object) -> None:
        """Also the stateless revision: a client that shakes hands wants the older era."""
        message = request(0, "initialize", {"protocolVersion": version})
        assert answer(give(connect(None), message))["result"]["protocolVersion"] == "2025-11-25"

    def test_handshake_with_an_envelope_is_still_a_handshake(self) -> None:
        """The era is chosen by the method first."""
        message = modern(0, "initialize", {"protocolVersion": "2025-06-18"})
        result = answer(give(connect(None), message))["result"]
        assert result["protocolVersion"] == "2025-06-18"
        assert "resultType" not in result

    def test_methods_before_the_handshake_are_invalid_and_unknown_ones_unknown(self) -> None:
        """A known method lacks its handshake, an unknown one does not exist."""
        connection = connect(None)
        assert error(give(connection, request(1, "tools/list")))["code"] == -32602
        assert error(give(connection, request(2, "no/such")))["code"] == -32601

    def test_ping_needs_no_handshake(self) -> None:
        """Lifecycle: pings are allowed before initialization."""
        assert answer(give(connect(None), request(0, "ping"))) == {"jsonrpc": "2.0", "id": 0, "result": {}}

    def test_a_second_handshake_changes_the_revision(self) -> None:
        """A bridge replays the handshake on a connection it cannot know to be new."""
        connection = connect("2025-11-25")
        give(connection, handshake("2024-11-05"))
        assert connection.version == "2024-11-05"


class TestStatelessEra:
    def test_discovery_answers_at_once_and_without_a_handshake(self) -> None:
        """Clients probe with it and hang when it is not answered."""
        result = answer(give(connect(None), modern("d1", "server/discover")))["result"]
        assert result["supportedVersions"] == ["2026-07-28"]
        assert result["resultType"] == "complete"
        assert result["capabilities"] == {"tools": {}}
        assert result["instructions"] == "Test tools."
        assert (result["ttlMs"], result["cacheScope"]) == (60_000, "private")
        assert result["_meta"][META_SERVER] == {"name": "exai-test", "version": "1.2.3"}

    @pytest.mark.parametrize("version", ["2027-01-01", "2025-11-25", "v999.0.0"])
    def test_other_versions_are_refused_with_the_list_of_ours(self, version: str) -> None:
        """UnsupportedProtocolVersionError."""
        found = error(give(connect(), modern(1, "server/discover", **{META_VERSION: version})))
        assert found["code"] == -32022
        assert found["data"] == {"supported": ["2026-07-28"], "requested": version}

    def test_envelope_without_capabilities_is_invalid(self) -> None:
        """Both keys are required; clientInfo is not."""
        message = request(1, "server/discover", None, **{META_VERSION: "2026-07-28"})
        assert error(give(connect(), message))["code"] == -32602

    @pytest.mark.parametrize("meta", [[1], "x", 1])
    def test_meta_must_be_an_object(self, meta: object) -> None:
        """Otherwise the era would be unknown."""
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}
        assert error(give(connect(), message))["code"] == -32602

    def test_empty_list_is_an_empty_object(self) -> None:
        """PHP writes an empty object so."""
        assert "result" in answer(give(connect(), modern(1, "tools/list", **{META_CAPABILITIES: []})))
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": []}}
        assert "result" in answer(give(connect("2025-11-25"), message))

    def test_envelope_of_the_wrong_types_is_invalid(self) -> None:
        """Version a text, capabilities an object."""
        for meta in ({META_VERSION: 1}, {META_CAPABILITIES: [1]}, {META_CAPABILITIES: None}):
            assert error(give(connect(), modern(1, "tools/list", **meta)))["code"] == -32602

    @pytest.mark.parametrize(
        "method", ["ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe", "no/such"]
    )
    def test_removed_and_unknown_methods_do_not_exist(self, method: str) -> None:
        """Changelog of 2026-07-28."""
        connection = connect("2025-11-25", LISTENABLE)
        assert error(give(connection, modern(1, method)))["code"] == -32601

    def test_bare_discovery_lacks_its_envelope(self) -> None:
        """Invalid, not unknown: the error shows a probing client that the method exists."""
        assert error(give(connect(), request(1, "server/discover")))["code"] == -32602
        assert error(give(connect(None), request(1, "server/discover")))["code"] == -32602

    def test_both_eras_work_on_one_connection(self) -> None:
        """The era belongs to the message, not to the connection."""
        connection = connect("2025-11-25")
        new = answer(give(connection, modern(1, "tools/list")))["result"]
        old = answer(give(connection, request(2, "tools/list")))["result"]
        assert new["tools"] == old["tools"]
        assert {"resultType", "ttlMs", "cacheScope", "_meta"} <= new.keys()
        assert old.keys() == {"tools"}

    def test_results_of_calls_are_typed_but_not_cacheable(self) -> None:
        """Only lists, reads and discovery carry cache hints."""
        connection = connect(None)
        call = started(give(connection, modern(1, "tools/call", tool_call("echo", text="a"))))
        result = settled(connection.complete(call, {"content": [], "isError": False}))["result"]
        assert result["resultType"] == "complete"
        assert "ttlMs" not in result
        assert result["_meta"][META_SERVER]["name"] == "exai-test"


class TestAdmission:
    def test_an_id_in_use_is_refused(self) -> None:
        """Two answers with one id could not be distinguished."""
        connection = connect()
        call = started(give(connection, request(1, "tools/call", tool_call("slow"))))
        assert error(give(connection, request(1, "tools/call", tool_call("slow"))))["code"] == -32600
        assert error(give(connection, request(1, "ping")))["code"] == -32600
        assert connection.complete(call, {"content": []}) is not None
        started(give(connection, request(1, "tools/call", tool_call("slow"))))

    def test_text_and_number_ids_are_different(self) -> None:
        """JSON-RPC ids are compared with their type."""
        connection = connect()
        started(give(connection, request(1, "tools/call", tool_call("slow"))))
        started(give(connection, request("1", "tools/call", tool_call("slow"))))

    def test_requests_beyond_the_cap_are_answered_not_queued(self) -> None:
        """A flood gets errors at once, and the place of a finished call is free again."""
        connection = connect(max_in_flight=2)
        first = started(give(connection, request(1, "tools/call", tool_call("slow"))))
        started(give(connection, request(2, "tools/call", tool_call("slow"))))
        found = error(give(connection, request(3, "tools/call", tool_call("slow"))))
        assert found["id"] == 3
        assert found["data"]["code"] == "overloaded"
        assert found["data"]["retryable"] is True
        assert not -32768 <= found["code"] <= -32000
        assert answer(give(connection, request(4, "ping")))["result"] == {}
        connection.complete(first, {"content": []})
        started(give(connection, request(3, "tools/call", tool_call("slow"))))

    @pytest.mark.parametrize("token", [1.5, True, [], {}])
    def test_progress_tokens_are_texts_or_integers(self, token: object) -> None:
        """Progress, request."""
        message = request(1, "tools/call", tool_call("slow"), progressToken=token)
        assert error(give(connect(), message))["code"] == -32602

    @pytest.mark.parametrize("method", ["notifications/initialized", "notifications/unknown", "tools/call", "ping"])
    def test_messages_without_an_id_are_never_answered(self, method: str) -> None:
        """JSON-RPC 2.0, 4.1."""
        assert isinstance(give(connect(), {"jsonrpc": "2.0", "method": method}), Ignore)

    def test_answers_from_the_peer_are_ignored(self) -> None:
        """This server asks nothing."""
        assert isinstance(give(connect(), {"jsonrpc": "2.0", "id": 1, "result": {}}), Ignore)


class TestCancellation:
    def test_cancelled_call_is_stopped_and_never_answered(self) -> None:
        """Cancellation, behaviour requirements."""
        connection = connect()
        call = started(give(connection, request(0, "tools/call", tool_call("slow"), progressToken=0)))
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 0}}
        assert give(connection, cancel) == Cancel(0)
        assert connection.progress(call, 1, "late") is None
        assert connection.complete(call, {"content": []}) is None
        assert connection.fail(call, RpcError(-32603, "late")) is None

    @pytest.mark.parametrize("target", [99, "0", None, [], {}, True])
    def test_cancelling_what_does_not_run_is_ignored(self, target: object) -> None:
        """Unknown, finished or malformed: all harmless."""
        connection = connect()
        started(give(connection, request(0, "tools/call", tool_call("slow"))))
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": target}}
        assert isinstance(give(connection, cancel), Ignore)

    def test_an_old_call_cannot_answer_for_a_new_one_of_the_same_id(self) -> None:
        """The id is free as soon as its request is cancelled."""
        connection = connect()
        old = started(give(connection, request(1, "tools/call", tool_call("slow"))))
        give(connection, {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})
        new = started(give(connection, request(1, "tools/call", tool_call("slow"))))
        assert connection.complete(old, {"content": []}) is None
        assert connection.complete(new, {"content": []}) is not None


class TestProgress:
    def test_progress_goes_only_to_those_who_gave_a_token(self) -> None:
        """Token 0 is a token."""
        connection = connect()
        silent = started(give(connection, request(1, "tools/call", tool_call("slow"))))
        asked = started(give(connection, request(2, "tools/call", tool_call("slow"), progressToken=0)))
        assert connection.progress(silent, 1, "x") is None
        assert orjson.loads(connection.progress(asked, 1, "asking the model") or b"") == {
            "jsonrpc": "2.0",
            "method": "notifications/progress",
            "params": {"progressToken": 0, "progress": 1, "message": "asking the model"},
        }

    def test_a_part_of_an_answer_stands_beside_the_message(self) -> None:
        """EXAI's own extension, in `_meta` as the specification wants it."""
        connection = connect()
        call = started(give(connection, request(2, "tools/call", tool_call("slow"), progressToken="t")))
        sent = orjson.loads(connection.progress(call, 1, "answering", {"content": "Hel"}) or b"")
        assert sent["params"]["_meta"] == {META_PART: {"content": "Hel"}}
        assert sent["params"]["message"] == "answering"

    def test_none_follows_the_answer(self) -> None:
        """Progress, behaviour requirements."""
        connection = connect()
        call = started(give(connection, request(1, "tools/call", tool_call("slow"), progressToken="t")))
        connection.complete(call, {"content": []})
        assert connection.progress(call, 2, "late") is None

    def test_oldest_revision_has_no_progress_messages(self) -> None:
        """The member came with 2025-03-26."""
        connection = connect("2024-11-05")
        call = started(give(connection, request(1, "tools/call", tool_call("slow"), progressToken=1)))
        assert "message" not in orjson.loads(connection.progress(call, 1, "x") or b"")["params"]


class TestOutcomes:
    def call(self, connection: Connection) -> Call:
        return started(give(connection, request(1, "tools/call", tool_call("slow"))))

    @pytest.mark.parametrize(
        ("raised", "code", "retryable"),
        [
            (NotFound("conversation", "c_1", "List them"), "not_found", False),
            (DatabaseBusy("database", "locked"), "database_busy", True),
            (DeadlineExceeded("kimi", 5), "deadline_exceeded", True),
        ],
    )
    def test_errors_of_tools_are_results_a_model_can_read(self, raised: Any, code: str, retryable: bool) -> None:
        """2025-11-25: tool execution errors are results."""
        connection = connect()
        result = settled(connection.fail(self.call(connection), raised))["result"]
        assert result["isError"] is True
        assert result["content"] == [{"type": "text", "text": str(raised)}]
        facts = result["structuredContent"]["error"]
        assert (facts["code"], facts["retryable"], facts["message"]) == (code, retryable, str(raised))

    def test_shutting_down_is_an_error_of_the_protocol(self) -> None:
        """No argument would have avoided it."""
        connection = connect()
        found = settled(connection.fail(self.call(connection), ShuttingDown()))["error"]
        assert found["data"]["code"] == "shutting_down"
        assert not -32768 <= found["code"] <= -32000

    def test_reply_beyond_the_limit_becomes_a_result_that_says_so(self) -> None:
        """A larger message would close the socket of some clients."""
        connection = connect(reply_max_bytes=2_000)
        large = {"content": [{"type": "text", "text": "x" * 3_000}]}
        answered = connection.complete(self.call(connection), large)
        assert answered is not None
        assert len(answered.data) < 2_000
        result = settled(answered)["result"]
        assert result["isError"] is True
        assert result["structuredContent"]["error"]["code"] == "reply_too_large"
        assert "2000" in result["content"][0]["text"]

    def test_other_methods_say_it_as_an_error(self) -> None:
        """Only tools have results that are errors."""
        connection = connect("2025-11-25", LISTENABLE, reply_max_bytes=2_000)
        call = started(give(connection, request(1, "resources/read", {"uri": "a"})))
        found = settled(connection.complete(call, {"contents": ["x" * 3_000]}))["error"]
        assert found["data"]["code"] == "reply_too_large"

    def test_what_json_cannot_hold_raises_and_leaves_the_call_to_be_failed(self) -> None:
        """The session answers with an internal error then."""
        connection = connect()
        call = self.call(connection)
        with pytest.raises(TypeError):
            connection.complete(call, {"content": [object()]})
        assert connection.fail(call, RpcError(-32603, "internal")) is not None


class TestRevisions:
    RESULT: dict[str, Any] = {
        "content": [
            {"type": "text", "text": "short"},
            {"type": "resource_link", "uri": "exai://1", "name": "one"},
            {"type": "audio", "data": "", "mimeType": "audio/wav"},
        ],
        "structuredContent": {"answer": 42},
        "isError": False,
    }

    def result(self, version: str) -> dict[str, Any]:
        connection = connect(version)
        call = started(give(connection, request(1, "tools/call", tool_call("slow"))))
        found = settled(connection.complete(call, self.RESULT))["result"]
        assert isinstance(found, dict)
        return found

    @pytest.mark.parametrize("version", ["2025-06-18", "2025-11-25"])
    def test_newer_revisions_get_the_result_as_it_is(self, version: str) -> None:
        """Structured content and links came with 2025-06-18."""
        assert self.result(version) == self.RESULT

    def test_older_ones_get_links_and_structure_as_text(self) -> None:
        """They read nothing but text, which so has to be the whole answer."""
        found = self.result("2025-03-26")
        assert "structuredContent" not in found
        assert [block["type"] for block in found["content"]] == ["text", "text", "audio", "text"]
        assert found["content"][1]["text"] == "one: exai://1"
        assert orjson.loads(found["content"][3]["text"]) == {"answer": 42}

    def test_a_long_answer_is_not_sent_twice_to_older_ones(self) -> None:
        """The text is complete by itself; with the structure it would be longer than clients show."""
        connection = connect("2025-03-26")
        call = started(give(connection, request(1, "tools/call", tool_call("slow"))))
        text = {"type": "text", "text": "x" * 9_000}
        long = {"content": [text], "structuredContent": {"answer": "x" * 9_000}, "isError": False}
        assert settled(connection.complete(call, long))["result"] == {"content": [text], "isError": False}

    def test_the_oldest_has_no_audio(self) -> None:
        """Audio came with 2025-03-26."""
        assert {block["type"] for block in self.result("2024-11-05")["content"]} == {"text"}

    @pytest.mark.parametrize(
        ("version", "absent"),
        [("2025-06-18", set()), ("2025-03-26", {"title"}), ("2024-11-05", {"title", "annotations"})],
    )
    def test_tool_descriptions_lose_what_a_revision_does_not_know(self, version: str, absent: set[str]) -> None:
        """Titles came with 2025-06-18, annotations with 2025-03-26."""
        tools = answer(give(connect(version), request(1, "tools/list")))["result"]["tools"]
        expected = {"name", "title", "description", "inputSchema", "annotations"} - absent
        assert all(tool.keys() == expected for tool in tools)


class TestSubscriptions:
    WANTED = {"toolsListChanged": True, "resourcesListChanged": True, "resourceSubscriptions": ["a", 5]}

    def listening(self) -> Connection:
        connection = connect(None, LISTENABLE)
        acknowledged = answer(give(connection, modern(3, "subscriptions/listen", {"notifications": self.WANTED})))
        assert acknowledged == {
            "jsonrpc": "2.0",
            "method": "notifications/subscriptions/acknowledged",
            "params": {
                "_meta": {META_SUBSCRIPTION: 3},
                "notifications": {"resourcesListChanged": True, "resourceSubscriptions": ["a"]},
            },
        }
        return connection

    def test_changes_carry_the_id_of_the_subscription(self) -> None:
        """Only changes that were requested and granted."""
        connection = self.listening()
        assert connection.list_changed("tools") == []
        (data,) = connection.list_changed("resources")
        assert orjson.loads(data)["params"] == {"_meta": {META_SUBSCRIPTION: 3}}
        assert connection.resource_updated("b") == []
        (data,) = connection.resource_updated("a")
        assert orjson.loads(data)["params"] == {"uri": "a", "_meta": {META_SUBSCRIPTION: 3}}

    def test_a_cancelled_subscription_is_silent(self) -> None:
        """Cancellation of a listen request ends its stream."""
        connection = self.listening()
        give(connection, {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 3}})
        assert connection.list_changed("resources") == []
        assert connection.end_listening() == []

    def test_the_server_ends_a_subscription_with_a_result(self) -> None:
        """Graceful closure."""
        (data,) = self.listening().end_listening()
        message = orjson.loads(data)
        assert message["id"] == 3
        assert message["result"]["resultType"] == "complete"
        assert message["result"]["_meta"][META_SUBSCRIPTION] == 3

    def test_a_server_without_changes_has_nothing_to_listen_to(self) -> None:
        """A method that is not announced does not exist."""
        message = modern(1, "subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        assert error(give(connect(), message))["code"] == -32601

    def test_subscriptions_are_limited(self) -> None:
        """Each one is state that lives as long as its connection."""
        connection = connect(None, LISTENABLE)
        codes = [
            answer(give(connection, modern(n, "subscriptions/listen", {"notifications": {}})))
            .get("error", {})
            .get("code")
            for n in range(20)
        ]
        assert codes.count(None) == 16

    def test_legacy_peers_receive_changes_after_a_handshake(self) -> None:
        """resources/subscribe of the initialize era."""
        connection = connect("2025-11-25", LISTENABLE)
        assert [orjson.loads(data) for data in connection.list_changed("resources")] == [
            {"jsonrpc": "2.0", "method": "notifications/resources/list_changed", "params": {}}
        ]
        assert answer(give(connection, request(1, "resources/subscribe", {"uri": "a"})))["result"] == {}
        assert len(connection.resource_updated("a")) == 1
        give(connection, request(2, "resources/unsubscribe", {"uri": "a"}))
        assert connection.resource_updated("a") == []


class TestPages:
    ITEMS = [{"n": number} for number in range(450)]

    def test_pages_cover_a_list_without_gap_or_repetition(self) -> None:
        """Pagination; a missing cursor ends the list."""
        found, params = [], {}
        for _ in range(3):
            page = paged(self.ITEMS, params, "items")
            found += page["items"]
            params = {"cursor": page["nextCursor"]} if "nextCursor" in page else {}
        assert found == self.ITEMS
        assert params == {}

    def test_an_empty_cursor_is_none(self) -> None:
        """Clients in typed languages send the empty text for a cursor they do not have."""
        assert paged(self.ITEMS, {"cursor": ""}, "items") == paged(self.ITEMS, {}, "items")

    @pytest.mark.parametrize("cursor", ["x", "-1", "450", "0", "9" * 50, 200, True, [], "²"])
    def test_cursors_that_were_never_given_out_are_invalid(self, cursor: object) -> None:
        """Also a position at which no page begins."""
        with pytest.raises(RpcError) as caught:
            paged(self.ITEMS, {"cursor": cursor}, "items")
        assert caught.value.code == -32602
