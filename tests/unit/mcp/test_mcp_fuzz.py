"""Arbitrary input to the core: it never raises, and every identifiable request gets one answer."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from exai.mcp.core.connection import Connection
from exai.mcp.core.jsonrpc import Json, JsonRpcMessage, Malformed, parse
from exai.mcp.core.protocol import Call, CallContext, Cancel, Feature, Ignore, Method, Send, Start, Surface
from exai.mcp.core.versions import META_CAPABILITIES, META_VERSION, TASKS
from tests.support.mcp_server import Tools
from tests.support.stateless import KNOWS_TASKS

PATIENT = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Slow generation on a busy machine is not what is tested here."""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
METHODS = st.sampled_from(
    [
        "initialize",
        "ping",
        "server/discover",
        "tools/list",
        "tools/call",
        "subscriptions/listen",
        "tasks/get",
        "resources/subscribe",
        "notifications/cancelled",
        "notifications/initialized",
        "no/such",
        "",
    ]
)
IDS = st.sampled_from([0, 1, 2, "0", "", -1]) | st.none() | st.booleans() | st.floats() | st.text(max_size=5)
META = st.fixed_dictionaries(
    {},
    optional={
        META_VERSION: st.sampled_from(["2026-07-28", "2025-11-25", "", 5, None]),
        META_CAPABILITIES: st.sampled_from([{}, KNOWS_TASKS, {"extensions": [TASKS]}, [], None]),
        "progressToken": st.sampled_from([0, "", "t", 1.5, None, True]),
    },
)
PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "_meta": META | JSON,
        "name": st.sampled_from(["echo", "slow", "nope", 5]),
        "arguments": JSON,
        "protocolVersion": st.sampled_from(["2024-11-05", "2025-11-25", "x", 1]),
        "capabilities": JSON,
        "clientInfo": JSON,
        "cursor": st.sampled_from(["", "1", 0, None]),
        "requestId": IDS,
        "uri": JSON,
        "notifications": JSON | st.just({"taskIds": ["a"]}),
        "taskId": JSON,
    },
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | st.sampled_from(["1.0", 2, None]),
        "id": IDS,
        "method": METHODS | JSON,
        "params": PARAMS | JSON,
        "result": JSON,
        "error": JSON,
    },
)
GOOD_REQUESTS = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "id": st.sampled_from([0, 1, 2, "0", "x"]), "method": METHODS.filter(bool)},
    optional={"params": PARAMS},
)


def encoded(message: object) -> bytes:
    return orjson.dumps(message, option=orjson.OPT_PASSTHROUGH_SUBCLASS)


async def _work(call: Call, context: CallContext) -> Json:
    raise AssertionError("nothing is called here")


def new_connection() -> Connection:
    tools = Tools().registry
    extension = Feature({"extensions": {TASKS: {}}}, [Method("tasks/get", work=_work, extension=TASKS)])
    surface = Surface("exai-test", "1", (tools.feature(), extension))
    surface.capabilities["tools"] = {"listChanged": True}
    return Connection(surface, max_in_flight=3, reply_max_bytes=100_000)


@PATIENT
@given(st.binary(max_size=200))
def test_no_bytes_raise(data: bytes) -> None:
    """The invariant of `parse`."""
    message: JsonRpcMessage = parse(data)
    new_connection().accept(message)


@PATIENT
@given(MESSAGES.map(encoded), st.data())
def test_no_damage_to_a_message_raises(data: bytes, damage: st.DataObject) -> None:
    """Bytes flipped, cut and repeated in the middle of something plausible."""
    start = damage.draw(st.integers(0, len(data)))
    end = damage.draw(st.integers(start, len(data)))
    new_connection().accept(parse(data[:start] + damage.draw(st.binary(max_size=5)) + data[end:]))


@PATIENT
@given(JSON)
def test_what_json_writes_is_read_back(value: Any) -> None:
    """Punctuation in texts and keys never looks like structure; only integers beyond 64 bits are refused."""
    data = encoded({"jsonrpc": "2.0", "id": 1, "method": "a", "params": {"value": value}})
    message = parse(data)
    if isinstance(message, Malformed):
        assert "64-bit" in message.error.message
    else:
        assert orjson.dumps(message.params["value"]) == orjson.dumps(orjson.loads(orjson.dumps(value)))


class OnePeer(RuleBasedStateMachine):
    """A long talk with one peer: each good request is answered once, unless it was cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = new_connection()
        self.running: dict[Any, Call] = {}

    @rule(message=MESSAGES)
    def send_anything(self, message: Any) -> None:
        self.note(self.connection.accept(parse(encoded(message))))

    @rule(message=GOOD_REQUESTS)
    def send_a_request(self, message: Any) -> None:
        busy = message["id"] in self.connection.in_flight or message["id"] in self.connection.listening
        action = self.connection.accept(parse(encoded(message)))
        self.note(action)
        if isinstance(action, Start):
            assert not busy
            assert action.call.id == message["id"]
            return
        assert isinstance(action, Send)
        answer = orjson.loads(action.data)
        if "id" in answer:
            assert answer["id"] == message["id"]
            assert ("result" in answer) != ("error" in answer)
            assert not (busy and "result" in answer)
        else:
            assert answer["method"] == "notifications/subscriptions/acknowledged"
            assert message["id"] in self.connection.listening

    @rule(key=st.sampled_from([0, 1, 2, "0", "x"]))
    def cancel(self, key: Any) -> None:
        message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": key}}
        self.note(self.connection.accept(parse(encoded(message))))

    @rule(result=JSON, choice=st.integers(0, 10))
    def finish_one(self, result: Any, choice: int) -> None:
        if not self.running:
            return
        call = list(self.running.values())[choice % len(self.running)]
        del self.running[call.id]
        assert self.connection.progress(call, 1, "x") is None or call.progress_token is not None
        answered = self.connection.complete(call, {"content": [], "structuredContent": {"value": result}})
        assert answered is not None
        assert orjson.loads(answered.data)["id"] == call.id
        assert self.connection.complete(call, {}) is None
        assert self.connection.progress(call, 2, "late") is None

    def note(self, action: object) -> None:
        assert isinstance(action, Send | Start | Cancel | Ignore)
        if isinstance(action, Start):
            self.running[action.call.id] = action.call
        elif isinstance(action, Cancel):
            call = self.running.pop(action.id)
            assert self.connection.complete(call, {}) is None

    @invariant()
    def counts_agree(self) -> None:
        assert self.connection.in_flight.keys() == self.running.keys()
        assert len(self.running) <= 3


TestOnePeer = OnePeer.TestCase
TestOnePeer.settings = settings(PATIENT, max_examples=40, stateful_step_count=30)
