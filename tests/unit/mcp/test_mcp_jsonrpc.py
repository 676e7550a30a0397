"""Parsing of bytes: a message, or a refusal with the id if it could be read."""

from __future__ import annotations

import time

import orjson
import pytest

from exai.mcp.core.jsonrpc import (
    MAX_DEPTH,
    MAX_VALUES,
    Malformed,
    Notification,
    Request,
    Response,
    RpcError,
    encode_error,
    parse,
)


def refused(data: bytes) -> tuple[int, int | str | None]:
    message = parse(data)
    assert isinstance(message, Malformed), message
    return message.error.code, message.id


@pytest.mark.parametrize("key", [0, 1, -5, 2**53, "", "a", "0"])
def test_requests_keep_ids_of_any_allowed_kind(key: int | str) -> None:
    """JSON-RPC 2.0, 4: an id is a string or a number; 0 and the empty text are as good as others."""
    message = parse(orjson.dumps({"jsonrpc": "2.0", "id": key, "method": "ping"}))
    assert message == Request(key, "ping", {})


def test_message_without_id_is_a_notification() -> None:
    """JSON-RPC 2.0, 4.1."""
    assert parse(b'{"jsonrpc":"2.0","method":"a","params":{"b":1}}') == Notification("a", {"b": 1})


@pytest.mark.parametrize("data", [b'{"jsonrpc":"2.0","id":1,"result":{}}', b'{"jsonrpc":"2.0","id":1,"error":{}}'])
def test_answers_from_the_peer_are_recognised(data: bytes) -> None:
    """They are ignored, not refused: this server asks nothing."""
    assert parse(data) == Response()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b"nonsense", -32700),
        (b'{"a":NaN}', -32700),
        (b'{"a":Infinity}', -32700),
        (b"\xff\xfe", -32700),
        (b'{"id":1,"a":1e999}', -32700),
        (b'{"id":1,"a":' + b"9" * 5000 + b"}", -32700),
        (b"[" * 100_000 + b"]" * 100_000, -32700),
        (b"[]", -32600),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', -32600),
        (b"1", -32600),
        (b"null", -32600),
        (b'"text"', -32600),
        (b"{}", -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":[],"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":"' + b"x" * 300 + b'","method":"ping"}', -32600),
    ],
)
def test_unreadable_messages_are_refused_without_an_id(data: bytes, code: int) -> None:
    """JSON-RPC 2.0, 5.1; batches exist in no revision served here."""
    assert refused(data) == (code, None)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b'{"id":7,"method":"ping"}', -32600),
        (b'{"jsonrpc":"1.0","id":7,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":7,"method":5}', -32600),
        (b'{"jsonrpc":"2.0","id":7,"method":""}', -32600),
        (b'{"jsonrpc":"2.0","id":7,"method":"' + b"m" * 200 + b'"}', -32600),
        (b'{"jsonrpc":"2.0","id":7,"method":"a","params":[1]}', -32602),
        (b'{"jsonrpc":"2.0","id":7,"method":"a","params":{"b":NaN}}', -32700),
        (b'{"params":{"id":1,"b":"\\"id\\":2"},"jsonrpc":"2.0","method":"a" "id":7}', -32700),
        (b'\xef\xbb\xbf{"jsonrpc":"2.0","id":7,"method":""}', -32600),
        (b'{"jsonrpc":"2.0","id":7.0,"method":""}', -32600),
        (b'{"jsonrpc":"2.0","id":7,"method":"a","params":[' + b"0," * MAX_VALUES + b"0]}", -32600),
        (b'{"method":"a","params":[' + b"[]," * 1_000_000 + b'0],"jsonrpc":"2.0","id":7}', -32600),
        (b'{"method":"a","params":{"id":8,"x":[' + b"{}," * 100_000 + b'0]},"id":7,"jsonrpc":"2.0"}', -32600),
        (b'{"jsonrpc":"2.0","id":7,"method":"a","params":{"b":"' + b"x" * 2_000_000 + b'\\ud83d"}}', -32602),
        (b'{"params":{"b":"' + b"\\ude00 " * 300_000 + b'"},"jsonrpc":"2.0","method":"a","id":7}', -32602),
        (b'{"jsonrpc":"2.0","id":7,"method":"a","params":{"b":1,"b":2}}', -32600),
        (b'{"jsonrpc":"2.0","id":7,"method":"a","params":{"b":1,"\\u0062":"x:y"}}', -32600),
        (b'{"jsonrpc":"2.0","id":7,"method":"a","params":{"b":99999999999999999999999}}', -32600),
        (b'{"jsonrpc":"2.0","id":7,"method":"a","params":{"b":"\\ud83d"}}', -32602),
        (b'{"jsonrpc":"2.0","id":7,"method":"a","params":' + b'{"b":' * 70 + b"1" + b"}" * 70 + b"}", -32600),
    ],
)
def test_wrong_messages_with_a_readable_id_are_answered_with_it(data: bytes, code: int) -> None:
    """The answer has the id 7, for which the client waits."""
    assert refused(data) == (code, 7)


def test_nesting_up_to_the_limit_passes() -> None:
    """The limit is on depth, not on braces in texts."""
    inner = b'{"b":' * (MAX_DEPTH - 2) + b'"{[{["' + b"}" * (MAX_DEPTH - 2)
    assert isinstance(parse(b'{"jsonrpc":"2.0","id":1,"method":"a","params":' + inner + b"}"), Request)


@pytest.mark.parametrize("text", ['a:b,c:{"', "\\", '\\"', "\\\\:", 'say \\"x\\": "y": [', "\n\t:", "é:😀"])
def test_punctuation_inside_strings_confuses_nothing(text: str) -> None:
    """Repeated keys are found by counting colons outside strings."""
    params = {"text": text, text: [text, {text: 1}]}
    message = parse(orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": "a", "params": params}))
    assert message == Request(1, "a", params)


def test_a_long_text_full_of_punctuation_is_one_value() -> None:
    """Prompts hold source code; only what becomes objects in memory counts."""
    text = '{"a": [1, 2, 3]}, ' * (MAX_VALUES // 2)
    message = parse(orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": "a", "params": {"text": text}}))
    assert isinstance(message, Request)


@pytest.mark.parametrize("item", [b"[]", b"{}", b'""', b"1"])
def test_millions_of_tiny_values_are_refused_before_they_become_objects(item: bytes) -> None:
    """8 MiB of brackets would be 200 MB of lists."""
    data = b'{"jsonrpc":"2.0","id":1,"method":"a","params":{"x":[' + b",".join([item] * 2_000_000) + b"]}}"
    assert refused(data)[0] == -32600


def test_hostile_nesting_costs_little_processor_time() -> None:
    """Under 50 ms for each, measured in the processor's time, which other work on the machine does not change."""
    started = time.process_time()
    parse(b"[" * 4_000_000)
    parse(b'{"a":' * 1_000_000)
    assert time.process_time() - started < 0.5


def test_errors_without_an_id_leave_the_member_out() -> None:
    """MCP's schema knows no null id."""
    assert orjson.loads(encode_error(None, RpcError(-32600, "no"))) == {
        "jsonrpc": "2.0",
        "error": {"code": -32600, "message": "no"},
    }


@pytest.mark.parametrize("written", [b"1180591620717411303424", b"-1180591620717411303424", b"7.5", b"1e300"])
def test_ids_that_no_request_may_have_are_echoed_as_they_were_written(written: bytes) -> None:
    """A client that counts beyond 64 bits, or in fractions, looks for its own text in the answer."""
    message = parse(b'{"jsonrpc":"2.0","method":"ping","id":' + written + b"}")
    assert isinstance(message, Malformed)
    assert b'"id":' + written + b"," in encode_error(message.id, message.error)


@pytest.mark.parametrize("written", [b"7.0", b"7e0", b"7"])
def test_integral_ids_are_integers_however_they_are_written(written: bytes) -> None:
    """Lua and JavaScript know one kind of number only."""
    message = parse(b'{"jsonrpc":"2.0","id":' + written + b',"method":"ping"}')
    assert message == Request(7, "ping", {})
    assert type(message.id) is int  # type: ignore[union-attr]


@pytest.mark.parametrize("params", [b"null", b"[]", b"{}"])
def test_absent_params_may_be_written(params: bytes) -> None:
    assert parse(b'{"jsonrpc":"2.0","id":7,"method":"a","params":' + params + b"}") == Request(7, "a", {})


def test_a_byte_order_mark_is_no_part_of_a_message() -> None:
    assert parse(b'\xef\xbb\xbf{"jsonrpc":"2.0","id":7,"method":"a"}') == Request(7, "a", {})


@pytest.mark.parametrize("number", [b"1e300", b"-1.5e200", b"1E19", b"12345678901234567890.5"])
def test_large_floats_pass_and_long_integers_do_not(number: bytes) -> None:
    """A float is stored as it is; an integer beyond 64 bits would become another one."""
    text = b'{"jsonrpc":"2.0","id":7,"method":"a","params":{"x":[0,%s],"t":"[12345678901234567890]"}}'
    assert isinstance(parse(text % number), Request)
    assert refused(text % b"12345678901234567890123")[0] == -32600


def test_id_with_half_of_a_surrogate_pair_is_echoed_as_its_escape() -> None:
    """It is a string that JSON can write and UTF-8 cannot; as raw bytes it is no JSON at all."""
    for raw, echoed in ((b'"\\ud800"', b'"\\ud800"'), (b'"\xed\xa0\x80"', None)):
        message = parse(b'{"jsonrpc":"2.0","id":' + raw + b',"method":"ping"}')
        assert isinstance(message, Malformed)
        answer = encode_error(message.id, message.error)
        assert (b'"id":' in answer) == (echoed is not None)
        assert echoed is None or b'"id":' + echoed in answer
