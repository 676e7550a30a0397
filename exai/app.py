"""Builds the application: the services, on the servers, pools and providers of `exai.backends`.

Invariant: every resource is entered in order and left in reverse.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from exai.backends import Backends, open_backends
from exai.background import running
from exai.cache.conversations import ConversationCache
from exai.checkpoints import CheckpointStore
from exai.conversations import ChatService, ConversationStore, Transfer
from exai.conversations.changes import ChangePoller, Notices
from exai.conversations.indexing import Indexing
from exai.conversations.large import LargeContent
from exai.conversations.ledger import Ledger
from exai.conversations.maintenance import Maintenance
from exai.conversations.publishing import Publisher
from exai.conversations.store import Repositories
from exai.conversations.turns.answers import AnswerCache
from exai.conversations.turns.attachments import Attachments
from exai.conversations.turns.budgets import Budgets, limits_of
from exai.conversations.turns.disk import DiskComparison
from exai.conversations.turns.documents import Documents
from exai.conversations.turns.instructions import Instructions
from exai.conversations.turns.metrics import TurnMetrics
from exai.conversations.turns.prompt import estimate_tokens
from exai.conversations.turns.similar import similar_answers
from exai.conversations.turns.turn import ChatTurns
from exai.db.answers import AnswerRepository
from exai.db.checkpoints.repository import CheckpointRepository
from exai.db.documents import DocumentRepository
from exai.db.driver.pool import Database
from exai.db.files import FileRepository
from exai.db.history import HistoryRepository
from exai.db.ledger import LedgerRepository
from exai.db.lifecycle import CurationRepository
from exai.db.search import SearchRepository
from exai.db.transfer import TransferRepository
from exai.db.turns import TurnRepository
from exai.embedded.launcher import Embedded
from exai.files.service import FileService
from exai.files.sources import SourceReader
from exai.logs import log_to_stderr
from exai.monitoring.events import EventRecorder
from exai.monitoring.health import Health
from exai.monitoring.live import Live
from exai.monitoring.metrics import MetricsRecorder
from exai.probes import provider_states, watch_parts
from exai.providers.registry import Providers
from exai.settings.load import Settings
from exai.workflows import WorkflowService, instructions_by_name
from exai.workflows.consensus import ConsensusService
from exai.workflows.consensus.panel import PanelChoice
from exai.workflows.consensus.turns import PanelTurns

CACHE_NOT_GIVEN = (
    "no cache: a database is configured and no Redis, so every read is one database round trip. "
    "Set EXAI_CACHE__URL to a Redis or Valkey, to embedded, or to off to silence this"
)


@dataclass(frozen=True, slots=True)
class App:
    """All open resources; valid inside `async with open_app(settings) as app`."""

    settings: Settings
    chat: ChatService
    conversations: ConversationStore
    transfer: Transfer
    maintenance: Maintenance
    ledger: Ledger
    notices: Notices
    files: FileService
    checkpoints: CheckpointStore
    sources: SourceReader
    workflows: WorkflowService
    consensus: ConsensusService
    providers: Providers
    database: Database
    cache: ConversationCache
    embedded: Embedded | None
    recorder: MetricsRecorder
    events: EventRecorder
    health: Health
    live: Live
    history: HistoryRepository
    notes: tuple[str, ...]


@asynccontextmanager
async def open_app(settings: Settings) -> AsyncIterator[App]:
    """Open servers, pools and providers in order; on exit, all work in flight is stored first.

    Raises `StartupError`, `ConfigError`, `DatabaseUnavailable` or `SchemaMismatch`.
    """
    log_to_stderr()
    async with AsyncExitStack() as stack:
        app, tasks = _build(await open_backends(stack, settings))
        for task in tasks:
            await stack.enter_async_context(task)
        yield app


def _build(opened: Backends) -> tuple[App, Sequence[AbstractAsyncContextManager[None]]]:
    """Return the application and its background tasks, in the order in which they start."""
    settings, limits, database, recorder = opened.settings, opened.settings.limits, opened.database, opened.recorder
    cache, providers = opened.cache, opened.providers
    file_repository, blobs = FileRepository(database), opened.blobs
    files = FileService(file_repository, blobs, settings.files, limits=limits, roots=opened.roots)
    sources = SourceReader(files, opened.roots, estimate_tokens)
    large = LargeContent(files, limits)
    notices = Notices()
    publisher = Publisher(cache, notices)
    search, curation = SearchRepository(database), CurationRepository(database)
    turn_repository = TurnRepository(database)
    indexing = Indexing(search, notices.have_changed, recorder, pause_s=settings.database.index_pause_s)
    texts, may_upload = DocumentRepository(database), settings.files.provider_extract
    documents = Documents(texts, blobs, providers, opened.background, may_upload=may_upload)
    attachments = Attachments(file_repository, blobs, documents, Instructions(instructions_by_name()))
    budgets = Budgets(settings.budgets, providers)
    answer_repository = AnswerRepository(database)
    similar = similar_answers(answer_repository, opened.embedder, settings.answers)
    answers = AnswerCache(cache.answers, providers, settings.answers, recorder, similar=similar)
    ended = TurnMetrics(recorder, opened.events).ended
    turns = ChatTurns(
        turn_repository,
        cache,
        providers,
        attachments,
        publisher,
        budgets=budgets,
        answers=answers,
        disk=DiskComparison(sources),
        large=large,
        on_end=ended,
    )
    chat = ChatService(turns, turn_repository, large, limits)
    repositories = Repositories(opened.repository, search, curation)
    conversations = ConversationStore(repositories, cache, publisher, indexing, large, limits=limits, recorder=recorder)
    panel_turns = PanelTurns(turn_repository, turns.leases, turns.outcomes, publisher, providers, budgets=budgets)
    choice = PanelChoice(providers, settings.providers.panel, settings.providers.arbiter)
    poller = ChangePoller(opened.repository, notices, recorder)
    checkpoints = CheckpointRepository(database)
    app = App(
        settings=settings,
        chat=chat,
        conversations=conversations,
        transfer=Transfer(TransferRepository(database), publisher, limits, files, large),
        maintenance=Maintenance(
            curation, indexing, answer_repository, settings.answers, settings.retention, checkpoints=checkpoints
        ),
        ledger=Ledger(LedgerRepository(database), limits_of(settings.budgets)),
        notices=notices,
        files=files,
        checkpoints=CheckpointStore(checkpoints, cache, entry_max_bytes=settings.cache.entry_max_bytes),
        sources=sources,
        workflows=WorkflowService(chat, conversations, providers, sources=sources, documents=documents, limits=limits),
        consensus=ConsensusService(panel_turns, providers, attachments, sources, choice, large=large, limits=limits),
        providers=providers,
        database=database,
        cache=cache,
        embedded=opened.embedded,
        recorder=recorder,
        events=opened.events,
        health=opened.health,
        live=_live(recorder, database, providers, turns),
        history=HistoryRepository(database),
        notes=_notes(settings, opened.embedded),
    )
    recorder.watch(lambda: watch_parts(recorder, database, turns.leases, settings.budgets))
    works = {"conversation-watch": poller.run(), "word-indexing": indexing.run(), "remote-files": documents.run()}
    return app, [*(running(name, work) for name, work in works.items()), chat.running()]


def _live(recorder: MetricsRecorder, database: Database, providers: Providers, turns: ChatTurns) -> Live:
    return Live(
        recorder,
        pool=database.usage,
        providers=lambda: provider_states(providers),
        running=lambda: turns.leases.count,
    )


def _notes(settings: Settings, embedded: Embedded | None) -> tuple[str, ...]:
    if embedded is not None:
        return embedded.notes
    return (CACHE_NOT_GIVEN,) if settings.cache.url is None else ()
