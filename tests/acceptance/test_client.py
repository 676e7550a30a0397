"""`exai.client` is the store of `open_app` at a daemon: the same calls, results and errors, also on a bad network."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from exai.app import open_app
from exai.client import blocking, connect, connect_blocking
from exai.conversations import AppendRequest, ChatRequest, MetadataPatch
from exai.db.filters import ListFilter
from exai.db.lifecycle import ConversationUpdate
from exai.db.search import SearchQuery
from exai.errors import (
    Conflict,
    DaemonUnavailable,
    DeadlineExceeded,
    DependencyError,
    ExaiError,
    InvalidArgument,
    NotConfigured,
    NotFound,
    OutcomeUnknown,
    Unauthorized,
)
from exai.files.loading import FileContent
from exai.files.pieces import Taken
from exai.models import ContinuationId, Delta, FileId, NewMessage, Owner
from exai.resilience import with_deadline
from exai.settings.load import load_settings
from exai.store import Store
from exai.tools.store import FileRange
from tests.conftest import fresh
from tests.support.backend import Backend
from tests.support.daemon import Daemon, start_daemon
from tests.support.fault_proxy import FaultProxy
from tests.support.provider_server import ProviderServer, kimi_answer

ALICE, BOB = Owner("alice"), Owner("bob")
TOKENS = {"alice": "token-of-alice-0123456789", "bob": "token-of-bob-0123456789"}
PAGE_LIMIT = 200
UNKNOWN = ContinuationId("00000000-0000-4000-8000-000000000000")


def token_of(owner: Owner) -> str | None:
    return TOKENS.get(owner)


@pytest.fixture(scope="module")
def settings(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    for url in fresh(backend.databases, migrated=True):
        yield {
            "EXAI_DATA_DIR": str(tmp_path_factory.mktemp("data")),
            "EXAI_DATABASE__URL": url,
            "EXAI_CACHE__URL": "off",
            "EXAI_SERVER__TOKENS": json.dumps(TOKENS),
        }


@pytest.fixture(scope="module")
def guarded(settings: Mapping[str, str]) -> Iterator[Daemon]:
    with start_daemon(settings) as running:
        yield running


@pytest.fixture(params=["process", "daemon"])
async def store(request: pytest.FixtureRequest, settings: Mapping[str, str]) -> AsyncIterator[Store]:
    """The same database, in the process and at a daemon."""
    if request.param == "process":
        async with open_app(load_settings(dict(settings))) as app:
            yield app
    else:
        running: Daemon = request.getfixturevalue("guarded")
        async with connect(address(running), token=token_of) as client:
            yield client


@pytest.fixture
async def proxy(guarded: Daemon) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(("127.0.0.1", guarded.port)) as opened:
        yield opened


@asynccontextmanager
async def through(proxy: FaultProxy, *, timeout_s: float = 20.0) -> AsyncIterator[Store]:
    async with connect(f"http://127.0.0.1:{proxy.port}", token=token_of, timeout_s=timeout_s) as client:
        yield client


def address(daemon: Daemon) -> str:
    return f"http://127.0.0.1:{daemon.port}"


def said(*texts: str, owner: Owner = ALICE, **more: Any) -> AppendRequest:
    return AppendRequest(owner, [NewMessage("user", text) for text in texts], **more)


async def texts_of(store: Store, name: ContinuationId, owner: Owner = ALICE) -> list[str]:
    """All messages of a conversation, oldest first, read in pages."""
    found: list[str] = []
    before: int | None = None
    while True:
        page = await store.conversations.read(owner, name, limit=PAGE_LIMIT, before_seq=before, whole=True)
        found[:0] = [message.content for message in page.messages]
        if page.next_before_seq is None:
            return found
        before = page.next_before_seq


async def refusal_of(work: Any) -> ExaiError:
    with pytest.raises(ExaiError) as raised:
        await work
    return raised.value


async def test_a_conversation_lives_from_append_to_restoration(store: Store) -> None:
    messages = [NewMessage("user", "a\r\n\u2028 😀 zebra", "step", {"deep": [None, 1.5]}), NewMessage("tool", "")]
    made = await store.conversations.append(AppendRequest(ALICE, messages, title="T"))
    name = made.continuation_id
    page = await store.conversations.read(ALICE, name)
    assert [(each.role, each.content, each.kind, dict(each.metadata)) for each in page.messages] == [
        (each.role, each.content, each.kind, dict(each.metadata)) for each in messages
    ]
    assert (page.conversation.title, page.conversation.revision, page.conversation.owner) == ("T", made.revision, ALICE)
    changed = await store.conversations.change(ALICE, name, ConversationUpdate(tags=["x"], metadata={"a": {"b": 1}}))
    assert changed.revision == made.revision + 1
    listed = await store.conversations.list(ALICE, only=ListFilter(tags=["x"], metadata={"a": {"b": 1}}))
    assert name in [each.continuation_id for each in listed.conversations]
    forked = await store.conversations.fork(ALICE, name, at_seq=1)
    assert await texts_of(store, forked.continuation_id) == [messages[0].content]
    found = await store.conversations.search(SearchQuery(ALICE, "zebra", continuation_id=name))
    assert [hit.seq for hit in found.hits] == [1]
    await store.conversations.delete(ALICE, name)
    assert isinstance(await refusal_of(store.conversations.read(ALICE, name)), NotFound)
    await store.conversations.restore(ALICE, name)
    assert await texts_of(store, name) == [each.content for each in messages]


async def test_a_file_lives_from_put_to_deletion(store: Store) -> None:
    data = bytes(range(256)) * 20_000  # more than one reply
    (file,) = await store.files.put(ALICE, [FileContent("n.bin", data, "application/octet-stream")])
    assert await store.files.read(ALICE, file.id) == (replace(file, created=False), data)
    name = (await store.conversations.append(said("see the file"))).continuation_id
    assert (await store.files.link(ALICE, name, [file.id]), await store.files.link(ALICE, name, [file.id])) == (1, 0)
    assert [each.id for each in (await store.files.list(ALICE, continuation_id=name)).files] == [file.id]
    await store.files.delete(ALICE, file.id)
    assert isinstance(await refusal_of(store.files.get(ALICE, file.id)), NotFound)
    assert isinstance(await refusal_of(store.files.delete(ALICE, file.id)), NotFound)


async def refusals(store: Store) -> list[tuple[type[ExaiError], str]]:
    """The errors of calls that no store carries out."""
    conversations = store.conversations
    made = await conversations.append(said("x", idempotency_key=f"key {id(store)}"))
    name = made.continuation_id
    calls = [
        conversations.read(ALICE, UNKNOWN),
        conversations.read(ALICE, name, limit=0),
        conversations.read(ALICE, ContinuationId("")),
        conversations.append(said("y", idempotency_key=f"key {id(store)}")),
        conversations.append(said("y", continuation_id=name, expected_revision=made.revision + 5)),
        conversations.append(said()),
        conversations.append(said("\0")),
        conversations.append(said("\ud800")),
        conversations.append(AppendRequest(ALICE, [NewMessage("user", "x", metadata={"x": float("nan")})])),
        conversations.append(AppendRequest(ALICE, [NewMessage("user", "x", metadata={"x": 2**70})])),
        conversations.append(AppendRequest(ALICE, [NewMessage("king", "x")])),
        conversations.fork(ALICE, name, at_seq=9),
        conversations.change(ALICE, name, ConversationUpdate(tags=[""])),
        conversations.list(ALICE, cursor="nonsense"),
        conversations.search(SearchQuery(ALICE, " ")),
        conversations.delete(ALICE, UNKNOWN),
        store.files.get(ALICE, FileId(UNKNOWN)),
        store.files.get(ALICE, FileId("no id")),
        store.chat.run(ChatRequest(ALICE, "")),
        store.chat.run(ChatRequest(ALICE, "x", model="no such model")),
    ]
    found = [await refusal_of(call) for call in calls]
    return [(type(each), str(each).replace(name, "NAME")) for each in found]


async def test_errors_are_those_of_the_process(settings: Mapping[str, str], guarded: Daemon) -> None:
    async with open_app(load_settings(dict(settings))) as app, connect(address(guarded), token=token_of) as client:
        assert await refusals(client) == await refusals(app)


async def test_a_value_of_another_type_is_refused_by_its_name(store: Store) -> None:
    name = (await store.conversations.append(said("x"))).continuation_id
    for limit in (True, "5", 1.5, None):
        refused = await refusal_of(store.conversations.read(ALICE, name, limit=limit))
        assert isinstance(refused, InvalidArgument)
        assert refused.field == "limit"


async def test_requests_for_another_owner_are_refused(guarded: Daemon) -> None:
    """One token is one owner; a client may have the tokens of several."""
    async with connect(address(guarded), token=TOKENS["bob"]) as bob, connect(address(guarded), token=token_of) as both:
        name = (await both.conversations.append(said("hers"))).continuation_id
        for call in (
            bob.conversations.append(said("his")),
            bob.conversations.read(ALICE, name),
            bob.conversations.search(SearchQuery(ALICE, "hers")),
            bob.files.list(ALICE),
        ):
            refused = await refusal_of(call)
            assert isinstance(refused, InvalidArgument)
            assert refused.field == "owner"
        assert isinstance(await refusal_of(both.conversations.read(BOB, name)), NotFound)


async def test_a_wrong_token_and_a_wrong_address_are_named(guarded: Daemon) -> None:
    async with connect(address(guarded), token="wrong") as client:
        assert isinstance(await refusal_of(client.conversations.list(ALICE)), Unauthorized)
    for token in ("", "a b", "a\n", "ä"):
        async with connect(address(guarded), token=token) as client:
            refused = await refusal_of(client.conversations.list(ALICE))
            assert isinstance(refused, InvalidArgument)
            assert refused.field == "token"
    async with connect(f"{address(guarded)}/nowhere", token=token_of) as client:
        refused = await refusal_of(client.conversations.list(ALICE))
        assert (type(refused), "404" in str(refused)) == (DependencyError, True)
    for url in ("127.0.0.1:8765", "ws://x", ""):
        with pytest.raises(InvalidArgument):
            async with connect(url):
                pass


async def test_a_write_whose_answer_is_lost_is_stored_once(proxy: FaultProxy) -> None:
    """The daemon has committed when the connection breaks; the client repeats the request with its key."""
    async with through(proxy) as store:
        made = await store.conversations.append(said("first"))
        name = made.continuation_id
        dropped = proxy.drop_reply_to(b"conversations.append")
        second = await store.conversations.append(said("second", continuation_id=name, expected_revision=made.revision))
        await dropped
        assert (second.first_seq, second.duplicate) == (2, False)
        assert await texts_of(store, name) == ["first", "second"]
        for method, work in (
            ("fork", lambda: store.conversations.fork(ALICE, name, title="lost fork")),
            ("change", lambda: store.conversations.change(ALICE, name, ConversationUpdate(title="t"))),
            ("delete", lambda: store.conversations.delete(ALICE, name, expected_revision=second.revision + 1)),
            ("restore", lambda: store.conversations.restore(ALICE, name)),
        ):
            dropped = proxy.drop_reply_to(f"conversations.{method}".encode())
            await work()
            await dropped
        listed = await store.conversations.list(ALICE, only=ListFilter(part="lost fork"))
        assert len(listed.conversations) == 1
        (file,) = await store.files.put(ALICE, [FileContent("lost", b"lost")])
        dropped = proxy.drop_reply_to(b"files.delete")
        await store.files.delete(ALICE, file.id)
        await dropped


async def test_a_pop_and_a_patch_whose_answers_are_lost_happen_once(proxy: FaultProxy) -> None:
    async with through(proxy) as store:
        name = (await store.conversations.append(said("a", "b", "c"))).continuation_id
        dropped = proxy.drop_reply_to(b"conversations.rewind")
        rewound = await store.conversations.rewind(ALICE, name, drop=1)
        await dropped
        assert ([each.content for each in rewound.cut], rewound.duplicate) == (["c"], False)
        dropped = proxy.drop_reply_to(b"conversations.append")
        patch = MetadataPatch({"x": 1})
        await store.conversations.append(said("d", continuation_id=name, patch=patch))
        await dropped
        page = await store.conversations.read(ALICE, name)
        assert [each.content for each in page.messages] == ["a", "b", "d"]
        assert page.conversation.metadata == {"x": 1}


async def test_a_request_that_never_arrived_is_sent_again(proxy: FaultProxy) -> None:
    async with through(proxy) as store:
        proxy.lose_request(b"conversations.append")
        name = (await store.conversations.append(said("once"))).continuation_id
        assert await texts_of(store, name) == ["once"]


async def test_writers_lose_no_acknowledged_message_and_double_none(proxy: FaultProxy) -> None:
    """Connections break while 8 writers append; each message that was acknowledged is stored once, in order."""
    async with through(proxy) as store:
        name = (await store.conversations.append(said("start"))).continuation_id
        acknowledged: dict[str, int] = {}
        faults = itertools.cycle(
            (
                lambda: proxy.drop_reply_to(b"conversations.append"),
                lambda: proxy.lose_request(b"conversations.append"),
                lambda: proxy.cut_after(150),
                proxy.reset,
            )
        )

        async def write(writer: int) -> None:
            for number in range(12):
                text = f"{writer}.{number}"
                acknowledged[text] = (await store.conversations.append(said(text, continuation_id=name))).first_seq
                if len(acknowledged) % 3 == 0:
                    next(faults)()

        await asyncio.gather(*(write(number) for number in range(8)))
        stored = await texts_of(store, name)
        assert {text: place for place, text in enumerate(stored, 1) if text != "start"} == acknowledged
        assert len(stored) == 1 + 8 * 12


async def test_a_caller_with_a_key_is_told_of_its_repetition(store: Store) -> None:
    key = f"own {id(store)}"
    first = await store.conversations.append(said("x", idempotency_key=key))
    again = await store.conversations.append(said("x", idempotency_key=key))
    assert (first.duplicate, again) == (False, replace(first, duplicate=True, created=again.created))


async def test_no_answer_in_time_says_whether_a_write_may_have_happened(proxy: FaultProxy) -> None:
    async with through(proxy, timeout_s=0.3) as store:
        name = (await store.conversations.append(said("x"))).continuation_id
        proxy.mode = "stall_down"
        unknown = await refusal_of(store.conversations.append(said("y", continuation_id=name)))
        assert isinstance(unknown, OutcomeUnknown)
        assert "idempotency_key" in unknown.details()
        assert isinstance(await refusal_of(store.conversations.read(ALICE, name)), DeadlineExceeded)
        proxy.mode = "refuse"
        proxy.reset()
        away = await refusal_of(store.conversations.append(said("z", continuation_id=name)))
        assert isinstance(away, DaemonUnavailable | OutcomeUnknown)


async def test_a_daemon_that_is_away_is_named_after_the_time_limit() -> None:
    async with FaultProxy(("127.0.0.1", 9)) as gone:
        port = gone.port
    async with connect(f"http://127.0.0.1:{port}", timeout_s=0.3) as client:
        refused = await refusal_of(client.conversations.list(Owner("local")))
        assert isinstance(refused, DaemonUnavailable)
        assert str(port) in str(refused)


async def test_the_deadline_of_the_context_ends_a_call(proxy: FaultProxy) -> None:
    async with through(proxy) as store:
        proxy.mode = "stall"
        with with_deadline(0.2):
            assert isinstance(await refusal_of(store.conversations.list(ALICE)), DeadlineExceeded)


async def test_a_client_finds_the_next_daemon_at_the_address(settings: Mapping[str, str], proxy: FaultProxy) -> None:
    """A rolling restart: the address is the same, the process another one."""
    with start_daemon(settings) as first:
        proxy.upstream = ("127.0.0.1", first.port)
        async with through(proxy) as store:
            name = (await store.conversations.append(said("before"))).continuation_id
            first.kill()
            appending = asyncio.create_task(store.conversations.append(said("after", continuation_id=name)))
            with start_daemon(settings) as second:
                proxy.upstream = ("127.0.0.1", second.port)
                await appending
                assert await texts_of(store, name) == ["before", "after"]


async def test_answers_longer_than_a_reply_arrive_whole(store: Store) -> None:
    """A reply has at most 1 MiB, a page 2 MiB, and a single message 4 MiB."""
    long = "".join(f'{number:07} "\\ é\n' for number in range(220_000))
    assert 3_000_000 < len(long.encode()) < 4 * 1_048_576
    request = AppendRequest(ALICE, [NewMessage("user", long), *[NewMessage("user", long[:400_000])] * 5])
    name = (await store.conversations.append(request)).continuation_id
    assert await texts_of(store, name) == [long, *[long[:400_000]] * 5]
    newest = await store.conversations.read(ALICE, name, limit=2)
    assert newest.messages[-1].content == long[:400_000]


async def test_answers_arrive_whole_in_the_smallest_replies(settings: Mapping[str, str]) -> None:
    """At the least value of the setting each part advances."""
    with start_daemon({**settings, "EXAI_SERVER__REPLY_MAX_BYTES": "8192"}) as running:
        address = f"http://127.0.0.1:{running.port}"
        async with connect(address, token=TOKENS[ALICE]) as client:
            texts = [f"{number} " + "é" * 9_000 for number in range(3)]
            request = AppendRequest(ALICE, [NewMessage("user", text) for text in texts])
            name = (await client.conversations.append(request)).continuation_id
            found = [(await client.conversations.read(ALICE, name, limit=1, before_seq=seq)) for seq in (2, 3, 4)]
            assert [page.messages[0].content for page in found] == texts
            (file,) = await client.files.put(ALICE, [FileContent("a.txt", "".join(texts).encode())])
            assert (await client.files.read(ALICE, file.id))[1] == "".join(texts).encode()


async def test_a_request_larger_than_a_message_names_the_limit(guarded: Daemon) -> None:
    async with connect(address(guarded), token=token_of) as client:
        for size_bytes in (9_000_000, 40_000_000):
            refused = await refusal_of(client.files.put(ALICE, [FileContent("n", bytes(size_bytes))]))
            assert isinstance(refused, InvalidArgument)
            assert f"is {size_bytes // 3 * 4 // 1_000_000}," in str(refused)
            assert "EXAI_SERVER__MESSAGE_MAX_BYTES" in str(refused)


async def test_a_question_without_a_model_is_refused_as_in_the_process(store: Store) -> None:
    assert isinstance(await refusal_of(store.chat.run(ChatRequest(ALICE, "Why?"))), NotConfigured)
    assert await store.chat.result(ALICE, UNKNOWN) is None
    assert await store.chat.cancel(ALICE, UNKNOWN) is False


async def test_what_only_the_process_can_give_is_refused(guarded: Daemon) -> None:
    async with connect(address(guarded), token=token_of) as client:
        for call in (
            client.conversations.append(said("x", identity=("y",))),
            client.conversations.append(said("x", counts_steps=True)),
            client.chat.run(ChatRequest(ALICE, "x", named=["y"])),
            client.chat.run(ChatRequest(ALICE, "x", system="y", system_taken=Taken("y", (), ()))),
        ):
            assert isinstance(await refusal_of(call), InvalidArgument)


async def test_a_range_of_a_file_is_bounded(settings: Mapping[str, str]) -> None:
    """A call reads no more than fits into its reply, and nothing before the beginning."""
    async with open_app(load_settings(dict(settings))) as app:
        (file,) = await app.files.put(ALICE, [FileContent("a.bin", bytes(range(256)))])
        ranges = FileRange(app.files, 100)
        assert (await ranges.read_range(ALICE, file.id, offset=200, size_bytes=10**12))[1] == bytes(range(200, 256))
        assert (await ranges.read_range(ALICE, file.id, offset=9, size_bytes=10**12))[1] == bytes(range(9, 109))
        assert (await ranges.read_range(ALICE, file.id, offset=10**12, size_bytes=1))[1] == b""
        for offset, size_bytes in ((-1, 10), (0, -1)):
            assert isinstance(
                await refusal_of(ranges.read_range(ALICE, file.id, offset=offset, size_bytes=size_bytes)),
                InvalidArgument,
            )


async def test_methods_are_offered_to_clients_that_declare_the_extension(guarded: Daemon) -> None:
    """Models are shown tools only; the extension adds none."""
    from tests.support.stateless import stateless

    async with stateless(address(guarded), token=TOKENS["alice"]) as plain:
        answer = await plain.ask("store/conversations.list", owner="alice")
        assert answer["error"]["data"] == {"requiredCapabilities": {"extensions": {"exai/store": {}}}}
        found = await plain.ask("server/discover")
        assert {"exai/store", "io.modelcontextprotocol/tasks"} <= found["result"]["capabilities"]["extensions"].keys()
        tools = await plain.ask("tools/list")
        assert not [each["name"] for each in tools["result"]["tools"] if "store" in each["name"]]


def test_threads_share_a_blocking_client(guarded: Daemon) -> None:
    with connect_blocking(address(guarded), token=token_of) as store, ThreadPoolExecutor(8) as threads:
        name = store.conversations.append(said("start")).continuation_id
        work = [threads.submit(store.conversations.append, said(str(n), continuation_id=name)) for n in range(40)]
        seqs = sorted(each.result().first_seq for each in work)
        assert seqs == list(range(2, 42))
        with pytest.raises(NotFound):
            store.conversations.read(ALICE, UNKNOWN)
        assert store.files.list(ALICE, continuation_id=name).files == ()


def test_a_store_of_the_process_can_block(settings: Mapping[str, str]) -> None:
    with blocking(open_app(load_settings(dict(settings)))) as store:
        name = store.conversations.append(said("x")).continuation_id
        assert [each.content for each in store.conversations.read(ALICE, name).messages] == ["x"]


def test_an_error_at_the_start_of_a_blocking_store_is_raised() -> None:
    with pytest.raises(InvalidArgument), connect_blocking("nowhere"):
        pass


async def test_conflicts_of_a_revision_are_raised(store: Store) -> None:
    made = await store.conversations.append(said("x"))
    stale = said("y", continuation_id=made.continuation_id, expected_revision=made.revision)
    await store.conversations.append(stale)
    refused = await refusal_of(
        store.conversations.append(said("z", continuation_id=made.continuation_id, expected_revision=made.revision))
    )
    assert isinstance(refused, Conflict)
    assert refused.reason == "revision"


async def test_an_answer_arrives_in_parts_and_once(daemon: Daemon, provider: ProviderServer) -> None:
    """The connection breaks before the answer; the question is asked again under its key, and stored once."""
    owner = Owner("local")
    provider.script(kimi_answer(["Four", " it", " is."]), kimi_answer("Five."))
    deltas: list[str] = []

    async def note(delta: Delta) -> None:
        deltas.append(delta.content)

    async with FaultProxy(("127.0.0.1", daemon.port)) as proxy, through(proxy) as store:
        first = await store.chat.run(ChatRequest(owner, "Two and two?"), note)
        assert first.content == "Four it is."
        assert first.content.startswith("".join(deltas))
        dropped = proxy.drop_reply_to(b"chat.run")
        again = ChatRequest(owner, "And one?", continuation_id=first.continuation_id)
        second = await store.chat.run(again)
        await dropped
        assert second.duplicate is False
        page = await store.conversations.read(owner, first.continuation_id)
        assert [each.role for each in page.messages].count("user") == 2
        outcome = await store.chat.result(owner, page.messages[-1].turn_id or "")
        assert outcome is not None
        assert outcome.result is not None
        assert outcome.result.content == second.content
