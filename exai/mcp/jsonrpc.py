"""JSON-RPC 2.0 messages from bytes and back, without I/O.

Invariant: `parse` never raises, never recurses, and its work and memory are bounded by the named limits; whatever it
returns is either a message that obeys JSON-RPC or a `Malformed` that says what to answer, with the id where one
could be read, so that no request stays without an answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import orjson

RequestId: TypeAlias = str | int
Json: TypeAlias = Mapping[str, Any]

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603

MAX_DEPTH = 64
MAX_VALUES = 200_000
MAX_ID_CHARS = 256
MAX_METHOD_CHARS = 128
MAX_INTEGER = 2**63
MAX_SURROGATE_CHECK_BYTES = 1_048_576

_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)


class RpcError(Exception):
    """An error that goes out as a JSON-RPC error; `data` is JSON a program can act on."""

    def __init__(self, code: int, message: str, data: Json | None = None) -> None:
        super().__init__(code, message, data)
        self.code, self.message, self.data = code, message, data

    def __str__(self) -> str:
        return self.message


@dataclass(slots=True)
class Request:
    """A message that must be answered.

    Not frozen, as is nothing that is made for each call, though nobody changes it: it costs a quarter to make, and less
    than a named tuple to make and to read.
    """

    id: RequestId
    method: str
    params: Json


@dataclass(frozen=True, slots=True)
class Notification:
    """A message that must not be answered."""

    method: str
    params: Json


@dataclass(frozen=True, slots=True)
class Response:
    """An answer from the peer, which was asked nothing."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """Something that is none of the others. `id` is None where none could be read; the answer then has no id."""

    id: RequestId | None
    error: RpcError


Message: TypeAlias = Request | Notification | Response | Malformed


def parse(data: bytes) -> Message:
    """Read one message; the size of `data` was limited by whoever read it."""
    problem = _crowding(data) if len(data) > MAX_VALUES else None
    if problem is not None:
        return Malformed(None, RpcError(INVALID_REQUEST, problem))
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return _undecodable(data, error)
    if not isinstance(value, dict):
        what = "batches are not supported" if isinstance(value, list) else "not a JSON object"
        return Malformed(None, RpcError(INVALID_REQUEST, f"Invalid Request: {what}; send one object per message"))
    problem = _structure_problem(data, value)
    if problem is not None:
        return Malformed(_readable_id(value), RpcError(INVALID_REQUEST, f"Invalid Request: {problem}"))
    return _classify(value)


def request_id(value: object) -> TypeGuard[RequestId]:
    """Tell whether this can be the id of a request: a short string or an integer (a bool is neither)."""
    return (type(value) is str and len(value) <= MAX_ID_CHARS) or type(value) is int


def encode_result(id: RequestId, result: Json) -> bytes:  # noqa: A002
    """Raise `orjson.JSONEncodeError` when the result holds something JSON cannot."""
    return orjson.dumps({"jsonrpc": "2.0", "id": id, "result": result})


def encode_error(id: RequestId | None, error: RpcError) -> bytes:  # noqa: A002
    """Without an id the member is left out: the clients' schemas know no null id."""
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.data is not None:
        body["data"] = error.data
    if id is None:
        return orjson.dumps({"jsonrpc": "2.0", "error": body})
    return orjson.dumps({"jsonrpc": "2.0", "id": id, "error": body})


def encode_notification(method: str, params: Json) -> bytes:
    """A message of our own that expects no answer."""
    return orjson.dumps({"jsonrpc": "2.0", "method": method, "params": params})


def _classify(value: dict[str, Any]) -> Message:
    key, method, params = value.get("id"), value.get("method"), value.get("params", {})
    if value.get("jsonrpc") == "2.0" and type(method) is str and 0 < len(method) <= MAX_METHOD_CHARS:
        if type(params) is dict and request_id(key):
            return Request(key, method, params)
        if "id" not in value:
            return Notification(method, params if type(params) is dict else {})
    if "method" not in value and ("result" in value or "error" in value):
        return Response()
    return _malformed(value)


def _malformed(value: dict[str, Any]) -> Malformed:
    key, method = _readable_id(value), value.get("method")
    if value.get("jsonrpc") != "2.0":
        problem = 'jsonrpc must be "2.0"'
    elif type(method) is not str or not 0 < len(method) <= MAX_METHOD_CHARS:
        problem = "method must be a short string"
    elif key is None:
        problem = "id must be a string or an integer"
    else:
        return Malformed(key, RpcError(INVALID_PARAMS, "Invalid params: params must be an object"))
    return Malformed(key, RpcError(INVALID_REQUEST, f"Invalid Request: {problem}"))


def _readable_id(value: dict[str, Any]) -> RequestId | None:
    found = value.get("id")
    return found if request_id(found) else None


def _undecodable(data: bytes, error: orjson.JSONDecodeError) -> Malformed:
    """JSON.stringify writes half an emoji as a lone surrogate escape: such a client gets an answer with its id."""
    if "surrogate" in str(error) and len(data) <= MAX_SURROGATE_CHECK_BYTES and b"\\u" in data:
        try:
            value = orjson.loads(_ESCAPE.sub(_without_surrogate, data))
        except orjson.JSONDecodeError:
            value = None
        if isinstance(value, dict) and (found := _readable_id(value)) is not None:
            problem = "Invalid params: a string holds half of a surrogate pair; send whole characters"
            return Malformed(found, RpcError(INVALID_PARAMS, problem))
    reason = "nested too deeply" if "depth" in str(error) else "not valid JSON"
    return Malformed(None, RpcError(PARSE_ERROR, f"Parse error: {reason}"))


def _without_surrogate(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return b"\\ufffd" if code is not None and 0xD800 <= int(code, 16) <= 0xDFFF else match[0]


def _crowding(data: bytes) -> str | None:
    """Refuse before parsing what would become a hundred times its size in memory."""
    if _structural(data) <= MAX_VALUES:
        return None
    skeleton = _skeleton(data)
    if skeleton is None or _structural(skeleton) > MAX_VALUES:
        return f"Invalid Request: more than {MAX_VALUES} values in one message"
    return None


def _structural(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _skeleton(data: bytes) -> bytes | None:
    """Return the text without its strings, or None when there are too many; string contents cannot confuse it."""
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 4 * MAX_VALUES:
        return None
    return b"".join(bare.split(b'"')[::2])


def _structure_problem(data: bytes, value: dict[str, Any]) -> str | None:
    """Find what the parser lets pass: deep nesting, integers it had to round, and repeated keys."""
    keys = 0
    containers: list[Any] = [value]
    for container in containers:  # which grows meanwhile
        members = container
        if type(container) is dict:
            keys += len(container)
            members = container.values()
        for member in members:
            kind = type(member)
            if kind is str:
                continue
            if kind is dict or kind is list:
                containers.append(member)
            elif kind is float and (member >= MAX_INTEGER or member <= -MAX_INTEGER):
                return "a number is outside the 64-bit range"
    if len(containers) > MAX_DEPTH and _is_deep(value):
        return f"nested more than {MAX_DEPTH} levels deep"
    return _repeated_keys(data, keys)


def _is_deep(value: dict[str, Any]) -> bool:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        members = (member for each in level for member in (each.values() if type(each) is dict else each))
        level = [member for member in members if type(member) is dict or type(member) is list]
        if not level:
            return False
    return True


def _repeated_keys(data: bytes, keys: int) -> str | None:
    """Count colons outside strings: one for each key written, so more of them than keys read means a repetition."""
    if data.count(b":") == keys:
        return None
    skeleton = _skeleton(data)
    if skeleton is None or skeleton.count(b":") != keys:
        return "an object holds the same key twice"
    return None
