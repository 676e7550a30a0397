"""The session store of the Claude Agent SDK: its own suite, and what that does not cover."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

pytest.importorskip("claude_agent_sdk", reason="the Claude Agent SDK is not installed; `make test-adapters` runs this")

from claude_agent_sdk.testing import run_session_store_conformance

from exai.adapters.claude_agent import ExaiSessionStore
from exai.conversations import AppendRequest
from exai.db.search import SearchQuery
from exai.models import LOCAL_OWNER, NewMessage
from exai.store import Store
from tests.adapters.quick_starts import run_quick_start

ENTRIES: list[Any] = [
    {
        "type": "user",
        "uuid": "u1",
        "timestamp": "2026-01-02T03:04:05.678Z",
        "message": {"role": "user", "content": "zebra?"},
    },
    {
        "type": "assistant",
        "uuid": "u2",
        "message": {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t", "name": "Read", "input": {"path": "a"}},
            ],
        },
    },
    {
        "type": "user",
        "uuid": "u3",
        "message": {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "stripes"}]}],
        },
    },
    {"type": "summary", "summary": "Zebras"},
    {"type": "x", "uuid": "u4\0\ud800", "odd": ["a\0", "\ud800", 2**70, 1.0, None], "message": 7, "timestamp": "never"},
]


def key_of(**more: str) -> dict[str, str]:
    return {"project_key": f"project {uuid.uuid4()}", "session_id": str(uuid.uuid4()), **more}


@pytest.fixture
def sessions(store: Store) -> ExaiSessionStore:
    return ExaiSessionStore(store)


class PrefixedProjects:
    """Keeps each contract of the suite apart, as it expects a new store for each."""

    def __init__(self, store: ExaiSessionStore) -> None:
        self._store, self._prefix = store, f"{uuid.uuid4()} "

    def _own(self, key: Any) -> Any:
        return {**key, "project_key": self._prefix + key["project_key"]}

    async def append(self, key: Any, entries: Any) -> None:
        await self._store.append(self._own(key), entries)

    async def load(self, key: Any) -> Any:
        return await self._store.load(self._own(key))

    async def list_sessions(self, project_key: str) -> Any:
        return await self._store.list_sessions(self._prefix + project_key)

    async def list_session_summaries(self, project_key: str) -> Any:
        return await self._store.list_session_summaries(self._prefix + project_key)

    async def delete(self, key: Any) -> None:
        await self._store.delete(self._own(key))

    async def list_subkeys(self, key: Any) -> Any:
        return await self._store.list_subkeys(self._own(key))


async def test_all_contracts_of_the_sdk_hold(sessions: ExaiSessionStore) -> None:
    """14 contracts; none of the optional methods is left out."""
    await run_session_store_conformance(lambda: PrefixedProjects(sessions))


async def test_an_entry_with_a_uuid_is_stored_once_and_one_without_each_time(sessions: ExaiSessionStore) -> None:
    key = key_of()
    await sessions.append(key, ENTRIES)
    await sessions.append(key, [ENTRIES[0], *ENTRIES[3:], {"type": "new", "uuid": "u9"}])
    assert await sessions.load(key) == [*ENTRIES, ENTRIES[3], {"type": "new", "uuid": "u9"}]


async def test_a_deleted_session_is_made_again_at_once_and_empty(sessions: ExaiSessionStore) -> None:
    key = key_of()
    subkey = {**key, "subpath": "subagents/agent-1"}
    for first, second in ((ENTRIES, ENTRIES[:2]), (ENTRIES[1:], ENTRIES[:1])):
        await sessions.append(key, first)
        await sessions.append(subkey, first[:1])
        assert await sessions.list_subkeys(key) == ["subagents/agent-1"]
        await sessions.delete(key)
        assert await sessions.load(key) is None
        assert await sessions.load(subkey) is None
        assert await sessions.list_sessions(key["project_key"]) == []
        await sessions.append(key, second)
        assert await sessions.load(key) == second
        await sessions.delete(key)


async def test_concurrent_appends_lose_nothing_and_each_is_one_block(store: Store) -> None:
    """Several processes have a store each; calls of one process keep their order."""
    key, stores = key_of(), [ExaiSessionStore(store) for _ in range(3)]
    batches = [
        [{"type": "x", "uuid": f"{who}.{at}.{n}", "customTitle": f"{who}"} for n in range(3)]
        for who in range(3)
        for at in range(4)
    ]
    await asyncio.gather(*(stores[place // 4].append(key, batch) for place, batch in enumerate(batches)))
    loaded = await stores[0].load(key)
    assert loaded is not None
    blocks = [loaded[at : at + 3] for at in range(0, len(loaded), 3)]
    assert sorted(blocks, key=str) == sorted(batches, key=str)
    for who in range(3):
        assert [each for each in blocks if each[0]["customTitle"] == str(who)] == batches[4 * who : 4 * who + 4]
    summaries = await stores[0].list_session_summaries(key["project_key"])
    assert [each["data"]["custom_title"] for each in summaries] == [loaded[-1]["customTitle"]]


async def test_a_cancelled_append_is_stored_or_not_begun(sessions: ExaiSessionStore) -> None:
    key = key_of()
    task = asyncio.create_task(sessions.append(key, ENTRIES))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await sessions.load(key) in (None, ENTRIES)


async def test_projects_and_paths_of_any_characters_are_separate(sessions: ExaiSessionStore) -> None:
    project = str(uuid.uuid4())
    keys = [
        {"project_key": f"{project}{end}", "session_id": session}
        for end in ("", "/a", "%2Fa", "\ud800", "\0", "A", "a", "x" * 700)
        for session in ("s", "s/t")
    ]
    for place, key in enumerate(keys):
        await sessions.append(key, [{"type": "x", "n": place}])
    for place, key in enumerate(keys):
        assert await sessions.load(key) == [{"type": "x", "n": place}]
        listed = await sessions.list_sessions(key["project_key"])
        assert sorted(each["session_id"] for each in listed) == ["s", "s/t"]


async def test_other_clients_read_and_search_a_transcript(store: Store, sessions: ExaiSessionStore) -> None:
    key = key_of()
    await sessions.append(key, ENTRIES)
    [conversation] = [
        each
        for each in (await store.conversations.list(LOCAL_OWNER)).conversations
        if each.continuation_id.endswith(key["session_id"])
    ]
    name = conversation.continuation_id
    page = await store.conversations.read(LOCAL_OWNER, name)
    assert [(each.role, each.kind, each.content) for each in page.messages[:4]] == [
        ("user", "message", "zebra?"),
        ("assistant", "message", 'I look.\nRead({"path":"a"})'),
        ("tool", "tool_result", "stripes"),
        ("system", "summary", "Zebras"),
    ]
    assert page.messages[0].created_at.isoformat() == "2026-01-02T03:04:05.678000+00:00"
    found = await store.conversations.search(SearchQuery(LOCAL_OWNER, "stripes", continuation_id=name))
    assert [hit.seq for hit in found.hits] == [3]
    # A message of another client is no entry.
    await store.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "more")], name))
    assert await sessions.load(key) == ENTRIES


async def test_a_store_at_an_address_needs_one_line(address: str) -> None:
    sessions, key = ExaiSessionStore(address), key_of()
    await sessions.append(key, ENTRIES)
    assert await sessions.load(key) == ENTRIES
    await sessions.close()


async def test_the_quick_start_gives_the_sdk_the_transcripts(address: str) -> None:
    names = await run_quick_start("claude", address)
    store, key = names["options"].session_store, key_of()
    await store.append(key, ENTRIES)
    assert await store.load(key) == ENTRIES
    assert [each["session_id"] for each in await store.list_sessions(key["project_key"])] == [key["session_id"]]
    await store.close()
