"""The outcome of a turn, requested from another daemon than the one that ran it: the state behind every task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from exai.app import App, open_app
from exai.background import Background
from exai.blobs.base import Blobs
from exai.blobs.local import LocalBlobs
from exai.conversations import AppendRequest, ChatRequest
from exai.conversations.changes import Notices
from exai.conversations.large import LargeContent
from exai.conversations.publishing import Publisher
from exai.conversations.turns.answers import AnswerCache
from exai.conversations.turns.attachments import Attachments
from exai.conversations.turns.budgets import Budgets
from exai.conversations.turns.disk import DiskComparison
from exai.conversations.turns.documents import Documents
from exai.conversations.turns.turn import ChatTurns
from exai.db.documents import DocumentRepository
from exai.db.driver.pool import connect
from exai.db.files import FileRepository
from exai.db.turns import TurnRepository
from exai.errors import Conflict, ExaiError, ShuttingDown
from exai.mcp.core.protocol import BegunWork, CallContext
from exai.mcp.features.results import call_result, error_result
from exai.mcp.features.tasks import Task
from exai.mcp.features.tools import ToolSpec
from exai.models import LOCAL_OWNER, NewMessage, Owner
from exai.settings.load import AnswerSettings, BudgetSettings, CacheSettings
from exai.tools.chat import ChatArguments, ChatOutput
from exai.tools.progress import AnswerProgress
from exai.tools.registry import build_tasks, build_tools
from exai.tools.tasks import TurnTasks
from tests.integration.conversations.conftest import Rig, open_rig
from tests.support.provider_server import chunk, event, failure, hang_after_first_token, kimi_answer, stream

GATED = stream("gate", *kimi_answer("Four.").steps)


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        yield opened


@pytest.fixture
async def elsewhere(rig: Rig) -> AsyncIterator[App]:
    """Another daemon on the same database."""
    async with open_app(rig.app.settings.model_copy(update={"cache": CacheSettings(url="off")})) as app:
        yield app


@dataclass
class Chat:
    """A running call of the tool `chat`, and the notifications that its client has received."""

    work: asyncio.Task[ChatOutput]
    named: asyncio.Event = field(default_factory=asyncio.Event)
    id: str = ""
    since: datetime | None = None


async def chatting(app: App, **arguments: Any) -> Chat:
    """Begin a chat; returns once its question is stored."""
    spec = next(each for each in build_tools(app) if each.name == "chat")
    chat: Chat

    def begun(work: BegunWork) -> None:
        chat.id, chat.since = work.id, work.since
        chat.named.set()

    context = CallContext(LOCAL_OWNER, "1", _silent, begun=begun)
    work = asyncio.ensure_future(spec.handler(ChatArguments(**{"prompt": "Two and two?", **arguments}), context))
    chat = Chat(work)
    async with asyncio.timeout(5):
        await chat.named.wait()
    return chat


async def _silent(sentence: str) -> None:
    """Ignore the deltas."""


def tasks_of(app: App) -> TurnTasks:
    return build_tasks(app, build_tools(app))


async def task_of(app: App, task_id: str, owner: Owner = LOCAL_OWNER) -> Task:
    found = await tasks_of(app).get(owner, task_id)
    assert found is not None
    return found


@asynccontextmanager
async def admin(rig: Rig) -> AsyncIterator[Any]:
    connection = await connect(rig.app.database.address, timeout_s=5)
    try:
        yield connection
    finally:
        await connection.close()


async def test_an_answer_is_asked_for_from_any_daemon(rig: Rig, elsewhere: App) -> None:
    """The same as its caller got, but for how long that one waited."""
    rig.provider.script(GATED)
    chat = await chatting(rig.app)
    working = await task_of(elsewhere, chat.id)
    assert (working.status, working.created_at) == ("working", chat.since)
    rig.provider.gate.set()
    direct: Any = call_result(await chat.work)
    done = await task_of(elsewhere, chat.id)
    later: Any = done.result
    for result in (direct, later):
        assert result["structuredContent"].pop("duration_ms") > 0
    assert (done.status, later) == ("completed", direct)
    assert working.created_at == done.created_at < done.updated_at


@dataclass
class Opinion(ChatOutput):
    """The answer of another tool that asks a model."""

    def as_text(self) -> str:
        return f"In my opinion: {self.content}"


async def test_each_tool_makes_the_answer_of_its_own_tasks(rig: Rig, elsewhere: App) -> None:
    """The declaration of a tool suffices; a turn of a tool without one is no task."""

    async def handle(arguments: ChatArguments, context: CallContext) -> Opinion:
        return Opinion.of(await rig.app.chat.run(asked, on_begun=AnswerProgress(context).on_begun))

    asked = ChatRequest(LOCAL_OWNER, "Two and two?", tool="opinion")
    begun: list[str] = []
    context = CallContext(LOCAL_OWNER, "1", _silent, begun=lambda work: begun.append(work.id))
    tools = build_tools(rig.app)
    tools.add(ToolSpec("opinion", "", "", ChatArguments, Opinion, handle, answer_from=Opinion.of))
    rig.provider.script(kimi_answer("Four."))
    direct: Any = call_result(await handle(ChatArguments(prompt="Two and two?"), context))
    found = await build_tasks(elsewhere, tools).get(LOCAL_OWNER, begun[0])
    assert found is not None
    later: Any = found.result
    assert later["content"] == direct["content"]
    assert later["content"][0]["text"].endswith("In my opinion: Four.")
    assert await tasks_of(elsewhere).get(LOCAL_OWNER, begun[0]) is None


async def test_a_task_costs_what_a_chat_costs_and_each_question_one_round_trip(rig: Rig) -> None:
    """Nothing is stored for a task that is not stored for every turn."""
    rig.reset()
    chat = await chatting(rig.app)
    await chat.work
    assert rig.database.round_trips == 2
    rig.reset()
    await task_of(rig.app, chat.id)
    assert rig.cost() == (1, 0)
    rig.reset()
    assert await tasks_of(rig.app).cancel(LOCAL_OWNER, chat.id)
    assert rig.cost() == (1, 0)
    assert (await task_of(rig.app, chat.id)).status == "completed"


async def test_a_failed_task_has_the_error_of_its_call(rig: Rig, elsewhere: App) -> None:
    """The error of a tool is a result; status `failed` is for JSON-RPC errors."""
    rig.provider.script(stream("gate", *failure(401, {"error": {"message": "no"}}).steps))
    rig.provider.script(failure(401, {"error": {"message": "no"}}))
    rig.provider.gate.set()
    chat = await chatting(rig.app)
    with pytest.raises(ExaiError) as caught:
        await chat.work
    found = await task_of(elsewhere, chat.id)
    assert (found.status, found.result) == ("completed", error_result(caught.value))


async def test_a_task_whose_daemon_is_gone_has_failed_and_may_be_asked_again(rig: Rig, elsewhere: App) -> None:
    """It is working while its lease lasts; the same handle is valid again after a repeated request."""
    rig.provider.script(GATED, kimi_answer("Four again."))
    chat = await chatting(rig.app, idempotency_key="key")
    async with admin(rig) as sql:
        await sql.execute("update public.turns set lease_until = now()")
    lost = await task_of(elsewhere, chat.id)
    assert lost.status == "failed"
    assert lost.error is not None
    assert (lost.error.code, lost.error.message) == (-32603, lost.message)
    assert "no answer was stored, because the daemon that asked the model is gone" in lost.message
    again = await chatting(elsewhere, idempotency_key="key")
    await again.work
    assert again.id == chat.id
    found: Any = (await task_of(elsewhere, chat.id)).result
    assert found["structuredContent"]["content"] == "Four again."
    rig.provider.gate.set()
    with pytest.raises(Conflict):
        await chat.work


async def test_a_task_cancelled_elsewhere_stops_with_its_next_lease(rig: Rig, elsewhere: App) -> None:
    """The daemon that runs the call notices it at the next renewal of the lease, and ends the request."""
    rig.provider.script(hang_after_first_token("Half"))
    database, providers = rig.app.database, rig.app.providers
    blobs = Blobs(LocalBlobs(rig.app.settings.data_dir / "files"))
    documents = Documents(DocumentRepository(database), blobs, providers, Background(), may_upload=False)
    attachments = Attachments(FileRepository(database), blobs, documents)
    publisher = Publisher(rig.app.cache, Notices())
    turns = ChatTurns(
        TurnRepository(rig.app.database),
        rig.app.cache,
        rig.app.providers,
        attachments,
        publisher,
        budgets=Budgets(BudgetSettings(), rig.app.providers),
        answers=AnswerCache(rig.app.cache.answers, providers, AnswerSettings(), rig.app.recorder),
        disk=DiskComparison(rig.app.sources),
        large=LargeContent(rig.app.files, rig.app.settings.limits),
    )
    heard, named = asyncio.Event(), []

    async def on_delta(_: object) -> None:
        heard.set()

    work = asyncio.create_task(turns.run(ChatRequest(LOCAL_OWNER, "Hi"), on_delta, named.append))
    await heard.wait()
    await turns.leases.renew()
    assert await tasks_of(elsewhere).cancel(LOCAL_OWNER, named[0].turn_id)
    assert (await task_of(rig.app, named[0].turn_id)).status == "cancelled"
    assert not work.done()
    await turns.leases.renew()
    with pytest.raises(Conflict) as caught:
        await work
    assert caught.value.reason == "cancelled"
    async with asyncio.timeout(5):
        await rig.provider.chats[0].gone.wait()
    found = await task_of(rig.app, named[0].turn_id)
    assert (found.status, found.message) == ("cancelled", "cancelled on request")


async def test_turn_cancelled_in_its_own_process_is_stopped_without_a_renewal(rig: Rig) -> None:
    """Its caller waits for no lease. Another owner's attempt stops nothing."""
    rig.provider.script(stream("hang"))
    chat = await chatting(rig.app)
    assert not await tasks_of(rig.app).cancel(Owner("other"), chat.id)
    assert not chat.work.done()
    assert await tasks_of(rig.app).cancel(LOCAL_OWNER, chat.id)
    async with asyncio.timeout(5):
        with pytest.raises(Conflict) as caught:
            await chat.work
        await rig.provider.chats[0].gone.wait()
    assert caught.value.reason == "cancelled"
    assert (await task_of(rig.app, chat.id)).status == "cancelled"


async def test_an_answer_that_comes_after_the_cancellation_is_not_stored(rig: Rig, elsewhere: App) -> None:
    """A cancelled task stays cancelled."""
    rig.provider.script(GATED)
    chat = await chatting(rig.app)
    await tasks_of(elsewhere).cancel(LOCAL_OWNER, chat.id)
    rig.provider.gate.set()
    with pytest.raises(Conflict):
        await chat.work
    assert (await task_of(elsewhere, chat.id)).status == "cancelled"
    listed = await elsewhere.conversations.list(LOCAL_OWNER)
    assert [each.last_seq for each in listed.conversations] == [1]


async def test_work_that_is_stopped_says_by_whom(rig: Rig, elsewhere: App) -> None:
    """A client's cancellation is a cancellation; a daemon's shutdown is a failure that names it."""
    seen = {}
    for word in ((), (ShuttingDown.code,)):
        rig.provider.script(stream("hang"))
        chat = await chatting(rig.app)
        chat.work.cancel(*word)
        with pytest.raises(asyncio.CancelledError):
            await chat.work
        found = await task_of(elsewhere, chat.id)
        seen[word] = (found.status, found.error and found.error.code, found.message)
    assert seen[()] == ("cancelled", None, "the caller cancelled the request or went away")
    assert seen[ShuttingDown.code,] == ("failed", -31002, str(ShuttingDown()))


async def test_a_defect_is_reported_as_an_internal_error(rig: Rig, elsewhere: App) -> None:
    """Without its text, which is for the logs."""
    rig.provider.script(stream(chunk({"content": "x"}), event("[DONE]")))
    named = []

    async def on_delta(_: object) -> None:
        raise RuntimeError("a secret that must not leave")

    with pytest.raises(RuntimeError):
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hi"), on_delta, named.append)
    found = await task_of(elsewhere, named[0].turn_id)
    assert found.error is not None
    assert (found.status, found.error.code, found.error.data) == ("failed", -32603, None)
    assert "secret" not in found.message


async def _foreign(rig: Rig, task_id: str) -> tuple[Owner, str]:
    return Owner("someone else"), task_id


async def _deleted(rig: Rig, task_id: str) -> tuple[Owner, str]:
    listed = await rig.app.conversations.list(LOCAL_OWNER)
    await rig.app.conversations.delete(LOCAL_OWNER, listed.conversations[0].continuation_id)
    return LOCAL_OWNER, task_id


async def _appended(rig: Rig, task_id: str) -> tuple[Owner, str]:
    stored = await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "x")]))
    page = await rig.app.conversations.read(LOCAL_OWNER, stored.continuation_id)
    return LOCAL_OWNER, page.messages[0].turn_id or ""


async def _no_id(rig: Rig, task_id: str) -> tuple[Owner, str]:
    return LOCAL_OWNER, f"{task_id}\x00"


async def _written_otherwise(rig: Rig, task_id: str) -> tuple[Owner, str]:
    return LOCAL_OWNER, task_id.upper()


@pytest.mark.parametrize("change", [_foreign, _deleted, _no_id, _written_otherwise, _appended])
async def test_there_is_no_task(rig: Rig, change: Callable[[Rig, str], Awaitable[tuple[Owner, str]]]) -> None:
    """Of another owner, of a deleted conversation, of a text that is no id, of a write that asked no model."""
    chat = await chatting(rig.app)
    await chat.work
    owner, task_id = await change(rig, chat.id)
    assert await tasks_of(rig.app).get(owner, task_id) is None
    assert change is _appended or not await tasks_of(rig.app).cancel(owner, task_id)


async def test_pruning_a_conversation_forgets_its_tasks(rig: Rig) -> None:
    """A task is kept as long as its conversation, by the same rule."""
    chat = await chatting(rig.app)
    await chat.work
    listed = await rig.app.conversations.list(LOCAL_OWNER)
    await rig.app.conversations.delete(LOCAL_OWNER, listed.conversations[0].continuation_id)
    async with admin(rig) as sql:
        await sql.execute(
            "update public.conversations set deleted_at = now() - interval '8 days' where owner = 'local'"
        )
        assert await rig.app.maintenance.prune() == 1
        assert await sql.fetchval("select count(*) from public.turns where id = $1::uuid", chat.id) == 0
