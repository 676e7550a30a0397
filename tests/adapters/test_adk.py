"""The session service of Google's ADK: the contracts of its services, restated, and what EXAI adds to them."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import pytest

pytest.importorskip("google.adk", reason="Google's ADK is not installed; `make test-adapters` runs this")

from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events.event import Event
from google.adk.events.event_actions import EventActions
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai import types

from exai.adapters.adk import ExaiSessionService, StaleSessionError
from exai.db.search import SearchQuery
from exai.models import LOCAL_OWNER
from exai.store import Store
from tests.adapters.quick_starts import run_quick_start


@pytest.fixture
def service(store: Store) -> ExaiSessionService:
    return ExaiSessionService(store)


@pytest.fixture
def app() -> str:
    return f"app {uuid.uuid4()}"


def said(text: str = "hello", author: str = "user", at: float | None = None, **delta: Any) -> Event:
    content = types.Content(role=author, parts=[types.Part(text=text)])
    actions = EventActions(state_delta={key.replace("_", ":", 1): value for key, value in delta.items()})
    return Event(invocation_id="i", author=author, content=content, timestamp=at or time.time(), actions=actions)


async def read(service: ExaiSessionService, session: Any, **config: Any) -> Any:
    ids = {"app_name": session.app_name, "user_id": session.user_id, "session_id": session.id}
    return await service.get_session(**ids, config=GetSessionConfig(**config) if config else None)


async def test_an_unknown_session_is_none(service: ExaiSessionService, app: str) -> None:
    assert await service.get_session(app_name=app, user_id="u", session_id="none") is None


async def test_a_session_has_a_generated_id_or_that_of_the_caller(service: ExaiSessionService, app: str) -> None:
    made = await service.create_session(app_name=app, user_id="u", state={"key": "value"})
    assert made.id and made.state == {"key": "value"} and made.events == [] and made.last_update_time > 0
    assert await read(service, made) == made
    chosen = await service.create_session(app_name=app, user_id="u", session_id="  mine ")
    assert chosen.id == "mine"
    assert (await service.get_session(app_name=app, user_id="u", session_id="mine")).id == "mine"


async def test_an_id_is_used_once_per_user_until_it_is_deleted(service: ExaiSessionService, app: str) -> None:
    first = await service.create_session(app_name=app, user_id="u", session_id="s", state={"a": 1})
    with pytest.raises(AlreadyExistsError):
        await service.create_session(app_name=app, user_id="u", session_id="s", state={"app:b": 2})
    assert (await read(service, first)).state == {"a": 1}
    await service.create_session(app_name=app, user_id="v", session_id="s")
    await service.delete_session(app_name=app, user_id="u", session_id="s")
    assert await read(service, first) is None
    again = await service.create_session(app_name=app, user_id="u", session_id="s")
    assert again.state == {} and (await read(service, again)).events == []
    assert await service.get_session(app_name=app, user_id="v", session_id="s") is not None
    await service.delete_session(app_name=app, user_id="u", session_id="none")


async def test_concurrent_creations_of_one_id_make_one_session(service: ExaiSessionService, app: str) -> None:
    made = await asyncio.gather(
        *(service.create_session(app_name=app, user_id="u", session_id="s") for _ in range(5)), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in made) == ["AlreadyExistsError"] * 4 + ["Session"]


async def test_states_have_three_scopes_and_temporary_state_is_dropped(service: ExaiSessionService, app: str) -> None:
    given = {"app:a": 1, "user:u": [2], "s": {"x": None}, "temp:t": 4}
    first = await service.create_session(app_name=app, user_id="u", state=given)
    kept = {"app:a": 1, "user:u": [2], "s": {"x": None}}
    assert first.state == kept
    other = await service.create_session(app_name=app, user_id="u")
    assert other.state == {"app:a": 1, "user:u": [2]}
    stranger = await service.create_session(app_name=app, user_id="v")
    assert stranger.state == {"app:a": 1}
    assert (await service.create_session(app_name=app + "2", user_id="u")).state == {}
    assert await service.get_user_state(app_name=app, user_id="u") == {"u": [2]}
    assert await service.get_user_state(app_name=app, user_id="none") == {}
    await service.delete_session(app_name=app, user_id="u", session_id=first.id)
    assert await service.get_user_state(app_name=app, user_id="u") == {"u": [2]}


async def test_an_event_changes_all_scopes_of_the_state_with_it(service: ExaiSessionService, app: str) -> None:
    session = await service.create_session(app_name=app, user_id="u", state={"s": 0, "keep": 1})
    event = said("hi", app_a=1, user_u=2, s=3, temp_t=4, none=None)
    assert await service.append_event(session, event) is event
    assert session.state["temp:t"] == 4 and session.state["s"] == 3
    stored = await read(service, session)
    assert stored.state == {"app:a": 1, "user:u": 2, "s": 3, "keep": 1, "none": None}
    assert [each.actions.state_delta for each in stored.events] == [{"app:a": 1, "user:u": 2, "s": 3, "none": None}]
    assert stored.last_update_time == event.timestamp == session.last_update_time
    assert (await service.create_session(app_name=app, user_id="v")).state == {"app:a": 1}


async def test_events_are_returned_equal(service: ExaiSessionService, app: str) -> None:
    session = await service.create_session(app_name=app, user_id="u")
    parts = [
        types.Part(text="a\0b \u2028 😀"),
        types.Part(inline_data=types.Blob(mime_type="image/png", data=bytes(range(256)))),
        types.Part(function_call=types.FunctionCall(id="c", name="look_up", args={"n": 2**70, "x": 1.0, "y": None})),
        types.Part(function_response=types.FunctionResponse(id="c", name="look_up", response={"found": ["a"]})),
        types.Part(text="thought", thought=True),
    ]
    for part in parts:
        event = Event(
            author="agent",
            invocation_id="i",
            content=types.Content(role="model", parts=[part]),
            branch="b",
            custom_metadata={"k": [1, None]},
            long_running_tool_ids={"c"},
            error_code="E",
        )
        await service.append_event(session, event)
    stored = await read(service, session)
    assert stored.events == session.events and len(stored.events) == len(parts)


async def test_a_partial_event_is_not_stored(service: ExaiSessionService, app: str) -> None:
    session = await service.create_session(app_name=app, user_id="u")
    partial = said("par", s=1)
    partial.partial = True
    assert await service.append_event(session, partial) is partial
    assert (await read(service, session)).events == [] and session.events == []


async def test_the_newest_events_or_those_since_a_time_are_read(service: ExaiSessionService, app: str) -> None:
    session = await service.create_session(app_name=app, user_id="u")
    for number in range(1, 6):
        await service.append_event(session, said(str(number), at=1_700_000_000.0 + number))
    texts = lambda found: [each.content.parts[0].text for each in found.events]  # noqa: E731
    assert texts(await read(service, session)) == list("12345")
    assert texts(await read(service, session, num_recent_events=2)) == list("45")
    assert texts(await read(service, session, num_recent_events=0)) == []
    assert texts(await read(service, session, num_recent_events=9)) == list("12345")
    assert texts(await read(service, session, after_timestamp=1_700_000_003.0)) == list("345")
    assert texts(await read(service, session, after_timestamp=1_700_000_009.0)) == []
    assert texts(await read(service, session, num_recent_events=2, after_timestamp=1_700_000_005.0)) == ["5"]


async def test_sessions_are_listed_of_one_user_or_all_without_events(service: ExaiSessionService, app: str) -> None:
    one = await service.create_session(app_name=app, user_id="u", session_id="1", state={"n": 1, "user:x": "u"})
    two = await service.create_session(app_name=app, user_id="u", session_id="2", state={"n": 2, "app:y": 0})
    three = await service.create_session(app_name=app, user_id="u/", session_id="3", state={"user:x": "v"})
    await service.append_event(one, said("later"))
    listed = (await service.list_sessions(app_name=app, user_id="u")).sessions
    assert [(each.id, each.state, each.events) for each in listed] == [
        ("2", {"n": 2, "app:y": 0, "user:x": "u"}, []),
        ("1", {"n": 1, "app:y": 0, "user:x": "u"}, []),
    ]
    everyone = (await service.list_sessions(app_name=app)).sessions
    assert [each.id for each in everyone] == ["2", "3", "1"]
    assert everyone[1].state == {"app:y": 0, "user:x": "v"}
    assert (await service.list_sessions(app_name=app, user_id="none")).sessions == []
    assert (await service.list_sessions(app_name=app[:-1])).sessions == []
    assert two.id == "2" and three.user_id == "u/"


async def test_a_stale_session_is_refused_and_changes_nothing(service: ExaiSessionService, app: str) -> None:
    session = await service.create_session(app_name=app, user_id="u")
    stale = await read(service, session)
    await service.append_event(session, said("first"))
    before = stale.model_copy(deep=True)
    with pytest.raises(StaleSessionError):
        await service.append_event(stale, said("second", app_a=1, s=2))
    assert stale == before
    stored = await read(service, session)
    assert [each.content.parts[0].text for each in stored.events] == ["first"] and stored.state == {}
    await service.append_event(stored, said("second"))
    assert len((await read(service, session)).events) == 2


async def test_an_event_that_is_delivered_again_is_stored_once(service: ExaiSessionService, app: str) -> None:
    session = await service.create_session(app_name=app, user_id="u")
    old, event = await read(service, session), said("once", s=1)
    await service.append_event(session, event)
    await service.append_event(old, event)
    await service.append_event(session, event.model_copy(deep=True))
    assert len((await read(service, session)).events) == 1
    other = said("another")
    other.id = event.id
    await service.append_event(session, other)
    assert [each.content.parts[0].text for each in (await read(service, session)).events] == ["once", "another"]


async def test_an_event_of_an_unknown_session_is_refused(service: ExaiSessionService, app: str) -> None:
    session = await service.create_session(app_name=app, user_id="u")
    await service.delete_session(app_name=app, user_id="u", session_id=session.id)
    with pytest.raises(SessionNotFoundError):
        await service.append_event(session, said())
    assert await read(service, session) is None


async def test_concurrent_events_of_one_object_are_all_stored(service: ExaiSessionService, app: str) -> None:
    session = await service.create_session(app_name=app, user_id="u")
    await asyncio.gather(
        *(service.append_event(session, said(str(number), **{f"k{number}": number})) for number in range(8))
    )
    stored = await read(service, session)
    assert stored.events == session.events and len(stored.events) == 8
    assert stored.state == {f"k{number}": number for number in range(8)}


async def test_concurrent_changes_of_a_shared_state_are_all_kept(service: ExaiSessionService, app: str) -> None:
    sessions = [await service.create_session(app_name=app, user_id="u") for _ in range(4)]
    await asyncio.gather(
        *(service.append_event(each, said("x", **{f"user_{n}": n, f"app_{n}": n})) for n, each in enumerate(sessions))
    )
    assert await service.get_user_state(app_name=app, user_id="u") == {str(n): n for n in range(4)}


async def test_an_object_without_a_marker_is_compared_by_its_events(service: ExaiSessionService, app: str) -> None:
    session = await service.create_session(app_name=app, user_id="u")
    await service.append_event(session, said("first"))
    made = type(session)(id=session.id, app_name=app, user_id="u", events=list(session.events))
    await service.append_event(made, said("second"))
    unknown = type(session)(id=session.id, app_name=app, user_id="u")
    with pytest.raises(StaleSessionError):
        await service.append_event(unknown, said("third"))
    with pytest.raises(SessionNotFoundError):
        await service.append_event(type(session)(id="none", app_name=app, user_id="u"), said())


async def test_states_hold_any_key_and_value(service: ExaiSessionService, app: str) -> None:
    state = {"": 1, "a:b": 2, "x" * 600: 3, "n\0": "\0\ud800", "big": 2**70, "float": 1.0, "deep": {"a": [None, True]}}
    session = await service.create_session(app_name=app, user_id="a/b%", session_id="s/~", state=state)
    assert (await read(service, session)).state == state


async def test_other_clients_search_the_events(store: Store, service: ExaiSessionService, app: str) -> None:
    session = await service.create_session(app_name=app, user_id="u")
    await service.append_event(session, said("the zebra of " + app[4:12]))
    found = await store.conversations.search(SearchQuery(LOCAL_OWNER, app[4:12]))
    assert [hit.seq for hit in found.hits] == [1]


async def test_more_sessions_than_a_page_are_listed(service: ExaiSessionService, app: str) -> None:
    made = [await service.create_session(app_name=app, user_id="u", session_id=f"{n}") for n in range(230)]
    listed = (await service.list_sessions(app_name=app, user_id="u")).sessions
    assert [each.id for each in listed] == [each.id for each in made]


async def test_the_quick_start_runs_an_agent(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    from google.adk.models import BaseLlm, LlmResponse

    class Scripted(BaseLlm):
        async def generate_content_async(self, llm_request: Any, stream: bool = False) -> Any:
            part = types.Part(text="San Francisco")
            yield LlmResponse(content=types.Content(role="model", parts=[part]))

    names = await run_quick_start("adk", address, model=Scripted(model="scripted"))
    assert capsys.readouterr().out == "San Francisco\n"
    service, session = names["runner"].session_service, names["session"]
    stored = await service.get_session(app_name="app", user_id="user", session_id=session.id)
    assert [each.author for each in stored.events] == ["user", "assistant"]
    await service.close()
