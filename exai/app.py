"""Builds the application: every resource is entered in order here and left in reverse.

Invariant: there are no fallbacks. A given address is used or is an error, the embedded servers start
only if no address was given at all, and disabled parts are reported as off.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

from exai.background import Background, open_background, running
from exai.blobs.base import Blobs
from exai.cache.conversations import ConversationCache, open_cache
from exai.conversations import ChatService, ConversationStore, Transfer
from exai.conversations.changes import ChangePoller, Notices, changes_of
from exai.conversations.indexing import Indexing
from exai.conversations.ledger import Ledger
from exai.conversations.maintenance import Maintenance
from exai.conversations.publishing import Publisher
from exai.conversations.store import Repositories
from exai.conversations.turns.answers import AnswerCache
from exai.conversations.turns.attachments import Attachments
from exai.conversations.turns.budgets import Budgets, limits_of, pricing_of
from exai.conversations.turns.disk import DiskComparison
from exai.conversations.turns.documents import Documents
from exai.conversations.turns.instructions import Instructions
from exai.conversations.turns.metrics import TurnMetrics
from exai.conversations.turns.prompt import estimate_tokens
from exai.conversations.turns.similar import similar_answers
from exai.conversations.turns.turn import ChatTurns
from exai.db.answers import AnswerRepository
from exai.db.conversations import ConversationRepository
from exai.db.documents import DocumentRepository
from exai.db.driver.pool import Database, open_pool
from exai.db.files import FileRepository
from exai.db.history import HistoryRepository
from exai.db.ledger import LedgerRepository
from exai.db.lifecycle import CurationRepository
from exai.db.migrations.extensions import install_vector
from exai.db.migrations.revision import check_revision, expected_revision, explain_mismatch, revision_at
from exai.db.search import SearchRepository
from exai.db.transfer import TransferRepository
from exai.db.turns import TurnRepository
from exai.embedded.launcher import Embedded, start_embedded
from exai.errors import DatabaseUnavailable, SchemaMismatch, StartupError
from exai.files.paths import Roots
from exai.files.service import FileService
from exai.files.sources import SourceReader
from exai.files.stores import open_stores
from exai.logs import log_to_stderr
from exai.monitoring.events import EventRecorder
from exai.monitoring.health import Health, open_health
from exai.monitoring.live import Live
from exai.monitoring.metrics import MetricsRecorder
from exai.probes import components, provider_states, watch_parts
from exai.program import program
from exai.providers.embeddings import Embedder, open_embedder
from exai.providers.registry import Providers, open_providers
from exai.resilience import Patience
from exai.settings.addresses import redact
from exai.settings.load import Settings, default_data_dir
from exai.workflows import WorkflowService, instructions_by_name
from exai.workflows.consensus import ConsensusService
from exai.workflows.consensus.panel import PanelChoice
from exai.workflows.consensus.turns import PanelTurns

CACHE_NOT_GIVEN = (
    "no cache: a database is configured and no Redis, so every read is one database round trip. "
    "Set EXAI_CACHE__URL to a Redis or Valkey, to embedded, or to off to silence this"
)

CACHE_CONNECT_ATTEMPTS = 20
"""Each lasts for the time limit of a command, EXAI_CACHE__TIMEOUT_S."""

CACHE_RETRY_S = 0.05


log = structlog.get_logger(__name__)


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


@dataclass(frozen=True, slots=True)
class Backends:
    """Servers, pools and providers, which the services use."""

    settings: Settings
    roots: Roots
    recorder: MetricsRecorder
    events: EventRecorder
    embedded: Embedded | None
    database: Database
    repository: ConversationRepository
    cache: ConversationCache
    blobs: Blobs
    providers: Providers
    embedder: Embedder | None
    health: Health
    background: Background


@asynccontextmanager
async def open_app(settings: Settings) -> AsyncIterator[App]:
    """Open servers, pools and providers in order; on exit, all work in flight is stored first.

    Raises `StartupError`, `ConfigError`, `DatabaseUnavailable` or `SchemaMismatch`.
    """
    log_to_stderr()
    async with AsyncExitStack() as stack:
        app, tasks = _build(await _open_backends(stack, settings))
        for task in tasks:
            await stack.enter_async_context(task)
        yield app


async def _open_backends(stack: AsyncExitStack, settings: Settings) -> Backends:
    recorder = MetricsRecorder()
    events = EventRecorder(recorder)
    roots = roots_of(settings)
    embedded = await _open_embedded(stack, settings)
    patience = Patience(settings.start_wait_s)
    database = await patience.until_open(lambda: _open_database(stack, settings, embedded, recorder))
    repository = ConversationRepository(database)
    cache_url = _cache_url(settings, embedded)
    cache = await stack.enter_async_context(
        open_cache(settings.cache, cache_url, recorder=recorder, changes=changes_of(repository))
    )
    await patience.until_open(lambda: _check_cache(cache, cache_url))
    providers = await stack.enter_async_context(
        open_providers(
            settings.providers, recorder=recorder, limits=settings.limits, pricing=pricing_of(settings.budgets)
        )
    )
    blobs = await stack.enter_async_context(open_stores(settings, database, recorder))
    health = await stack.enter_async_context(
        open_health(
            components(database, cache, providers, blobs, recorder),
            recorder=recorder,
            on_change=events.health_change,
        )
    )
    embedder = await stack.enter_async_context(open_embedder(settings.answers, settings.providers, recorder))
    background = await stack.enter_async_context(open_background())
    return Backends(
        settings,
        roots,
        recorder,
        events,
        embedded,
        database,
        repository,
        cache,
        blobs,
        providers,
        embedder,
        health,
        background,
    )


def _build(opened: Backends) -> tuple[App, Sequence[AbstractAsyncContextManager[None]]]:
    """Return the application and its background tasks, in the order in which they start."""
    settings, limits, database, recorder = opened.settings, opened.settings.limits, opened.database, opened.recorder
    cache, providers = opened.cache, opened.providers
    file_repository, blobs = FileRepository(database), opened.blobs
    files = FileService(file_repository, blobs, settings.files, limits=limits, roots=opened.roots)
    sources = SourceReader(files, opened.roots, estimate_tokens)
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
        on_end=ended,
    )
    chat = ChatService(turns, turn_repository, limits)
    repositories = Repositories(opened.repository, search, curation)
    conversations = ConversationStore(repositories, cache, publisher, indexing, limits=limits, recorder=recorder)
    panel_turns = PanelTurns(turn_repository, turns.leases, turns.outcomes, publisher, providers, budgets=budgets)
    choice = PanelChoice(providers, settings.providers.panel, settings.providers.arbiter)
    poller = ChangePoller(opened.repository, notices, recorder)
    app = App(
        settings=settings,
        chat=chat,
        conversations=conversations,
        transfer=Transfer(TransferRepository(database), publisher, limits, files),
        maintenance=Maintenance(curation, indexing, answer_repository, settings.answers),
        ledger=Ledger(LedgerRepository(database), limits_of(settings.budgets)),
        notices=notices,
        files=files,
        sources=sources,
        workflows=WorkflowService(chat, conversations, providers, sources=sources, limits=limits),
        consensus=ConsensusService(panel_turns, providers, attachments, sources, choice, limits=limits),
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


@asynccontextmanager
async def own_servers(settings: Settings) -> AsyncIterator[Embedded | None]:
    """Start and migrate only the embedded servers, for a parent of worker processes. Yields None if none are used.

    Raises `StartupError`, `ConfigError` or `DatabaseUnavailable`.
    """
    roots_of(settings)
    async with AsyncExitStack() as stack:
        embedded = await _open_embedded(stack, settings)
        if embedded is not None and embedded.postgres_url is not None:
            await _migrate(embedded.postgres_url)
        yield embedded


def roots_of(settings: Settings) -> Roots:
    """Return the readable directories, which exclude the data of all owners. Raises `ConfigError`."""
    own = [settings.data_dir, default_data_dir(), *filter(None, (settings.env_file,))]
    roots = Roots(settings.files.roots, [path.absolute() for path in own])
    roots.check()
    return roots


async def _open_embedded(stack: AsyncExitStack, settings: Settings) -> Embedded | None:
    postgres, valkey = settings.embedded_servers
    if not postgres and not valkey:
        return None
    embedded = await stack.enter_async_context(
        start_embedded(
            settings.embedded_dir,
            postgres=postgres,
            valkey=valkey,
            pg_bin=settings.pg_bin,
            report=lambda sentence: log.error("embedded_server", report=sentence),
        )
    )
    if settings.cache.url == "embedded" and embedded.valkey_url is None:
        raise StartupError(
            "EXAI_CACHE__URL=embedded", "; ".join(embedded.notes), 'Install "exai[embedded]", or set off'
        )
    return embedded


async def _open_database(
    stack: AsyncExitStack, settings: Settings, embedded: Embedded | None, recorder: MetricsRecorder
) -> Database:
    """Open the pool. The embedded database is migrated; a given one is only checked."""
    url = embedded.postgres_url if embedded else None
    if url is not None:
        await _migrate(url)
        if settings.answers.embedding_model is not None:
            await install_vector(url)
    is_shared = bool(settings.server.tokens) or settings.server.jwt.is_on
    async with AsyncExitStack() as own:
        try:
            opening = open_pool(settings.database, recorder=recorder, url=url, is_shared=is_shared)
            database = await own.enter_async_context(opening)
            await check_revision(database)
        except SchemaMismatch as error:
            raise await explain_mismatch(url or _given_url(settings), error) from error
        except DatabaseUnavailable as error:
            raise not_reached(_given_url(settings), "EXAI_DATABASE__URL", error) from error
        stack.push_async_exit(own.pop_all())
    return database


async def _migrate(url: str) -> None:
    """Migrate the embedded database at `url`, if its revision is not this release's. Raises as `upgrade`."""
    if await revision_at(url) == expected_revision():
        return
    # Imported here: Alembic and SQLAlchemy take a quarter of the processor time of all imports of a start.
    from exai.db.migrations.migrate import upgrade

    await upgrade(url)


def _given_url(settings: Settings) -> str:
    return settings.database.url.get_secret_value() if settings.database.url else ""


def not_reached(url: str, setting: str, error: DatabaseUnavailable) -> StartupError:
    """Return the error with the address and the system's message, which the error of a single statement omits.

    An empty `url` stands for the embedded server.
    """
    where = redact(url) or "the embedded Postgres"
    cause = error.__cause__
    said = f" ({cause.strerror or cause})" if isinstance(cause, OSError) else ""
    cure = error.cure if isinstance(cause, Exception) and not isinstance(cause, OSError) else "Start it"
    return StartupError(where, f"{error.problem}{said}", f"{cure}, or correct {setting}; see `{program()} doctor`")


async def _check_cache(cache: ConversationCache, url: str | None) -> None:
    """Raise if the cache cannot be reached: at start that is a wrong setting, later only a miss and a counter.

    The time limit of a command is short, because a miss is cheaper than a wait. The first connection may take longer.
    """
    status = await cache.status()
    for _ in range(CACHE_CONNECT_ATTEMPTS):
        if not status.is_late:
            break
        await asyncio.sleep(CACHE_RETRY_S)
        status = await cache.status()
    if status.state == "down":
        raise StartupError(
            redact(url or ""),
            f"the cache cannot be reached ({status.problem})",
            "Start it, correct EXAI_CACHE__URL, or set EXAI_CACHE__URL=off to run without a cache",
        )


def _cache_url(settings: Settings, embedded: Embedded | None) -> str | None:
    given = settings.cache.url
    if given is None or given == "embedded":
        return embedded.valkey_url if embedded else None
    return None if isinstance(given, str) else given.get_secret_value()
