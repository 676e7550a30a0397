"""Differences between the protocol's revisions: names on the wire, and the form of results.

Invariant: handlers return one form; what a revision adds or does not support is added or removed only in
this module. Revisions are ISO dates, so comparing them as text orders them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import orjson

from exai.mcp.core.jsonrpc import Json, RpcError

MODERN = "2026-07-28"
MODERN_VERSIONS = (MODERN,)
LEGACY_VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
LATEST_LEGACY = LEGACY_VERSIONS[0]
UNSTATED_HTTP_VERSION = "2025-03-26"
"""The revision of an HTTP request that names none: the last revision without the version header."""

META_VERSION = "io.modelcontextprotocol/protocolVersion"
META_CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
META_CLIENT = "io.modelcontextprotocol/clientInfo"
META_SERVER = "io.modelcontextprotocol/serverInfo"
META_SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
META_PARTS = "exai/parts"
"""True in the `_meta` of a request with a progress token: the client takes parts of the answer before its end."""

META_PART = "exai/part"
"""A part of an answer, in the `_meta` of a progress notification."""


MESSAGE_MAX_HEADER = "exai-message-max-bytes"
"""Header in the answer to an upgrade: the largest message that the daemon accepts, for the bridge to observe."""

TASKS = "io.modelcontextprotocol/tasks"
"""The extension for calls that outlast their request; see `exai.mcp.features.tasks`."""

HEADER_MISMATCH = -32020
MISSING_CAPABILITY = -32021
UNSUPPORTED_VERSION = -32022
OVERLOADED = -31001
SHUTTING_DOWN = -31002
TOKEN_EXPIRED = -31003
"""The last three, like -31004 of `exai.mcp.stdio.bridge`, are EXAI's own, outside the ranges of JSON-RPC and MCP."""

MAX_DECLARED = 32
MAX_DECLARED_CHARS = 128

REMOVED_METHODS = frozenset({"ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"})
"""Methods of the initialize era that 2026-07-28 removed."""

_TITLES_SINCE = "2025-06-18"
_ICONS_SINCE = "2025-11-25"
_ANNOTATIONS_SINCE = "2025-03-26"
_REPEATED_MAX_CHARS = 9_500
_LISTS = ("tools", "prompts", "resources", "resourceTemplates")


@dataclass(frozen=True, slots=True)
class Cacheable:
    """How long a client may cache a result, and whether the cache may be shared."""

    ttl_ms: int
    scope: Literal["public", "private"]


def shaped(result: Json, version: str, cacheable: Cacheable | None, server_info: Json) -> dict[str, Any]:
    """Return `result` in the form of the revision `version`; the argument is not changed."""
    if version in MODERN_VERSIONS:
        return _modern(result, cacheable, server_info)
    shape = dict(result)
    shape.pop("resultType", None)
    return _downgraded(shape, version) if version < LATEST_LEGACY else shape


def described(info: Json, version: str) -> dict[str, Any]:
    """Return an implementation's description (name, version, title...) in the form of a revision."""
    return _without(info, _unknown_fields(version) | ({"description"} if version < _ICONS_SINCE else set()))


def declares(version: str, capabilities: Json, extension: str) -> bool:
    """Return whether the request declares an extension, which is possible only in the stateless era."""
    extensions = capabilities.get("extensions") if version in MODERN_VERSIONS else None
    return isinstance(extensions, Mapping) and isinstance(extensions.get(extension), Mapping)


def declared(capabilities: Json) -> Json:
    """Return the names of a client's capabilities and extensions without their values.

    They are kept for the lifetime of the connection, and the values may be of any size.
    """
    extensions = capabilities.get("extensions")
    kept: dict[str, Any] = {name: {} for name in islice(capabilities, MAX_DECLARED) if len(name) <= MAX_DECLARED_CHARS}
    if isinstance(extensions, Mapping):
        kept["extensions"] = {
            name: {}
            for name in islice((each for each, value in extensions.items() if isinstance(value, Mapping)), MAX_DECLARED)
            if len(name) <= MAX_DECLARED_CHARS
        }
        if isinstance(extensions.get(TASKS), Mapping):
            kept["extensions"][TASKS] = {}
    return kept


def require_extension(capabilities: Json, extension: str) -> None:
    """Raise the `RpcError` for a client that did not declare an extension but uses it."""
    if not declares(MODERN, capabilities, extension):
        facts: Json = {"requiredCapabilities": {"extensions": {extension: {}}}}
        raise RpcError(MISSING_CAPABILITY, f"Missing required client capability: {extension}", facts)


def without_extensions(capabilities: Json) -> Json:
    """Return a server's capabilities in the form of the initialize era."""
    return {name: value for name, value in capabilities.items() if name != "extensions"}


def _modern(result: Json, cacheable: Cacheable | None, server_info: Json) -> dict[str, Any]:
    shape: dict[str, Any] = {"resultType": "complete", **result}
    if cacheable is not None:
        shape.setdefault("ttlMs", cacheable.ttl_ms)
        shape.setdefault("cacheScope", cacheable.scope)
    shape["_meta"] = {META_SERVER: server_info, **result.get("_meta", {})}
    return shape


def _downgraded(result: dict[str, Any], version: str) -> dict[str, Any]:
    unknown = _unknown_fields(version)
    for name in _LISTS:
        if name in result:
            result[name] = [_without(item, unknown) for item in result[name]]
    if "content" in result:
        result["content"] = _blocks(result["content"], version)
    if version < _TITLES_SINCE and "structuredContent" in result:
        # These clients read only the content, so it holds the whole answer. One that would be longer than they show
        # together with its text, which is complete by itself, is not repeated.
        whole, content = orjson.dumps(result.pop("structuredContent")).decode(), result.get("content", [])
        if not content or len(whole) + sum(len(block.get("text", "")) for block in content) <= _REPEATED_MAX_CHARS:
            result["content"] = [*content, {"type": "text", "text": whole}]
    if "messages" in result:
        result["messages"] = [
            {**message, "content": _block(message["content"], version)} for message in result["messages"]
        ]
    return result


def _unknown_fields(version: str) -> set[str]:
    unknown: set[str] = set()
    if version < _ICONS_SINCE:
        unknown |= {"icons"}
    if version < _TITLES_SINCE:
        unknown |= {"title", "outputSchema", "_meta"}
    if version < _ANNOTATIONS_SINCE:
        unknown |= {"annotations"}
    return unknown


def _without(item: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in names}


def _blocks(content: list[Any], version: str) -> list[Any]:
    return [_block(block, version) for block in content]


def _block(block: Any, version: str) -> Any:
    for kind, since, words in _NEWER_BLOCKS:
        if version < since and block.get("type") == kind:
            return {"type": "text", "text": words(block)}
    return block


def _link_words(block: Json) -> str:
    return f"{block.get('name', 'resource')}: {block.get('uri', '')}"


def _audio_words(block: Json) -> str:
    return f"audio ({block.get('mimeType', 'unknown type')}), which this protocol revision cannot carry"


_NEWER_BLOCKS: tuple[tuple[str, str, Callable[[Json], str]], ...] = (
    ("resource_link", _TITLES_SINCE, _link_words),
    ("audio", _ANNOTATIONS_SINCE, _audio_words),
)
