"""JSON-RPC 2.0 messages from bytes and back, without I/O.

Invariant: `parse` never raises and never recurses, and its work and memory are bounded by the named limits. It returns
either a message that obeys JSON-RPC or a `Malformed` with the error to answer, and with the id if one could be read,
so that no request stays without an answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import orjson

from exai.mcp.core.request_ids import find_id

RequestId: TypeAlias = str | int
EchoedId: TypeAlias = RequestId | orjson.Fragment
"""A request id, or one that JSON-RPC does not allow, kept as written so that the client can match the answer."""

Json: TypeAlias = Mapping[str, Any]

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603

MAX_DEPTH = 64
MAX_VALUES = 40_000
MAX_ID_CHARS = 256
MAX_METHOD_CHARS = 128
MAX_INTEGER = 2**63
MAX_EXACT_FLOAT = 2**53
MAX_TOKENS = 20_000
"""Strings and brackets that are skipped while searching a refused message for its id."""

_BOM = b"\xef\xbb\xbf"
_DEEP = re.compile(rb"[\[{]{1000}")
_LONG_INTEGER = re.compile(rb"[:\[,]\s*-?[0-9]{19,}\s*[,\]}]")


class RpcError(Exception):
    """An error that is sent as a JSON-RPC error; `data` is JSON for programs."""

    def __init__(self, code: int, message: str, data: Json | None = None) -> None:
        super().__init__(code, message, data)
        self.code, self.message, self.data = code, message, data

    def __str__(self) -> str:
        return self.message


class Fault(NamedTuple):
    """The content of an error that has been answered. Unlike the exception it references no frames."""

    code: int
    data: Json | None


@dataclass(slots=True)
class Request:
    """A message that must be answered.

    Not frozen, like every object made per call, although nothing modifies it: construction takes a quarter of the time
    of a frozen dataclass. A named tuple is slower, both to construct and to read.
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
    """An answer from the peer. The server sends no requests, so there is nothing it could belong to."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """A message of no valid kind. `id` is None if none could be read; the answer then has no id."""

    id: EchoedId | None
    error: RpcError


JsonRpcMessage: TypeAlias = Request | Notification | Response | Malformed


def parse(data: bytes) -> JsonRpcMessage:
    """Parse one message. The caller has limited the size of `data`."""
    if data[:3] == _BOM:
        data = data[3:]
    if len(data) > MAX_VALUES and _is_crowded(data):
        return Malformed(_id_in(data), _crowding(data))
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return _undecodable(data, str(error))
    if not isinstance(value, dict):
        what = "batches are not supported" if isinstance(value, list) else "not a JSON object"
        return Malformed(None, RpcError(INVALID_REQUEST, f"Invalid Request: {what}; send one object per message"))
    problem = _structure_problem(data, value)
    if problem is not None:
        found = _id_in(data)
        found = as_id(value.get("id")) if found is None else found
        return Malformed(found, RpcError(INVALID_REQUEST, f"Invalid Request: {problem}"))
    return _classify(data, value)


def request_id(value: object) -> TypeGuard[RequestId]:
    """Return whether `value` can be a request id: a short string or an integer (a bool is neither)."""
    return (type(value) is str and len(value) <= MAX_ID_CHARS) or type(value) is int


def as_id(value: object) -> RequestId | None:
    """Return an id or token in its normal form, or None if it is invalid. 7.0 becomes 7, as JavaScript has it."""
    if request_id(value):
        return value
    if type(value) is float and value.is_integer() and abs(value) < MAX_EXACT_FLOAT:
        return int(value)
    return None


def _id_in(data: bytes) -> EchoedId | None:
    """Return the id in the text of a refused message; a short id that JSON-RPC does not allow stays as written."""
    found = find_id(data, max_tokens=MAX_TOKENS)
    if found is None or found.value is None:
        return None
    kept = found.value if isinstance(found.value, str) else found.as_integer
    if request_id(kept) and not _has_surrogate(kept):
        return kept
    # Half of a surrogate pair can be echoed as its escape, but not encoded.
    return orjson.Fragment(found.raw) if len(found.raw) <= MAX_ID_CHARS and found.raw.isascii() else None


def _has_surrogate(key: RequestId) -> bool:
    return isinstance(key, str) and any("\ud800" <= character <= "\udfff" for character in key)


def encode_result(id: RequestId, result: Json) -> bytes:  # noqa: A002
    """Encode a response. Raises `orjson.JSONEncodeError` if the result holds a value that JSON cannot."""
    return orjson.dumps({"jsonrpc": "2.0", "id": id, "result": result})


def encode_error(id: EchoedId | None, error: RpcError) -> bytes:  # noqa: A002
    """Encode an error response. Without an id the member is omitted: the clients' schemas do not allow a null id."""
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.data is not None:
        body["data"] = error.data
    if id is None:
        return orjson.dumps({"jsonrpc": "2.0", "error": body})
    return orjson.dumps({"jsonrpc": "2.0", "id": id, "error": body})


def encode_notification(method: str, params: Json) -> bytes:
    """Encode a notification from the server."""
    return orjson.dumps({"jsonrpc": "2.0", "method": method, "params": params})


def _classify(data: bytes, value: dict[str, Any]) -> JsonRpcMessage:
    key, method, params = value.get("id"), value.get("method"), value.get("params")
    if value.get("jsonrpc") == "2.0" and type(method) is str and 0 < len(method) <= MAX_METHOD_CHARS:
        if not params and (params is None or type(params) is list):
            # Clients write null for absent params, and [] for empty ones.
            params = {}
        if type(params) is dict and request_id(key):
            return Request(key, method, params)
        if "id" not in value:
            return Notification(method, params if type(params) is dict else {})
        if type(params) is dict and (kept := as_id(key)) is not None:
            return Request(kept, method, params)
    if "method" not in value and ("result" in value or "error" in value):
        return Response()
    return _malformed(data, value)


def _malformed(data: bytes, value: dict[str, Any]) -> Malformed:
    key, method = as_id(value.get("id")), value.get("method")
    if value.get("jsonrpc") != "2.0":
        problem = 'jsonrpc must be "2.0"'
    elif type(method) is not str or not 0 < len(method) <= MAX_METHOD_CHARS:
        problem = "method must be a short string"
    elif key is None:
        problem = "id must be a string or an integer"
    else:
        return Malformed(key, RpcError(INVALID_PARAMS, "Invalid params: params must be an object"))
    return Malformed(_id_in(data) if key is None else key, RpcError(INVALID_REQUEST, f"Invalid Request: {problem}"))


def _undecodable(data: bytes, reason: str) -> Malformed:
    """Return the refusal of invalid JSON, with its id if it looks like a request. Lone surrogate escapes are common."""
    found = _id_in(data) if b'"method"' in data else None
    if "surrogate" in reason and "UTF-8" not in reason and found is not None:
        problem = "Invalid params: a string holds half of a surrogate pair; send whole characters"
        return Malformed(found, RpcError(INVALID_PARAMS, problem))
    what = "nested too deeply" if "depth" in reason else "not valid JSON"
    return Malformed(found, RpcError(PARSE_ERROR, f"Parse error: {what}"))


def _is_crowded(data: bytes) -> bool:
    """Return whether the text would take about a hundred times its size in memory if parsed."""
    if _structural(data) <= MAX_VALUES:
        return False
    skeleton = _skeleton(data)
    return skeleton is None or _structural(skeleton) > MAX_VALUES


def _crowding(data: bytes) -> RpcError:
    if _DEEP.search(data):
        return RpcError(PARSE_ERROR, "Parse error: nested too deeply")
    problem = f"Invalid Request: more than {MAX_VALUES} values in one message; send them in several"
    return RpcError(INVALID_REQUEST, problem)


def _structural(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _skeleton(data: bytes) -> bytes | None:
    """Return the text without its strings, or None if it has too many of them. String contents are never misread."""
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 4 * MAX_VALUES:
        return None
    return b"".join(bare.split(b'"')[::2])


def _structure_problem(data: bytes, value: dict[str, Any]) -> str | None:
    """Return a problem that the parser does not report: deep nesting, rounded integers or repeated keys."""
    keys = 0
    is_huge = False
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
                is_huge = True
    if len(containers) > MAX_DEPTH and is_deep(value):
        return f"nested more than {MAX_DEPTH} levels deep"
    if is_huge and ((bare := _skeleton(data)) is None or _LONG_INTEGER.search(bare)):
        # A value written as a float may have any size; an integer of that size would be stored with another value.
        return "an integer is outside the 64-bit range; send it as a string"
    return _repeated_keys(data, keys)


def is_deep(value: dict[str, Any] | list[Any]) -> bool:
    """Return whether objects and lists are nested more than `MAX_DEPTH` levels deep."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        members = (member for each in level for member in (each.values() if type(each) is dict else each))
        level = [member for member in members if type(member) is dict or type(member) is list]
        if not level:
            return False
    return True


def _repeated_keys(data: bytes, keys: int) -> str | None:
    """Count the colons outside strings: one per written key, so more colons than parsed keys mean a repetition."""
    if data.count(b":") == keys:
        return None
    skeleton = _skeleton(data)
    if skeleton is None or skeleton.count(b":") != keys:
        return "an object holds the same key twice"
    return None
