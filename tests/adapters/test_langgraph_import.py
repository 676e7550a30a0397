"""Threads of LangGraph's own checkpointers become conversations; a thread that has grown adds what is new."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from exai.app import App, open_app
from exai.cli.importing import target_of
from exai.importers.pipeline import import_sources
from exai.importers.reading.bundles import open_bundle
from exai.importers.recognition import kind_of_file
from exai.importers.report import ImportReport
from exai.models import LOCAL_OWNER, ContinuationId
from exai.settings.load import load_settings
from tests.conftest import fresh
from tests.support.backend import Backend

pytest.importorskip("langgraph.checkpoint.sqlite", reason="langgraph is not installed")

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState, StateGraph

CALL = {"name": "look_up", "args": {"place": "cellar"}, "id": "c1", "type": "tool_call"}
ANSWERS = (AIMessage("", tool_calls=[CALL]), AIMessage("In the cellar."), AIMessage("At your service."))
PICTURE = "data:image/png;base64,iVBORw0KGgo="


@dataclass
class Unknown:
    """A class that LangGraph does not list as safe."""

    type: str = "human"


def graph(saver: Any, answers: Iterator[Any]) -> Any:
    model = GenericFakeChatModel(messages=answers)

    def call_model(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node(call_model)
    builder.add_edge(START, "call_model")
    return builder.compile(checkpointer=saver)


def talk(saver: Any, thread: str, *questions: Any, start: int = 0) -> None:
    compiled = graph(saver, iter(ANSWERS[start:]))
    for question in questions:
        compiled.invoke({"messages": [question]}, {"configurable": {"thread_id": thread}})


FIRST = (
    HumanMessage([{"type": "text", "text": "Where is it?"}, {"type": "image_url", "image_url": {"url": PICTURE}}]),
    ToolMessage("found", tool_call_id="c1"),
)
EXPECTED = [
    ("user", "Where is it?"),
    ("assistant", 'look_up({"place":"cellar"})'),
    ("tool", "found"),
    ("assistant", "In the cellar."),
]


@pytest.fixture
async def app(settings: Mapping[str, str]) -> AsyncIterator[App]:
    async with open_app(load_settings(dict(settings))) as opened:
        yield opened


async def imported(app: App, *paths: Path, addresses: tuple[str, ...] = ()) -> ImportReport:
    return await import_sources(target_of(app), LOCAL_OWNER, paths, addresses=addresses)


async def shown(app: App, name: str) -> list[tuple[str, str]]:
    page = await app.conversations.read(LOCAL_OWNER, ContinuationId(name))
    return [(each.role, each.content) for each in page.messages]


async def test_sqlite_threads_are_imported_and_grow(app: App, tmp_path: Path) -> None:
    """With tool calls, an image as a file, and times; damaged threads are reported, and others read on."""
    path = tmp_path / "checkpoints.db"
    with closing(sqlite3.connect(path, check_same_thread=False)) as database:
        saver = SqliteSaver(database)
        talk(saver, "grows", *FIRST)
        talk(saver, "second", HumanMessage("Hello?"), start=2)
        saver.put(
            {"configurable": {"thread_id": "other", "checkpoint_ns": ""}},
            {"v": 4, "id": "9", "ts": "", "channel_values": {"messages": [Unknown()]}, "channel_versions": {},
             "versions_seen": {}},
            {}, {},
        )  # fmt: skip
        saver.put(
            {"configurable": {"thread_id": "none", "checkpoint_ns": ""}},
            {"v": 4, "id": "9", "ts": "", "channel_values": {}, "channel_versions": {}, "versions_seen": {}},
            {}, {},
        )  # fmt: skip
        with open_bundle(path) as bundle:
            assert kind_of_file(bundle, path.name) == "langgraph"
        before = path.read_bytes()
        report = await imported(app, path)
        assert (report.sources, report.stored, report.files) == ({"langgraph": 1}, 6, 1), report.lines()
        assert [each.partition(": ")[2] for each in report.problems] == ["is no message, but a dict"], report.problems
        assert path.read_bytes() == before
        page = await app.conversations.read(LOCAL_OWNER, ContinuationId("grows"))
        assert [(each.role, each.content.splitlines()[0]) for each in page.messages] == EXPECTED
        assert page.conversation.tags == ("langgraph",)
        assert await shown(app, "second") == [("user", "Hello?"), ("assistant", "At your service.")]
        talk(saver, "grows", HumanMessage("Thanks."), start=2)
        report = await imported(app, path)
        assert report.stored == 2
        assert (await shown(app, "grows"))[4:] == [("user", "Thanks."), ("assistant", "At your service.")]
        assert (await imported(app, path)).stored == 0


@pytest.fixture
def graph_url(backend: Backend) -> Iterator[str]:
    """A database of LangGraph's own."""
    yield from fresh(backend.databases, migrated=False)


async def test_postgres_threads_are_imported_by_address(app: App, graph_url: str) -> None:
    """Through the saver; what cannot be reached is named without its address."""
    with PostgresSaver.from_conn_string(graph_url) as saver:
        saver.setup()
        talk(saver, "from postgres", HumanMessage("Hello?"), start=2)
    report = await imported(app, addresses=(graph_url,))
    assert (report.stored, report.problems) == (2, [])
    assert await shown(app, "from postgres") == [("user", "Hello?"), ("assistant", "At your service.")]
    assert (await imported(app, addresses=(graph_url,))).stored == 0
    report = await imported(app, addresses=("postgresql://user:secret@127.0.0.1:1/none",))
    assert len(report.problems) == 1
    assert "secret" not in report.problems[0]
