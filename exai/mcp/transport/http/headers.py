"""Checks the headers of Streamable HTTP against the body that they mirror.

Invariant: a request whose headers contradict its body is never carried out, because a proxy in front of this server
made its decisions from the headers.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from exai.mcp.core import versions
from exai.mcp.core.jsonrpc import INVALID_PARAMS, METHOD_NOT_FOUND, Json, Request, RpcError
from exai.mcp.core.protocol import ClientInfo

VERSION = "mcp-protocol-version"
METHOD = "mcp-method"
NAME = "mcp-name"

MAX_NAME_CHARS = 100

_NAMED = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "tasks/get": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}
_ENCODED_PREFIX, _ENCODED_SUFFIX = "=?base64?", "?="


def legacy_version(headers: Mapping[str, str], message: object) -> str | None:
    """Return the initialize-era revision in which to serve a request over HTTP, or None if the envelope decides.

    Raises `RpcError` if headers and body contradict each other or name a revision that is not served.
    """
    stated = headers.get(VERSION) or None
    envelope = _envelope_version(message)
    if isinstance(message, Request) and message.method == "initialize":
        if stated in versions.MODERN_VERSIONS:
            raise RpcError(METHOD_NOT_FOUND, f"Method not found: {stated} has no initialize")
        return None
    if envelope is not None:
        if isinstance(message, Request):
            _check_mirrors(headers, message, envelope)
        return None
    if stated is None:
        return versions.UNSTATED_HTTP_VERSION
    if stated in versions.LEGACY_VERSIONS:
        return stated
    if stated in versions.MODERN_VERSIONS:
        if isinstance(message, Request):
            raise RpcError(INVALID_PARAMS, f"Invalid params: {stated} needs _meta.{versions.META_VERSION}")
        return None
    facts = {"supported": [*versions.MODERN_VERSIONS, *versions.LEGACY_VERSIONS], "requested": stated[:64]}
    raise RpcError(versions.UNSUPPORTED_VERSION, "Unsupported protocol version", facts)


def agent_of(headers: Mapping[str, str]) -> ClientInfo:
    """Return the client that the headers name. In the initialize era a POST has no other description of its client."""
    return ClientInfo(headers.get("user-agent", "").partition("/")[0].strip()[:MAX_NAME_CHARS])


def _envelope_version(message: object) -> object:
    params: Json = getattr(message, "params", {})
    meta = params.get("_meta")
    return meta.get(versions.META_VERSION) if isinstance(meta, Mapping) else None


def _check_mirrors(headers: Mapping[str, str], message: Request, version: object) -> None:
    _check(headers, VERSION, version)
    _check(headers, METHOD, message.method)
    field = _NAMED.get(message.method)
    if field is not None and field in message.params:
        _check(headers, NAME, message.params[field], encoded=True)


def _check(headers: Mapping[str, str], name: str, wanted: object, *, encoded: bool = False) -> None:
    value = headers.get(name)
    if value is None:
        raise RpcError(versions.HEADER_MISMATCH, f"Header mismatch: the header {name} is required")
    found = _decoded(value.strip(" \t")) if encoded else value.strip(" \t")
    if found != wanted:
        raise RpcError(versions.HEADER_MISMATCH, f"Header mismatch: {name} does not match the body")


def _decoded(value: str) -> str | None:
    """Decode a header value in the transport's encoding for names that a header cannot hold; None if it is invalid."""
    if not (value.startswith(_ENCODED_PREFIX) and value.endswith(_ENCODED_SUFFIX)):
        return value
    try:
        return base64.b64decode(value[len(_ENCODED_PREFIX) : -len(_ENCODED_SUFFIX)], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
