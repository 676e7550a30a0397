"""Checkpoints of agents at a daemon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exai.client.connection import DaemonCall, StoreConnection
from exai.db.checkpoints.records import ChannelHistory, CheckpointPage, CheckpointRecord, TaskWrite, ThreadState
from exai.db.checkpoints.repository import MAX_CHECKPOINTS
from exai.models import Owner


class CheckpointsClient:
    """Checkpoints at a daemon; see `exai.store.protocols.Checkpoints`.

    What one call stores has to fit into one request. A call whose outcome was lost is made again: what it has stored is
    found by its ids.
    """

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection

    async def put(self, owner: Owner, checkpoint: CheckpointRecord, *, ttl_s: float | None = None) -> ThreadState:
        """Store a checkpoint with the values of its channels' new versions."""
        key = f"{checkpoint.thread_id} {checkpoint.checkpoint_id}"
        state: ThreadState = await self._write("put", owner, key, checkpoint=checkpoint, ttl_s=ttl_s)
        return state

    async def put_writes(
        self,
        owner: Owner,
        thread_id: str,
        checkpoint_id: str,
        writes: Sequence[TaskWrite],
        *,
        namespace: str = "",
        replaces: bool = False,
        ttl_s: float | None = None,
    ) -> ThreadState | None:
        """Store what one task has written after a checkpoint."""
        given = {"thread_id": thread_id, "checkpoint_id": checkpoint_id, "writes": writes, "namespace": namespace}
        key = f"{thread_id} {checkpoint_id}"
        state: ThreadState | None = await self._write("put_writes", owner, key, **given, replaces=replaces, ttl_s=ttl_s)
        return state

    async def get(
        self,
        owner: Owner,
        thread_id: str,
        *,
        namespace: str = "",
        checkpoint_id: str | None = None,
        extends: bool = False,
    ) -> CheckpointRecord | None:
        """Return a checkpoint, the newest without an id."""
        place = {"thread_id": thread_id, "namespace": namespace, "checkpoint_id": checkpoint_id}
        found: CheckpointRecord | None = await self._ask("get", owner, **place, extends=extends)
        return found

    async def list(
        self,
        owner: Owner,
        *,
        thread_id: str | None = None,
        namespace: str | None = None,
        checkpoint_id: str | None = None,
        facts: Mapping[str, Any] | None = None,
        before: str | None = None,
        limit: int = MAX_CHECKPOINTS,
        cursor: str | None = None,
    ) -> CheckpointPage:
        """List checkpoints in pages, newest first."""
        place = {"thread_id": thread_id, "namespace": namespace, "checkpoint_id": checkpoint_id}
        only = {"facts": facts, "before": before, "limit": limit, "cursor": cursor}
        page: CheckpointPage = await self._ask("list", owner, **place, **only)
        return page

    async def ancestry(
        self, owner: Owner, thread_id: str, checkpoint_id: str, channels: Sequence[str], *, namespace: str = ""
    ) -> tuple[ChannelHistory, ...]:
        """Return what the ancestors of a checkpoint have written to channels, since the nearest value."""
        given = {"thread_id": thread_id, "checkpoint_id": checkpoint_id, "channels": channels, "namespace": namespace}
        histories: tuple[ChannelHistory, ...] = await self._ask("ancestry", owner, **given)
        return histories

    async def prune(
        self,
        owner: Owner,
        thread_ids: Sequence[str] = (),
        *,
        keeps_newest: bool = False,
        run_ids: Sequence[str] | None = None,
    ) -> int:
        """Remove checkpoints of threads or of runs."""
        key = "prune"
        given = {"thread_ids": thread_ids, "keeps_newest": keeps_newest, "run_ids": run_ids}
        number: int = await self._write("prune", owner, key, **given)
        return number

    async def copy(self, owner: Owner, source: str, target: str) -> ThreadState | None:
        """Copy all checkpoints of a thread into another one."""
        state: ThreadState | None = await self._write("copy", owner, f"{source} {target}", source=source, target=target)
        return state

    async def _ask(self, method: str, owner: Owner, **parameters: Any) -> Any:
        return await self._connection.send(DaemonCall(f"checkpoints.{method}", owner, {"owner": owner, **parameters}))

    async def _write(self, method: str, owner: Owner, key: str, /, **parameters: Any) -> Any:
        given = {"owner": owner, **parameters}
        return await self._connection.send(DaemonCall(f"checkpoints.{method}", owner, given, is_write=True, key=key))
