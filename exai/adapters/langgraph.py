"""The checkpointer of LangGraph: `builder.compile(checkpointer=ExaiSaver())`.

Values of channels are the bytes of the saver's serializer, each version of a channel stored once. Checkpoints are no
conversations: other clients do not see them; `exai.adapters.langchain.ExaiMirror` mirrors the messages of an agent.

Invariant: a checkpoint is stored together with its new values, and a write that has returned is seen by every reader.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import orjson
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
)

from exai.adapters.histories import completed
from exai.adapters.stores import StoreLoop, StoreSource
from exai.client import BlockingStore
from exai.client.connection import TokenSource
from exai.client.store import DEFAULT_URL
from exai.db.checkpoints.records import EMPTY, ChannelValue, CheckpointRecord, TaskWrite
from exai.db.checkpoints.repository import MAX_CHECKPOINTS
from exai.encryption.envelope import MEMBER
from exai.errors import InvalidArgument
from exai.models import LOCAL_OWNER, Owner
from exai.store import Store

DELTA: Final = "counters_since_delta_snapshot"
"""The field of a checkpoint's metadata that names the channels which are rebuilt from writes."""

FACT_BYTES: Final = 8_192
"""Largest value of the metadata, as JSON, by which a list can be filtered."""

NUL_SHOWN: Final = "\ufffd"
"""Stands for U+0000, which Postgres cannot store, in what lists are filtered by; the metadata keep it."""

R = TypeVar("R")
OfConfig = Callable[[Mapping[str, Any]], R]


class ExaiSaver(BaseCheckpointSaver[str]):
    """A checkpointer that stores in EXAI.

    `store` is an open store, one of `exai.client.blocking`, or the address of a daemon, which is connected to at the
    first call. `owner` is that of the threads, or a function that returns it from the configuration of the run. `ttl_s`
    is the time after its last change at which a thread is gone, None: never, or a function as for `owner`; with
    `refresh_on_read` a read counts as a change. `serde` is LangGraph's serializer, by default its own.
    """

    def __init__(
        self,
        store: Store | BlockingStore | str = DEFAULT_URL,
        *,
        owner: str | OfConfig[str] = LOCAL_OWNER,
        token: TokenSource = None,
        ttl_s: float | OfConfig[float | None] | None = None,
        refresh_on_read: bool = False,
        serde: Any = None,
    ) -> None:
        super().__init__(serde=serde)
        self._blocking = store if isinstance(store, BlockingStore) else None
        self._source = StoreSource(DEFAULT_URL if isinstance(store, BlockingStore) else store, token)
        self._owner, self._ttl, self._refreshes = owner, ttl_s, refresh_on_read
        self._loop = StoreLoop(has_own=isinstance(store, str | BlockingStore))

    def of(self, owner: str) -> ExaiSaver:
        """Return a saver for the threads of an owner, with the same connections."""
        saver = copy.copy(self)
        saver._owner = owner
        return saver

    async def aget_tuple(self, config: Any) -> CheckpointTuple | None:
        """Return a checkpoint, the newest without an id: 1 round trip, 0 for the newest while it is cached."""
        place = _place(config)
        wanted = get_checkpoint_id(config)
        found: CheckpointRecord | None = await self._ask(
            "get",
            self._owner_of(config),
            place[0],
            namespace=place[1],
            checkpoint_id=None if wanted is None else str(wanted),
            extends=self._refreshes,
        )
        return None if found is None else self._tuple(found)

    async def alist(
        self,
        config: Any,
        *,
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - the framework's name
        before: Any = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Yield checkpoints, newest first, of a thread or of all threads of the owner, in pages.

        `filter` is contained in the metadata. It cannot have values above 8 KiB.
        """
        given = config["configurable"] if config else {}
        thread_id, wanted = given.get("thread_id"), given.get("checkpoint_id")
        left, cursor = limit, None
        while left is None or left > 0:
            page = await self._ask(
                "list",
                self._owner_of(config or {}),
                thread_id=None if thread_id is None else str(thread_id),
                namespace=given.get("checkpoint_ns"),
                checkpoint_id=wanted or None,
                facts=_wanted(filter),
                before=get_checkpoint_id(before) if before else None,
                limit=MAX_CHECKPOINTS if left is None else min(left, MAX_CHECKPOINTS),
                cursor=cursor,
            )
            for each in page.checkpoints:
                yield self._tuple(each)
            left = None if left is None else left - len(page.checkpoints)
            cursor = page.next_cursor
            if cursor is None:
                return

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Mapping[str, Any]) -> Any:
        """Store a checkpoint and the values of `new_versions`: 1 round trip."""
        thread_id, namespace = _place(config)
        values, versions = checkpoint["channel_values"], checkpoint["channel_versions"]
        new = tuple(self._value(name, version, values) for name, version in new_versions.items())
        # A value without a version would be lost; it stays in the checkpoint.
        rest = {name: value for name, value in values.items() if name not in versions and name not in new_versions}
        # The framework takes U+0000 out of texts.
        facts = {**get_checkpoint_metadata(config, metadata), **metadata}
        body_type, body = self.serde.dumps_typed({**checkpoint, "channel_values": rest})
        metadata_type, stored = self.serde.dumps_typed(facts)
        parent, run_id = get_checkpoint_id(config), facts.get("run_id")
        record = CheckpointRecord(
            thread_id=thread_id,
            checkpoint_id=checkpoint["id"],
            body_type=body_type,
            body=body,
            metadata_type=metadata_type,
            metadata=stored,
            namespace=namespace,
            parent_id=None if parent is None else str(parent),
            run_id=None if run_id is None else str(run_id),
            facts=facts_of(facts),
            versions={name: str(version) for name, version in versions.items()},
            delta_channels=tuple(facts.get(DELTA) or ()),
            values=new,
        )
        await completed(self._ask("put", self._owner_of(config), record, ttl_s=self._ttl_of(config)))
        return _config(thread_id, namespace, checkpoint["id"])

    async def aput_writes(
        self, config: Any, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task has written after a checkpoint: 1 round trip."""
        thread_id, namespace = _place(config)
        given: dict[int, TaskWrite] = {}
        for number, (channel, value) in enumerate(writes):
            place = WRITES_IDX_MAP.get(channel, number)
            type_, data = self.serde.dumps_typed(value)
            given[place] = TaskWrite(task_id, place, channel, type_, data, task_path)
        if given:
            await completed(
                self._ask(
                    "put_writes",
                    self._owner_of(config),
                    thread_id,
                    str(get_checkpoint_id(config)),
                    list(given.values()),
                    namespace=namespace,
                    replaces=all(channel in WRITES_IDX_MAP for channel, _ in writes),
                    ttl_s=self._ttl_of(config),
                )
            )

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete all checkpoints of a thread; its name is free at once."""
        await completed(self._ask("prune", self._owner_of(None), [str(thread_id)]))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints of runs, in all threads of the owner."""
        if run_ids:
            await completed(self._ask("prune", self._owner_of(None), run_ids=[str(each) for each in run_ids]))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints of a thread into one that has none, in one statement.

        Raises `exai.errors.Conflict` if the target has checkpoints that the source lacks.
        """
        await completed(self._ask("copy", self._owner_of(None), str(source_thread_id), str(target_thread_id)))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete all checkpoints of threads (`delete`), or all but the newest of each namespace (`keep_latest`).

        Of threads with a `DeltaChannel` the ancestors stay from which it is rebuilt.
        """
        if strategy not in ("keep_latest", "delete"):
            raise InvalidArgument("strategy", f"is {strategy!r}", "Use keep_latest or delete")
        names = [str(each) for each in thread_ids]
        if names:
            keeps = strategy == "keep_latest"
            await completed(self._ask("prune", self._owner_of(None), names, keeps_newest=keeps))

    async def aget_delta_channel_history(self, *, config: Any, channels: Sequence[str]) -> Mapping[str, Any]:
        """Return what the ancestors of a checkpoint have written to channels, since the nearest value: 1 round trip."""
        if not channels:
            return {}
        thread_id, namespace = _place(config)
        wanted = get_checkpoint_id(config)
        if not wanted:
            newest = await self.aget_tuple(config)
            if newest is None:
                return {name: {"writes": []} for name in channels}
            wanted = newest.checkpoint["id"]
        owner = self._owner_of(config)
        found = await self._ask("ancestry", owner, thread_id, str(wanted), list(channels), namespace=namespace)
        histories: dict[str, Any] = {}
        for each in found:
            histories[each.channel] = {"writes": [self._write(write) for write in each.writes]}
            if each.value is not None:
                histories[each.channel]["seed"] = self.serde.loads_typed((each.value.type, each.value.data))
        return histories

    def get_tuple(self, config: Any) -> CheckpointTuple | None:
        """Return a checkpoint, as `aget_tuple`."""
        return self._wait(self.aget_tuple(config))

    def list(
        self,
        config: Any,
        *,
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - the framework's name
        before: Any = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Yield checkpoints, as `alist`."""
        found = self.alist(config, filter=filter, before=before, limit=limit)
        while (each := self._wait(anext(found, None))) is not None:
            yield each

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Mapping[str, Any]) -> Any:
        """Store a checkpoint, as `aput`."""
        return self._wait(self.aput(config, checkpoint, metadata, new_versions))

    def put_writes(self, config: Any, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = "") -> None:
        """Store what a task has written, as `aput_writes`."""
        self._wait(self.aput_writes(config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        """Delete a thread, as `adelete_thread`."""
        self._wait(self.adelete_thread(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints of runs, as `adelete_for_runs`."""
        self._wait(self.adelete_for_runs(run_ids))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread, as `acopy_thread`."""
        self._wait(self.acopy_thread(source_thread_id, target_thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete checkpoints, as `aprune`."""
        self._wait(self.aprune(thread_ids, strategy=strategy))

    def get_delta_channel_history(self, *, config: Any, channels: Sequence[str]) -> Mapping[str, Any]:
        """Return what ancestors have written, as `aget_delta_channel_history`."""
        return self._wait(self.aget_delta_channel_history(config=config, channels=channels))

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return the next version of a channel: a number, and a random part, so that two branches do not share one."""
        del channel
        number = int(str(current).partition(".")[0]) + 1 if current is not None else 1
        return f"{number:032}.{random.randrange(10**16):016}"  # noqa: S311 - it only has to differ

    def close(self) -> None:
        """Close the connections of synchronous calls to a daemon; a store that was given stays open."""
        self._loop.close(self._source)

    async def aclose(self) -> None:
        """Close the connections of this event loop to a daemon; a store that was given stays open."""
        await self._source.close()

    async def _ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        if self._blocking is not None:
            work = partial(getattr(self._blocking.checkpoints, method), *arguments, **named)
            return await asyncio.to_thread(work)
        store = await self._source.open()
        return await getattr(store.checkpoints, method)(*arguments, **named)

    def _wait(self, work: Coroutine[Any, Any, R]) -> R:
        return self._loop.wait(work)

    def _owner_of(self, config: Mapping[str, Any] | None) -> Owner:
        if not callable(self._owner):
            return Owner(self._owner)
        if config is None:
            raise InvalidArgument("owner", "comes from a configuration, which this call has not", "Use saver.of(owner)")
        return Owner(self._owner(config))

    def _ttl_of(self, config: Mapping[str, Any]) -> float | None:
        return self._ttl(config) if callable(self._ttl) else self._ttl

    def _value(self, channel: str, version: Any, values: Mapping[str, Any]) -> ChannelValue:
        if channel not in values:
            return ChannelValue(channel, str(version), EMPTY, b"")
        type_, data = self.serde.dumps_typed(values[channel])
        return ChannelValue(channel, str(version), type_, data)

    def _write(self, write: TaskWrite) -> tuple[str, str, Any]:
        return write.task_id, write.channel, self.serde.loads_typed((write.type, write.data))

    def _tuple(self, found: CheckpointRecord) -> CheckpointTuple:
        checkpoint = self.serde.loads_typed((found.body_type, found.body))
        values = {
            each.channel: self.serde.loads_typed((each.type, each.data)) for each in found.values if each.type != EMPTY
        }
        parent = found.parent_id
        return CheckpointTuple(
            config=_config(found.thread_id, found.namespace, found.checkpoint_id),
            checkpoint={**checkpoint, "channel_values": {**checkpoint["channel_values"], **values}},
            metadata=self.serde.loads_typed((found.metadata_type, found.metadata)),
            parent_config=None if parent is None else _config(found.thread_id, found.namespace, parent),
            pending_writes=[self._write(each) for each in found.writes],
        )


def facts_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata by which lists are filtered: what JSON can hold, up to 8 KiB each."""
    facts = {}
    for name, value in metadata.items():
        try:
            text = orjson.dumps([name, value])
        except TypeError:
            continue
        if len(text) <= FACT_BYTES and name != MEMBER:
            shown_name, facts_value = _storable(orjson.loads(text))
            facts[shown_name] = facts_value
    return facts


def _wanted(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not given:
        return None
    facts = facts_of(given)
    if len(facts) < len(given):
        raise InvalidArgument("filter", "holds what is not JSON, or is longer than 8 KiB", "Filter by shorter values")
    return facts


def _storable(value: Any) -> Any:
    """Return JSON without U+0000; its depth is bounded, as a serializer has written it."""
    if isinstance(value, str):
        return value.replace("\0", NUL_SHOWN)
    if isinstance(value, list):
        return [_storable(each) for each in value]
    if isinstance(value, dict):
        return {_storable(name): _storable(each) for name, each in value.items()}
    return value


def _place(config: Mapping[str, Any]) -> tuple[str, str]:
    given = config["configurable"]
    if given.get("thread_id") is None:
        raise InvalidArgument(
            "thread_id", "is missing in the configuration of the run", 'Give {"configurable": {"thread_id": "..."}}'
        )
    return str(given["thread_id"]), given.get("checkpoint_ns") or ""


def _config(thread_id: str, namespace: str, checkpoint_id: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id}}
