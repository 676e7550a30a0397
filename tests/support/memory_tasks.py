"""Tasks whose state is in memory, for tests of the protocol and its doors; EXAI's own are turns in Postgres."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable
from dataclasses import replace
from datetime import UTC, datetime

from exai.errors import ExaiError
from exai.mcp.core.jsonrpc import INTERNAL_ERROR, RpcError
from exai.mcp.core.protocol import BegunWork, CallContext, ClientInfo
from exai.mcp.features.results import call_result, error_result
from exai.mcp.features.tasks import Task
from exai.models import Owner
from tests.support.outputs import Fixed


class MemoryTasks:
    """A `TaskStore`; `calls` counts its calls."""

    def __init__(self) -> None:
        self.tasks: dict[tuple[Owner, str], Task] = {}
        self.calls: list[str] = []

    async def get(self, owner: Owner, task_id: str, _client: ClientInfo) -> Task | None:
        self.calls.append("get")
        return self.tasks.get((owner, task_id))

    async def cancel(self, owner: Owner, task_id: str) -> bool:
        self.calls.append("cancel")
        return (owner, task_id) in self.tasks

    async def do(self, context: CallContext, work: Awaitable[Fixed]) -> Fixed:
        """Do the work of one call under an id of its own and remember what became of it."""
        now = datetime.now(UTC)
        key = (context.owner, str(uuid.uuid4()))
        self.tasks[key] = Task(key[1], "working", now, now)
        context.begun(BegunWork(key[1], now, {"turn": key[1]}))
        try:
            result = await work
        except ExaiError as error:
            self._end(key, status="completed", result=error_result(error))
            raise
        except asyncio.CancelledError as error:
            self._end(key, status="cancelled", message=" ".join(error.args))
            raise
        except RpcError as error:
            self._end(key, status="failed", error=error)
            raise
        except Exception:
            self._end(key, status="failed", error=RpcError(INTERNAL_ERROR, "internal error"))
            raise
        self._end(key, status="completed", result=call_result(result))
        return result

    def _end(self, key: tuple[Owner, str], **changes: object) -> None:
        self.tasks[key] = replace(self.tasks[key], updated_at=datetime.now(UTC), **changes)
