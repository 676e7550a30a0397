"""Run one stored request as a call of the MCP server, with the owner, quotas, limits and tools of every other call.

Invariant: the call has the idempotency key `request:ID`, unless the client gave its own, so that a request that is
claimed twice is one turn with one answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from exai.db.requests import ClaimedRequest, RequestOutcome
from exai.errors import DeadlineExceeded
from exai.mcp.core import versions
from exai.mcp.core.jsonrpc import parse
from exai.mcp.features.tools import IDEMPOTENCY_KEY, OF_META
from exai.mcp.identity import Admitted
from exai.mcp.server import McpServer

CLIENT: Final = "exai-requests"
"""The client's name, by which the server knows how long the call may take and how it is answered."""

CALL_ID: Final = 1


class Postponed(Exception):
    """The call could not be made now: the daemon stops, or a limit or a dependency refused it."""

    def __init__(self, after_s: float, *, counts: bool) -> None:
        super().__init__(after_s, counts)
        self.after_s, self.counts = after_s, counts


@dataclass(slots=True)
class GrowingAnswer:
    """What there is of an answer while its call runs."""

    progress: str | None = None
    content: str = ""
    version: int = 0


async def run_request(server: McpServer, request: ClaimedRequest, growing: GrowingAnswer) -> RequestOutcome:
    """Return the outcome of the request's call; `growing` has what is known before. Raises `Postponed`."""
    if request.left_s is not None and request.left_s <= 0:
        return _too_late(request)
    try:
        async with asyncio.timeout(request.left_s):
            return await _call(server, request, growing)
    except TimeoutError:
        return _too_late(request)


async def _call(server: McpServer, request: ClaimedRequest, growing: GrowingAnswer) -> RequestOutcome:
    session = server.open_session(Admitted(request.owner), peer=CLIENT)
    try:
        data = _message(request)
        # Parsed as what comes from a socket is, so that the same limits hold.
        await session.receive(parse(data), len(data))
        while (message := await session.outbox.get()) is not None:
            answer = orjson.loads(message.data)
            if "method" not in answer:
                return _outcome(answer)
            _grow(growing, answer["params"])
    finally:
        await session.end()
    raise Postponed(0.0, counts=False)


def _message(request: ClaimedRequest) -> bytes:
    meta = {
        versions.META_VERSION: versions.MODERN,
        versions.META_CAPABILITIES: {},
        versions.META_CLIENT: {"name": CLIENT, "version": "1"},
        versions.META_PARTS: True,
        "progressToken": request.id,
        OF_META[IDEMPOTENCY_KEY]: f"request:{request.id}",
    }
    params = {"name": request.tool, "arguments": orjson.Fragment(request.arguments), "_meta": meta}
    return orjson.dumps({"jsonrpc": "2.0", "id": CALL_ID, "method": "tools/call", "params": params})


def _grow(growing: GrowingAnswer, params: Mapping[str, Any]) -> None:
    part = params.get("_meta", {}).get(versions.META_PART, {})
    growing.progress = params.get("message", growing.progress)
    growing.content += part.get("content", "")
    growing.version += 1


def _outcome(answer: Mapping[str, Any]) -> RequestOutcome:
    """Return the outcome that a JSON-RPC answer means. Raises `Postponed` for a refusal that may not come again."""
    if "error" in answer:
        error = answer["error"]
        facts = error.get("data") or {}
        if error["code"] == versions.SHUTTING_DOWN:
            raise Postponed(0.0, counts=False)
        if error["code"] == versions.OVERLOADED:
            raise Postponed(float(facts.get("retry_after_s") or 1.0), counts=False)
        return _failure({"code": str(error["code"]), **facts, "message": error["message"]})
    result = answer["result"]
    structured = result.get("structuredContent") or {}
    text = "\n".join(block["text"] for block in result["content"] if block["type"] == "text")
    if result.get("isError"):
        return _failure(structured.get("error") or {"message": text}, text)
    return RequestOutcome("done", text, structured, continuation_id=structured.get("continuation_id"))


def _too_late(request: ClaimedRequest) -> RequestOutcome:
    return _failure({**DeadlineExceeded(request.tool, max(request.left_s or 0.0, 0.0)).report(), "retryable": False})


def _failure(facts: Mapping[str, Any], text: str | None = None) -> RequestOutcome:
    name = facts.get("continuation_id")
    return RequestOutcome("failed", text, error=facts, continuation_id=name if isinstance(name, str) else None)
