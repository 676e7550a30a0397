"""The page at `GET /` and its files: static, the same for everyone, without any data.

Invariant: what the page shows it reads as an MCP client over `POST /mcp`, with the token of the person who looks at it.
A browser runs only the scripts that are served here, and no text is ever parsed as a script or as HTML with scripts.
"""

from __future__ import annotations

import asyncio
import hashlib
import html
import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from exai.web.assets import Asset, Assets, read_assets
from exai.web.snippets import Snippet, snippets_for

FILES: Final = "/page"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)
"""Images of other sites are refused, because their addresses could transmit texts of a conversation."""

HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_PLACE = re.compile(r"\{(\w+)\}")

REVALIDATED: Final = "no-cache"
ON_DEMAND: Final = frozenset({"supabase.js"})
KEPT: Final = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class AuthFacts:
    """Supabase Auth at `url`, for the page to sign in at; `key` is the project's publishable one."""

    url: str
    key: str
    providers: tuple[str, ...]


def page_routes(version: str, *, is_guarded: bool, auth: AuthFacts | None = None) -> list[Route]:
    """Return GET / and the routes of the page's files. With `is_guarded` the page asks for a token, or for `auth`."""
    own = _headers(auth)

    async def show(request: Request) -> Response:
        assets = await asyncio.to_thread(read_assets)
        content = _page(assets, request, {"version": version, "guarded": is_guarded, "auth": auth})
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {**own, "Cache-Control": REVALIDATED, "ETag": tag, "Vary": "Host"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type="text/html", headers=headers)

    async def show_file(request: Request) -> Response:
        assets = await asyncio.to_thread(read_assets)
        asset = assets.files.get(request.path_params["name"])
        if asset is None or request.path_params["digest"] != assets.digest:
            return PlainTextResponse("no such file; load the page again\n", 404, {"Cache-Control": "no-store"})
        return _file(asset, request, own)

    return [
        Route("/", show, methods=["GET"]),
        Route(FILES + "/{digest}/{name}", show_file, methods=["GET"]),
    ]


def _headers(auth: AuthFacts | None) -> dict[str, str]:
    """Return the headers of every answer; the page may connect to Supabase Auth where it signs in there."""
    if auth is None:
        return HEADERS
    parts = urlsplit(auth.url)
    policy = POLICY.replace("connect-src 'self'", f"connect-src 'self' {parts.scheme}://{parts.netloc}")
    return {**HEADERS, "Content-Security-Policy": policy}


def _page(assets: Assets, request: Request, facts: dict[str, Any]) -> bytes:
    is_guarded, version = facts["guarded"], facts["version"]
    secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
    snippets = snippets_for(request.headers.get("host", "127.0.0.1"), secure=secure, is_guarded=is_guarded)
    base = f"{FILES}/{assets.digest}"
    preloads = "\n".join(
        f'<link rel="modulepreload" href="{base}/{name}">' for name in assets.modules if name not in ON_DEMAND
    )
    values = {
        "base": base,
        "version": html.escape(version),
        "preloads": preloads,
        # Nothing in it can end the element that holds it.
        "facts": orjson.dumps({**facts, "snippets": snippets}).decode().replace("<", "\\u003c"),
        "snippets": "\n".join(map(_plain, snippets)),
        "token_words": " They need a bearer token, which the operator of the server issues." if is_guarded else "",
    }
    # In one pass, because a value may look like a place.
    return _PLACE.sub(lambda place: values[place[1]], assets.template).encode()


def _plain(snippet: Snippet) -> str:
    title, words, code = (html.escape(each) for each in (snippet.title, snippet.words, snippet.code))
    return f"<h2>{title}</h2>\n<p>{words}</p>\n<pre>{code}</pre>"


def _file(asset: Asset, request: Request, own: dict[str, str]) -> Response:
    headers = {**own, "Cache-Control": KEPT, "Vary": "Accept-Encoding"}
    if asset.compressed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        return Response(asset.compressed, media_type=asset.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(asset.content, media_type=asset.media_type, headers=headers)
