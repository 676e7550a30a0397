"""A client of the stateless era over HTTP, for tests that speak to several daemons without a session on any."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from exai.mcp.core.versions import META_CAPABILITIES, META_VERSION, MODERN, TASKS

KNOWS_TASKS: Mapping[str, Any] = {"extensions": {TASKS: {}}}
LIMIT_S = 20.0
_NAMED = ("name", "uri", "taskId")


class Stateless:
    """A client of one server; `capabilities` is sent with each request."""

    def __init__(self, http: httpx.AsyncClient, capabilities: Mapping[str, Any]) -> None:
        self._http, self._capabilities = http, capabilities
        self._keys = itertools.count(1)

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the whole answer: a message with `result` or `error`."""
        meta = {META_VERSION: MODERN, META_CAPABILITIES: self._capabilities}
        body = {"jsonrpc": "2.0", "id": next(self._keys), "method": method, "params": {**params, "_meta": meta}}
        headers = {"mcp-protocol-version": MODERN, "mcp-method": method, "accept": "application/json"}
        if (name := next((each for each in _NAMED if each in params), None)) is not None:
            headers["mcp-name"] = params[name]
        found = (await self._http.post("/mcp", json=body, headers=headers)).json()
        assert isinstance(found, dict)
        return found

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool; returns the result, which may be a task's handle."""
        return await self._result("tools/call", name=tool, arguments=arguments)

    async def task(self, task_id: str) -> dict[str, Any]:
        """Return a task as it is now."""
        return await self._result("tasks/get", taskId=task_id)

    async def cancel(self, task_id: str) -> dict[str, Any]:
        """Have a task end; returns the acknowledgement."""
        return await self._result("tasks/cancel", taskId=task_id)

    async def _result(self, method: str, **params: Any) -> dict[str, Any]:
        found = await self.ask(method, **params)
        assert "result" in found, found
        result = found["result"]
        assert isinstance(result, dict)
        return result


@asynccontextmanager
async def stateless(
    url: str, *, capabilities: Mapping[str, Any] = KNOWS_TASKS, token: str | None = None
) -> AsyncIterator[Stateless]:
    """A client of the server at `url`."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S, headers=headers, verify=False) as http:
        yield Stateless(http, capabilities)
