"""Instructions for connecting clients, which the page shows with and without scripts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

PROGRAM: Final = "/path/to/exai/.venv/bin/exai"


@dataclass(frozen=True, slots=True)
class Snippet:
    """A line to copy, for the client or transport that `title` names."""

    title: str
    words: str
    code: str


def snippets_for(host: str, *, secure: bool, is_guarded: bool) -> list[Snippet]:
    """Return the ways to connect to the server, which the request names `host`, the most usual first."""
    http, websocket = f"{'https' if secure else 'http'}://{host}/mcp", f"{'wss' if secure else 'ws'}://{host}/"
    header = {"headers": {"Authorization": "Bearer TOKEN"}} if is_guarded else {}
    option = ' --header "Authorization: Bearer TOKEN"' if is_guarded else ""
    command: dict[str, Any] = {"command": PROGRAM, "args": ["connect", "--url", websocket]}
    if is_guarded:
        command["env"] = {"EXAI_TOKEN": "TOKEN"}
    return [
        Snippet(
            "Claude Code",
            "In the directory of your project, or with --scope user for all projects.",
            f"claude mcp add --transport http exai {http}{option}",
        ),
        Snippet(
            "Streamable HTTP",
            "For most MCP clients, in their file of servers.",
            _configured({"type": "http", "url": http, **header}),
        ),
        Snippet(
            "WebSocket",
            "For .mcp.json of Claude Code, and for clients that speak MCP over a WebSocket.",
            _configured({"type": "ws", "url": websocket, **header}),
        ),
        Snippet(
            "Standard input and output",
            "For clients that start their servers, on a machine with a checkout of EXAI.",
            _configured(command),
        ),
    ]


def _configured(server: dict[str, Any]) -> str:
    return json.dumps({"mcpServers": {"exai": server}})
