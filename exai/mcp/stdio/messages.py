"""Classifies the lines from a client of the bridge, and makes the bridge's own answers; without I/O.

Invariant: a refusal carries the id exactly as the client wrote it if one can be found, because the client waits for
an answer with that spelling until its timeout.
"""

from __future__ import annotations

import orjson

from exai.mcp.core.jsonrpc import PARSE_ERROR, JsonRpcMessage, Malformed, RequestId, RpcError, encode_error, parse
from exai.mcp.core.request_ids import FoundId, find_id
from exai.mcp.core.versions import OVERLOADED
from exai.mcp.stdio.pipes import InputLine, OverlongLine


def classify(line: InputLine) -> tuple[JsonRpcMessage, bytes, bytes | None]:
    """Return a line's message, the bytes to forward, and the id as the client wrote it for a refusal.

    Clients may write an integer as 7.0 and compare ids as numbers, so such an id is forwarded as an integer.
    """
    if isinstance(line, OverlongLine):
        found = find_id(line.head, line.tail)
        error = RpcError(OVERLOADED, too_large(line.size_bytes, None))
        return Malformed(None, error), b"", _raw_id(None, found)
    message = parse(line)
    if not isinstance(message, Malformed):
        return message, line, None
    found = find_id(line)
    if found is not None and found.as_integer is not None and type(found.value) is float:
        line = line[: found.start] + str(found.as_integer).encode() + line[found.end :]
        message = parse(line)
    if isinstance(message, Malformed):
        # Invalid JSON is often not meant as a message, such as the line of a log.
        is_message = message.error.code != PARSE_ERROR or b'"method"' in line
        key = None if isinstance(message.id, orjson.Fragment) else message.id
        return message, line, _raw_id(key, found if is_message else None)
    return message, line, None


def _raw_id(key: RequestId | None, found: FoundId | None) -> bytes | None:
    """Return an id as written, so that every client matches it; None if there is no usable id."""
    if found is not None and found.value is not None and (key is None or key == found.value):
        return found.raw
    return None if key is None else orjson.dumps(key)


def refusal_of(raw_id: bytes | None, error: RpcError) -> bytes:
    """Return the error answer to an invalid request, with the id that was found in it."""
    body = orjson.dumps({"jsonrpc": "2.0", "error": {"code": error.code, "message": str(error)}})
    return body if raw_id is None else body[:-1] + b',"id":' + raw_id + b"}"


def error_of(key: RequestId, code: int, problem: str) -> bytes:
    """Return an error as the answer to a request."""
    return encode_error(key, RpcError(code, problem))


def too_large(size_bytes: int, limit_bytes: int | None) -> str:
    """Return the text for an oversized message, without the limit if the daemon has not stated it."""
    limit = "larger than the daemon takes" if limit_bytes is None else f"and the daemon takes {limit_bytes:,}"
    return f"the message has {size_bytes:,} bytes, {limit} (EXAI_SERVER__MESSAGE_MAX_BYTES); send it in smaller parts"
