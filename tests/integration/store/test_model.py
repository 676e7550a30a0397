"""The store compared with a model of lists: after every operation both show the same.

EXAI_TEST_MODEL_EXAMPLES=n tries n random histories instead of the few that every run can afford, as `make fault` does.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, rule, run_state_machine_as_test

from exai.cache.entry import same_json
from exai.conversations import Appended, AppendRequest, ChatRequest
from exai.conversations.formats import Format, read_lines, read_markdown
from exai.db.lifecycle import ConversationUpdate
from exai.db.search import SearchQuery
from exai.errors import Conflict, NotFound
from exai.models import ContinuationId, Message, NewMessage, Owner, Page
from tests.fault.service import NO_PASS_S, Service, servers
from tests.support.backend import flush

EXAMPLES = int(os.environ.get("EXAI_TEST_MODEL_EXAMPLES", "5"))
STEPS = 40
T = TypeVar("T")

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)
NUMBER = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
METADATA = st.dictionaries(TEXT, JSON, max_size=3)
ROLE = st.sampled_from(("system", "user", "assistant", "tool"))
TAGS = st.lists(TEXT.filter(lambda text: bool(text.strip())), max_size=3, unique=True)
BLOCK = st.lists(st.tuples(ROLE, TEXT, METADATA), min_size=1, max_size=60)
SERVICE = st.integers(0, 1)


@dataclass(frozen=True)
class Line:
    """A message of the model; `metadata` None is not compared. `home` is where it is stored, for forks elsewhere."""

    role: str
    content: str
    metadata: dict[str, Any] | None
    word: str
    home: tuple[str, int]


@dataclass
class Talk:
    """A conversation of the model."""

    lines: list[Line] = field(default_factory=list)
    title: str | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    revision: int = 0
    changed: int = 0
    deleted: bool = False


def shown(page: Page) -> list[tuple[int, str, str]]:
    return [(message.seq, message.role, message.content) for message in page.messages]


def expected(talk: Talk, first: int, last: int) -> list[tuple[int, str, str]]:
    """The lines from number `first` to `last`."""
    lines = enumerate(talk.lines, 1)
    return [(seq, line.role, line.content) for seq, line in lines if first <= seq <= last]


class Store(RuleBasedStateMachine):
    """Two services on one database and one cache, used by an owner of each history's own."""

    services: list[Service]
    run: Callable[[Awaitable[Any]], Any]
    flush_cache: Callable[[], None]
    numbers = itertools.count(1)
    names = Bundle("names")
    appends = Bundle("appends")

    @initialize()
    def begin(self) -> None:
        self.owner = Owner(f"owner {next(self.numbers)}")
        self.talks: dict[str, Talk] = {}

    # What changes something.

    @rule(target=names, at=SERVICE, block=BLOCK, title=st.none() | TEXT.filter(bool))
    def append_to_new(self, at: int, block: list[tuple[str, str, dict[str, Any]]], title: str | None) -> str:
        told, lines = self._append(at, None, block, title=title)
        self.talks[told.continuation_id] = Talk(title=title)
        self._added(told, lines)
        return told.continuation_id

    @rule(target=appends, at=SERVICE, name=names, block=BLOCK, keyed=st.booleans())
    def append(self, at: int, name: str, block: list[tuple[str, str, dict[str, Any]]], keyed: bool) -> Any:
        talk = self.talks[name]
        key = f"key {next(self.numbers)}" if keyed else None
        if talk.deleted:
            with pytest.raises(NotFound):
                self._append(at, name, block, key=key)
            return multiple()
        told, lines = self._append(at, name, block, key=key)
        assert told.first_seq == len(talk.lines) + 1
        self._added(told, lines)
        return (name, told, lines, key) if keyed else multiple()

    @rule(at=SERVICE, earlier=appends)
    def append_again(self, at: int, earlier: tuple[str, Appended, list[NewMessage], str]) -> None:
        """Repeat an append with the same key and content after other changes."""
        name, told, lines, key = earlier
        request = AppendRequest(self.owner, lines, ContinuationId(name), idempotency_key=key)
        if self.talks[name].deleted:
            with pytest.raises(NotFound):
                self.run(self._at(at).append(request))
            return
        again = self.run(self._at(at).append(request))
        assert again == replace(told, duplicate=True)
        with pytest.raises(Conflict):
            self.run(self._at(at).append(replace(request, messages=[*lines, NewMessage("user", "more")])))

    @rule(at=SERVICE, name=names)
    def chat(self, at: int, name: str) -> None:
        talk = self.talks[name]
        request = ChatRequest(self.owner, word := self._word(), continuation_id=ContinuationId(name))
        if talk.deleted:
            with pytest.raises(NotFound):
                self.run(self.services[at].app.chat.run(request))
            return
        told = self.run(self.services[at].app.chat.run(request))
        seq = len(talk.lines) + 1
        assert (told.seq, told.revision) == (seq + 1, talk.revision + 2)
        talk.lines.append(Line("user", word, None, word, (name, seq)))
        # The model repeats the question, so both are found by that word.
        assert word in told.content
        talk.lines.append(Line("assistant", told.content, None, word, (name, seq + 1)))
        talk.revision += 2
        talk.changed = next(self.numbers)

    @rule(at=SERVICE, name=names, title=st.none() | TEXT, tags=st.none() | TAGS, metadata=st.none() | METADATA)
    def change(
        self, at: int, name: str, title: str | None, tags: list[str] | None, metadata: dict[str, Any] | None
    ) -> None:
        talk = self.talks[name]
        work = self._at(at).change(
            self.owner, ContinuationId(name), ConversationUpdate(title, metadata, tags), expected_revision=talk.revision
        )
        if talk.deleted:
            with pytest.raises(NotFound):
                self.run(work)
            return
        after = self.run(work)
        wanted = (
            talk.title if title is None else title or None,
            talk.tags if tags is None else tuple(tags),
            talk.metadata if metadata is None else metadata,
        )
        if wanted != (talk.title, talk.tags, talk.metadata):
            talk.revision += 1
            talk.changed = next(self.numbers)
        # Numbers that differ in nothing but their spelling are the same to us and not to the database.
        talk.revision = max(talk.revision, after.revision)
        talk.title, talk.tags, talk.metadata = wanted
        assert (after.title, after.tags) == wanted[:2]
        assert same_json(dict(after.metadata), wanted[2])

    @rule(at=SERVICE, name=names)
    def delete_or_restore(self, at: int, name: str) -> None:
        talk = self.talks[name]
        service = self._at(at)
        self.run((service.restore if talk.deleted else service.delete)(self.owner, ContinuationId(name)))
        talk.deleted = not talk.deleted
        talk.revision += 1
        talk.changed = next(self.numbers)

    @rule(target=names, at=SERVICE, name=names, part=st.floats(0, 1))
    def fork(self, at: int, name: str, part: float) -> Any:
        talk = self.talks[name]
        at_seq = max(1, round(part * len(talk.lines)))
        work = self._at(at).fork(self.owner, ContinuationId(name), at_seq=at_seq)
        if talk.deleted:
            with pytest.raises(NotFound):
                self.run(work)
            return multiple()
        new = self.run(work)
        copy = replace(talk, lines=talk.lines[:at_seq], revision=1, changed=next(self.numbers))
        self.talks[new.continuation_id] = copy
        return new.continuation_id

    @rule(target=names, at=SERVICE, name=names, kind=st.sampled_from(("jsonl", "markdown")))
    def export_and_import(self, at: int, name: str, kind: Format) -> Any:
        """Exact both ways, and done once however often."""
        talk = self.talks[name]
        if talk.deleted:
            with pytest.raises(NotFound):
                self.run(self._exported(at, name, kind))
            return multiple()
        text = self.run(self._exported(at, name, kind))
        new = ContinuationId(f"copy {next(self.numbers)}")
        revisions = [self.run(self._imported(1 - at, text, kind, new)) for _ in range(2)]
        assert revisions[0] == revisions[1]
        lines = [replace(line, home=(new, seq)) for seq, line in enumerate(talk.lines, 1)]
        self.talks[new] = replace(talk, lines=lines, revision=revisions[0], changed=talk.changed)
        return new

    @rule()
    def lose_the_cache(self) -> None:
        self.flush_cache()

    # What looks.

    @rule(at=SERVICE, name=names, limit=st.integers(1, 60))
    def read(self, at: int, name: str, limit: int) -> None:
        talk = self.talks[name]
        work = self._at(at).read(self.owner, ContinuationId(name), limit=limit)
        if talk.deleted:
            with pytest.raises(NotFound):
                self.run(work)
            return
        page = self.run(work)
        first = max(1, len(talk.lines) - limit + 1)
        assert shown(page) == expected(talk, first, len(talk.lines))
        assert page.next_before_seq == (first if first > 1 else None)
        header = page.conversation
        assert (header.title, header.tags) == (talk.title, talk.tags)
        assert same_json(dict(header.metadata), talk.metadata)
        assert (header.revision, header.last_seq) == (talk.revision, len(talk.lines))
        self._same_metadata(talk, page.messages)

    @rule(at=SERVICE, name=names, limit=st.integers(1, 40))
    def read_all(self, at: int, name: str, limit: int) -> None:
        """Page by page, by cursor and by offset."""
        talk = self.talks[name]
        if talk.deleted:
            return
        by_cursor: list[tuple[int, str, str]] = []
        before: int | None = None
        for number in range(math.ceil(len(talk.lines) / limit)):
            service, id_ = self._at(at), ContinuationId(name)
            page = self.run(service.read(self.owner, id_, limit=limit, before_seq=before))
            same = self.run(service.read(self.owner, id_, limit=limit, offset=number * limit))
            assert shown(page) == shown(same)
            by_cursor[:0] = shown(page)
            before = page.next_before_seq
            assert same.next_before_seq == before
        assert before is None
        assert by_cursor == expected(talk, 1, len(talk.lines))

    @rule(at=SERVICE, limit=st.integers(1, 5))
    def list_all(self, at: int, limit: int) -> None:
        found: list[tuple[str, int]] = []
        cursor = None
        while True:
            page = self.run(self._at(at).list(self.owner, limit=limit, cursor=cursor))
            found += [(each.continuation_id, each.last_seq) for each in page.conversations]
            cursor = page.next_cursor
            if cursor is None:
                break
        live = {name: talk for name, talk in self.talks.items() if not talk.deleted}
        assert dict(found) == {name: len(talk.lines) for name, talk in live.items()}
        assert len(found) == len(live)
        # An import keeps the time of its export, to the microsecond: those two may stand either way.
        assert [live[name].changed for name, _ in found] == sorted((t.changed for t in live.values()), reverse=True)

    @rule(at=SERVICE, name=names, part=st.floats(0, 1))
    def search(self, at: int, name: str, part: float) -> None:
        """Where it is stored, and in every copy."""
        talk = self.talks[name]
        line = talk.lines[round(part * (len(talk.lines) - 1))]
        if not line.word:
            return
        hits = self.run(self._at(at).search(SearchQuery(self.owner, line.word), limit=50)).hits
        homes = {each.home for other in self.talks.values() for each in other.lines if each.word == line.word}
        live = {home for home in homes if not self.talks[home[0]].deleted}
        assert {(hit.continuation_id, hit.seq) for hit in hits} == live

    # How.

    def _at(self, at: int) -> Any:
        return self.services[at].conversations

    def _word(self) -> str:
        return f"word{next(self.numbers)}"

    def _append(
        self,
        at: int,
        name: str | None,
        block: list[tuple[str, str, dict[str, Any]]],
        *,
        title: str | None = None,
        key: str | None = None,
    ) -> tuple[Appended, list[NewMessage]]:
        lines = [NewMessage(role, f"{self._word()} {text}", metadata=meta) for role, text, meta in block]  # type: ignore[arg-type]
        id_ = None if name is None else ContinuationId(name)
        request = AppendRequest(self.owner, lines, id_, title=title, idempotency_key=key)
        return self.run(self._at(at).append(request)), lines

    def _added(self, told: Appended, lines: list[NewMessage]) -> None:
        talk = self.talks[told.continuation_id]
        for line in lines:
            home = told.continuation_id, len(talk.lines) + 1
            word = line.content.partition(" ")[0]
            talk.lines.append(Line(line.role, line.content, dict(line.metadata), word, home))
        talk.revision += 1
        talk.changed = next(self.numbers)
        assert (told.last_seq, told.revision, told.duplicate) == (len(talk.lines), talk.revision, False)

    async def _exported(self, at: int, name: str, kind: Format) -> str:
        return "".join(
            [part async for part in self.services[at].app.transfer.export(self.owner, ContinuationId(name), kind)]
        )

    async def _imported(self, at: int, text: str, kind: Format, name: ContinuationId) -> int:
        parts = read_lines(text.split("\n")) if kind == "jsonl" else read_markdown(text)
        return [
            progress.revision
            async for progress in self.services[at].app.transfer.import_text(self.owner, parts, as_name=name)
        ][-1]  # type: ignore[no-any-return]

    def _same_metadata(self, talk: Talk, messages: tuple[Message, ...]) -> None:
        for message in messages:
            line = talk.lines[message.seq - 1]
            assert line.metadata is None or same_json(dict(message.metadata), line.metadata)


def test_store_equals_the_model_after_any_operations(postgres_url: str, redis_url: str, tmp_path: Path) -> None:
    """Promises 4, 6 and 7, and that nothing is changed on the way in or out."""

    async def open_services(stack: AsyncExitStack) -> list[Service]:
        rig = await stack.enter_async_context(servers(postgres_url, redis_url, tmp_path))
        return [await rig.open(max_staleness_s=60, reconcile_interval_s=NO_PASS_S) for _ in range(2)]

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        stack = AsyncExitStack()

        async def awaited(work: Awaitable[T]) -> T:
            return await work

        class Machine(Store):
            services = runner.run(open_services(stack))
            run = staticmethod(lambda work: runner.run(awaited(work)))
            flush_cache = staticmethod(lambda: flush(redis_url))

        try:
            run_state_machine_as_test(
                Machine,
                settings=settings(
                    max_examples=EXAMPLES,
                    stateful_step_count=STEPS,
                    deadline=None,
                    derandomize="EXAI_TEST_MODEL_EXAMPLES" not in os.environ,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(stack.aclose())
