"""Lists of 10,000 sessions of Google's ADK: pages of one statement each, and no more memory than the result needs."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

pytest.importorskip("google.adk", reason="Google's ADK is not installed; `make test-adapters` runs this")

from exai.adapters.adk import ExaiSessionService
from exai.adapters.histories import list_all
from exai.adapters.names import conversation_name, name_prefix
from exai.models import LOCAL_OWNER
from exai.store import Store
from exai.validation import MAX_LIST
from tests.support.many import insert_conversations

SESSIONS, USERS = 10_000, 100
APP = "many"
PAGE_MEMORY_BYTES = 4 * 1_048_576
"""Of the conversations of a page, several times; all 10,000 of them take more."""


class CountedStore:
    """A store that counts its calls, each of which is one statement, as `exai.store.Conversations` promises."""

    def __init__(self, store: Store) -> None:
        self._conversations, self.files, self.chat = store.conversations, store.files, store.chat
        self.calls: dict[str, int] = {}

    @property
    def conversations(self) -> Any:
        return self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        self.calls[name] = self.calls.get(name, 0) + 1
        return getattr(self._conversations, name)


@pytest.fixture(scope="module")
def stored(settings: Mapping[str, str]) -> dict[str, bool]:
    return {}


@pytest.fixture
async def counted(settings: Mapping[str, str], stored: dict[str, bool], store: Store) -> AsyncIterator[CountedStore]:
    """The store of the process and of the daemon, with the sessions."""
    if not stored:
        stored["sessions"] = True
        await insert_conversations(settings["EXAI_DATABASE__URL"], sessions())
    yield CountedStore(store)


def sessions() -> list[tuple[str, dict[str, Any]]]:
    """Sessions of 100 users in turn, and the states of a user and of the app."""
    made: list[tuple[str, dict[str, Any]]] = []
    for number in range(SESSIONS):
        ids = [APP, f"u{number % USERS}", f"s{number}"]
        key = f'["{APP}", "{ids[1]}", "{ids[2]}"]'
        facts = {"adk_key": key, "adk_updated": float(number), "state:n": f'["n", {number}]'}
        made.append((conversation_name("adk", *ids), facts))
    made.append((conversation_name("adk-users", APP, "u1"), {"adk_key": f'["{APP}", "u1"]', "state:a": '["a", 1]'}))
    made.append((conversation_name("adk-apps", APP), {"adk_key": f'["{APP}"]', "state:b": '["b", 2]'}))
    return made


async def test_all_sessions_are_listed_a_page_a_statement(counted: CountedStore) -> None:
    """The order is that of their last events; each has the states of its user and its app."""
    listed = (await ExaiSessionService(counted).list_sessions(app_name=APP)).sessions
    assert [each.id for each in listed] == [f"s{number}" for number in range(SESSIONS)]
    assert all((each.state.get("n"), each.state["app:b"]) == (n, 2) for n, each in enumerate(listed))
    assert {each.user_id for each in listed if "user:a" in each.state} == {"u1"}
    assert counted.calls == {"list": SESSIONS // MAX_LIST + 1, "read": 1}


async def test_sessions_of_one_user_are_listed_in_one_statement(counted: CountedStore) -> None:
    """The names of their conversations begin alike, and no others are read."""
    listed = (await ExaiSessionService(counted).list_sessions(app_name=APP, user_id="u1")).sessions
    assert [each.id for each in listed] == [f"s{number}" for number in range(1, SESSIONS, USERS)]
    assert counted.calls == {"list": 1, "read": 2}


async def test_pages_are_not_kept(counted: CountedStore) -> None:
    """A reader of one conversation after the other has a page in memory."""
    names = [each.continuation_id async for each in list_all(counted, LOCAL_OWNER, name_prefix("adk", APP, "u2"))]
    assert len(names) == SESSIONS // USERS
    gc.collect()
    tracemalloc.start()
    try:
        number = 0
        async for _ in list_all(counted, LOCAL_OWNER, name_prefix("adk", APP)):
            number += 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert number == SESSIONS
    assert peak < PAGE_MEMORY_BYTES
