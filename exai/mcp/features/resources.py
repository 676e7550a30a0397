"""Resources: data that clients read by URI, and the notifications when it changes.

Invariant: an unknown URI is an error that names it, never an empty result.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from exai.errors import MAX_SHOWN_CHARS, bounded
from exai.mcp.core import versions
from exai.mcp.core.jsonrpc import INVALID_PARAMS, Json, RpcError
from exai.mcp.core.protocol import READ_TERMS, Call, CallContext, Feature, Method
from exai.mcp.core.subscriptions import MAX_URI_CHARS
from exai.mcp.core.versions import Cacheable
from exai.mcp.features.paging import paged

LIST_CACHE = Cacheable(300_000, "public")
LIVE_LIST_CACHE = Cacheable(0, "private")
READ_CACHE = Cacheable(0, "private")
LEGACY_NOT_FOUND = -32002


@dataclass(frozen=True, slots=True)
class ResourceContents:
    """The contents of one URI: text, or bytes that are sent as base64."""

    uri: str
    body: str | bytes
    mime_type: str = "text/plain"


@dataclass(frozen=True, slots=True)
class ResourceSpec:
    """One resource, or a family of resources if its `uri` contains `{...}`."""

    uri: str
    name: str
    title: str = ""
    description: str = ""
    mime_type: str = "text/plain"


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of dynamically listed resources, and the cursor of the next page."""

    resources: Sequence[ResourceSpec]
    next_cursor: str | None = None


Lister = Callable[[str | None, CallContext], Awaitable[Listing]]
"""Maps a cursor to a page of the caller's resources; raises `RequestError` for a cursor it did not issue."""

ResourceReader = Callable[[str, CallContext], Awaitable[Sequence[ResourceContents]]]
"""Returns the contents of a URI; empty for an unknown one."""


class ResourceRegistry:
    """The resources of one server: `listing` returns them page by page, `templates` describe families of URIs.

    `announces` enables subscriptions and the notification that the list has changed.
    """

    def __init__(
        self,
        templates: Iterable[ResourceSpec],
        read: ResourceReader,
        listing: Lister,
        *,
        announces: bool = False,
    ) -> None:
        templates = tuple(templates)
        self._templates = [_description(spec, "uriTemplate") for spec in templates]
        self._schemes = frozenset(spec.uri.partition("://")[0] for spec in templates)
        self._read = read
        self._listing = listing
        self._announces = announces

    def feature(self) -> Feature:
        """Return the methods and the capability of these resources."""
        capability = {"subscribe": True, "listChanged": True} if self._announces else {}
        return Feature(
            {"resources": capability},
            (
                Method("resources/list", work=self._list, cacheable=LIVE_LIST_CACHE, terms=READ_TERMS),
                Method("resources/templates/list", answer=self._list_templates, cacheable=LIST_CACHE),
                Method("resources/read", work=self._answer, cacheable=READ_CACHE, terms=READ_TERMS),
            ),
            self._schemes,
        )

    async def _list(self, call: Call, context: CallContext) -> Json:
        cursor = call.params.get("cursor")
        if cursor is not None and not isinstance(cursor, str):
            raise RpcError(INVALID_PARAMS, "Invalid params: unknown cursor; begin again without one")
        listing = await self._listing(cursor or None, context)
        page: dict[str, Any] = {"resources": [_description(spec, "uri") for spec in listing.resources]}
        return page if listing.next_cursor is None else {**page, "nextCursor": listing.next_cursor}

    def _list_templates(self, call: Call) -> Json:
        return paged(self._templates, call.params, "resourceTemplates")

    async def _answer(self, call: Call, context: CallContext) -> Json:
        uri = call.params.get("uri")
        if not isinstance(uri, str) or len(uri) > MAX_URI_CHARS:
            raise RpcError(INVALID_PARAMS, "Invalid params: uri must be the address of a resource")
        found = await self._read(uri, context)
        if not found:
            code = INVALID_PARAMS if call.version in versions.MODERN_VERSIONS else LEGACY_NOT_FOUND
            raise RpcError(code, f"Resource not found: {bounded(uri, MAX_SHOWN_CHARS)}", {"uri": uri})
        return {"contents": [_contents(each) for each in found]}


def _description(spec: ResourceSpec, address: str) -> Json:
    optional = {"title": spec.title, "description": spec.description}
    described: dict[str, Any] = {address: spec.uri, "name": spec.name, "mimeType": spec.mime_type}
    return described | {name: text for name, text in optional.items() if text}


def _contents(contents: ResourceContents) -> Json:
    described = {"uri": contents.uri, "mimeType": contents.mime_type}
    if isinstance(contents.body, bytes):
        return {**described, "blob": base64.b64encode(contents.body).decode()}
    return {**described, "text": contents.body}
