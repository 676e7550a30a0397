"""One call of every repository method, for tests of the environment of statements."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from exai.db.answers import AnswerPlace, AnswerRepository, Question
from exai.db.checkpoints.repository import CheckpointRepository
from exai.db.conversations import ConversationRepository
from exai.db.documents import DocumentRepository, StoredText
from exai.db.driver.pool import Database
from exai.db.files import FileRepository
from exai.db.history import HistoryQuery, HistoryRepository
from exai.db.ledger import LedgerRepository, UsageQuery
from exai.db.lifecycle import ConversationUpdate, CurationRepository
from exai.db.records import BudgetClaim, BudgetLimits
from exai.db.search import SearchQuery, SearchRepository
from exai.db.transfer import ImportBatch, TransferRepository
from exai.db.turns import TurnRepository
from exai.models import LOCAL_OWNER, ContinuationId, ConversationId, ConversationKey, NewMessage, TurnId
from tests.support.checkpoints import checkpoint, task_writes
from tests.support.database import appending, beginning, contents_of, ending, new_id, once


async def use(database: Database) -> None:
    """Append alone and in groups, read, chat, change, fork, import, export, link, search and prune."""
    repository, curation = ConversationRepository(database), CurationRepository(database)
    turns = TurnRepository(database)
    files, transfer, search = FileRepository(database), TransferRepository(database), SearchRepository(database)
    appended = await repository.append(appending(None, "the first words"))
    assert appended.commit is not None
    name = appended.commit.conversation.continuation_id
    await repository.append(appending(name, "x" * 100_000))
    await asyncio.gather(*(repository.append(appending(None, "one of several")) for _ in range(20)))
    claim = BudgetClaim(Decimal("0.1"), Decimal("0.1"), Decimal("0.0000001"), BudgetLimits(10.0, 10.0, 10.0))
    started = await turns.begin(beginning(name, "a question", claim=claim))
    await turns.finish(ending(started.turn_id, "an answer"))
    await turns.read(LOCAL_OWNER, started.turn_id)
    await turns.cancel(LOCAL_OWNER, started.turn_id, {"code": "x"})
    assert len(await contents_of(repository, name)) == 4
    await repository.list_conversations(LOCAL_OWNER, limit=10)
    await turns.renew_leases([started.turn_id], lease_s=10)
    await repository.changes((await repository.changes(None)).xmin)
    for _ in range(2):
        await curation.change(
            ConversationKey(LOCAL_OWNER, name),
            once(),
            ConversationUpdate(title="renamed", tags=("a", "b"), metadata={"k": 1}),
        )
    fork = await curation.fork(ConversationKey(LOCAL_OWNER, name), once(), new_conversation_id=ConversationId(new_id()))
    assert fork.commit is not None
    assert len(await contents_of(repository, fork.commit.conversation.continuation_id)) == 4
    assert [page async for page in transfer.export(ConversationKey(LOCAL_OWNER, name))]
    imported = await transfer.store_batch(importing("imported", "one", "two"))
    assert imported.status == "stored"
    await search.index()
    assert (await search.search(SearchQuery(LOCAL_OWNER, "words"), limit=5)).hits
    await use_checkpoints(CheckpointRepository(database))
    labels: dict[str, Any] = {"tags": ("a", "b"), "metadata": {"k": 1}}
    assert (await search.search(SearchQuery(LOCAL_OWNER, "words", **labels), limit=5)).hits
    assert (await search.search(SearchQuery(LOCAL_OWNER, "words", continuation_id=name, **labels), limit=5)).hits
    answers, asked = AnswerRepository(database), Question(LOCAL_OWNER, "e", "r", "q", [0.6, 0.8])
    assert started.commit is not None
    await answers.keep(asked, AnswerPlace(started.commit.conversation.id, 3, 4, TurnId(new_id())), age_s=60)
    assert [each.content for each in await answers.similar(asked, least=0.9, age_s=60)] == ["an answer"]
    await answers.prune(age_s=60)
    await files.cleanup_orphans(0)
    await curation.mark_deleted(ConversationKey(LOCAL_OWNER, name), once(), deleted=True)
    history, now = HistoryRepository(database), datetime.now(UTC)
    assert (await history.store(b'[{"type": "a", "data": {"value": 1, "buckets": [1]}}]', new_id(), "x")).stored
    for step_s in (60, 3_600):
        since = (now - timedelta(hours=2)).replace(minute=0, second=0, microsecond=0)
        assert await history.read(HistoryQuery("a", since, now + timedelta(hours=1), step_s, ("x",), {}, LOCAL_OWNER))
    assert await history.recent("a")
    await history.insert("command_run", {"labels": {"command": "x"}, "value": 1})
    assert await history.events()
    await history.create_partitions()
    assert await history.apply_retention()
    ledger = LedgerRepository(database)
    assert (await ledger.report(UsageQuery(LOCAL_OWNER, "conversation"), claim.limits)).total.turns
    assert await ledger.budgets(LOCAL_OWNER, claim.limits)
    documents, digest = DocumentRepository(database), "0" * 64
    await documents.keep(LOCAL_OWNER, digest, StoredText("local", None, "a scan"))
    assert not await documents.texts(LOCAL_OWNER, [digest])
    await documents.remember("key", "file")
    assert not await documents.claim("key", 5)
    await documents.forget("key", "file")
    await curation.purge(after_s=0)
    await curation.expire_idle(None, idle_s=3_600)
    await curation.prune_removed(after_s=0)


async def use_checkpoints(repository: CheckpointRepository) -> None:
    """Put, read, list, copy, prune and expire."""
    await repository.put(LOCAL_OWNER, checkpoint("1"), 60.0)
    await repository.put(LOCAL_OWNER, checkpoint("2", version="2", parent_id="1", run_id="run"), None)
    at = ("thread", "", "1")
    await repository.put_writes(LOCAL_OWNER, at, task_writes("x", "messages"), replaces=True, ttl_s=None)
    newest = await repository.read(LOCAL_OWNER, "thread", "", None)
    assert newest is not None
    assert newest.checkpoint is not None
    facts = {"source": "a value"}
    page = await repository.list(
        LOCAL_OWNER,
        thread_id="thread", namespace="", checkpoint_id=None, facts=facts, before="9", limit=1, cursor=None,
    )  # fmt: skip
    assert len(page.checkpoints) == 1
    [history] = await repository.ancestry(LOCAL_OWNER, ("thread", "", "2"), ["messages"])
    assert history.value is not None
    assert (await repository.copy(LOCAL_OWNER, "thread", "copy"))[0] is not None
    assert len(await repository.prune(LOCAL_OWNER, ["thread"], keeps_newest=True)) == 1
    assert len(await repository.prune(LOCAL_OWNER, (), keeps_newest=False, runs=["run"])) == 2
    assert await repository.extend(LOCAL_OWNER, "copy", 0.000_001) is not None
    await repository.count_expiring(idle_s=1_000)
    assert await repository.expire() == 1
    await repository.expire(LOCAL_OWNER, idle_s=1_000)
    await repository.purge(after_s=0)


def importing(name: str, *contents: str) -> ImportBatch:
    return ImportBatch(
        owner=LOCAL_OWNER,
        continuation_id=ContinuationId(name),
        new_conversation_id=ConversationId(new_id()),
        turn_id=TurnId(new_id()),
        request_key=new_id(),
        request_hash="hash",
        first_seq=1,
        messages=[NewMessage("user", content) for content in contents],
        times=[None for _ in contents],
        title="imported",
        tags=("a",),
    )
