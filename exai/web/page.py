"""The page at `GET /`: how to connect a client. It has no script and shows no data.

Invariant: the page consists of this text and the requested address, escaped; browsers load or run nothing else for
it.
"""

from __future__ import annotations

import base64
import hashlib
import html

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}"
    "pre{background:#8882;padding:.7rem;overflow-x:auto;border-radius:4px}h2{font-size:1.1rem;margin-top:1.6rem}"
    ":root{color-scheme:light dark}"
)
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>EXAI</title>
<style>{style}</style>
</head>
<body>
<h1>EXAI {version}</h1>
<p>This is a Model Context Protocol (MCP) server. It asks models and stores every conversation in Postgres.
Connect to it with an MCP client, not with a browser.{token_words}</p>

<h2>Streamable HTTP</h2>
<p>The address for most clients:</p>
<pre>{http}</pre>
<p>Claude Code:</p>
<pre>claude mcp add --transport http exai {http}{token_option}</pre>

<h2>WebSocket</h2>
<p>For Claude Code in <code>.mcp.json</code>, and for clients that speak MCP over a WebSocket:</p>
<pre>{{"mcpServers": {{"exai": {{"type": "ws", "url": "{ws}"{token_json}}}}}}}</pre>

<h2>Standard input and output</h2>
<p>For clients that start their servers, on a machine with a checkout of EXAI:</p>
<pre>{{"mcpServers": {{"exai": {{"command": "{program}", "args": ["connect", "--url", "{ws}"]{token_env}}}}}}}</pre>

<p>State: <a href="/health">/health</a>. Metrics: <a href="/metrics">/metrics</a>.</p>
</body>
</html>
"""


def page_route(version: str, *, is_guarded: bool) -> Route:
    """Return the route of GET /. With `is_guarded` the page shows where to put a token."""

    async def show(request: Request) -> Response:
        secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
        host = request.headers.get("host", "127.0.0.1")
        content = _PAGE.format(
            style=_STYLE,
            version=version,
            program="/path/to/exai/.venv/bin/exai",
            http=html.escape(f"{'https' if secure else 'http'}://{host}/mcp"),
            ws=html.escape(f"{'wss' if secure else 'ws'}://{host}/"),
            token_words=" Clients need a bearer token, which the operator of the server issues." if is_guarded else "",
            token_option=' --header "Authorization: Bearer TOKEN"' if is_guarded else "",
            token_json=', "headers": {"Authorization": "Bearer TOKEN"}' if is_guarded else "",
            token_env=', "env": {"EXAI_TOKEN": "TOKEN"}' if is_guarded else "",
        )
        return Response(content, media_type="text/html", headers=HEADERS)

    return Route("/", show, methods=["GET"])
