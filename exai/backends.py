"""Opens the resources of the services: embedded servers, the pool of Postgres, the cache, stores of files, providers.

Invariant: there are no fallbacks. A given address is used or is an error, the embedded servers start only if no address
was given at all, and disabled parts are reported as off.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

from exai.background import Background, open_background
from exai.blobs.base import Blobs
from exai.cache.conversations import ConversationCache, open_cache
from exai.conversations.changes import changes_of
from exai.conversations.turns.budgets import pricing_of
from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import Database, open_pool
from exai.db.encryption import open_codec
from exai.db.migrations.extensions import install_vector
from exai.db.migrations.revision import check_revision, expected_revision, explain_mismatch, revision_at
from exai.embedded.launcher import Embedded, start_embedded
from exai.errors import DatabaseUnavailable, SchemaMismatch, StartupError
from exai.files.paths import Roots
from exai.files.stores import open_stores
from exai.monitoring.events import EventRecorder
from exai.monitoring.health import Health, open_health
from exai.monitoring.metrics import MetricsRecorder
from exai.probes import components
from exai.program import program
from exai.providers.embeddings import Embedder, open_embedder
from exai.providers.opening import open_providers
from exai.providers.registry import Providers
from exai.resilience import Patience
from exai.settings.addresses import redact
from exai.settings.load import Settings, default_data_dir

CACHE_CONNECT_ATTEMPTS = 20
"""Each lasts for the time limit of a command, EXAI_CACHE__TIMEOUT_S."""

CACHE_RETRY_S = 0.05


log = structlog.get_logger(__name__)


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


async def open_backends(stack: AsyncExitStack, settings: Settings) -> Backends:
    """Enter the servers, pools and providers into `stack`, in order. Raises as `exai.app.open_app`."""
    recorder = MetricsRecorder()
    events = EventRecorder(recorder)
    roots = roots_of(settings)
    embedded = await _open_embedded(stack, settings)
    patience = Patience(settings.start_wait_s)
    database = await patience.until_open(lambda: _open_database(stack, settings, embedded, recorder))
    repository = ConversationRepository(database)
    cache_url = _cache_url(settings, embedded)
    cache = await stack.enter_async_context(
        open_cache(settings.cache, cache_url, recorder=recorder, changes=changes_of(repository), codec=database.codec)
    )
    await patience.until_open(lambda: _check_cache(cache, cache_url, required=settings.cache.required))
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
    embedder = await stack.enter_async_context(
        open_embedder(settings.answers, settings.providers, recorder, pricing_of(settings.budgets))
    )
    if embedder is not None and database.codec.is_on and not settings.store.embeddings:
        log.warning("embeddings_off", cure="set EXAI_STORE__EMBEDDINGS=true to store vectors of questions beside keys")
        embedder = None
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


@asynccontextmanager
async def own_servers(settings: Settings, *, migrates: bool = True) -> AsyncIterator[Embedded | None]:
    """Start only the embedded servers, and migrate them on demand, for a parent of worker processes and for commands.

    Yields None if none are used.

    Raises `StartupError`, `ConfigError` or `DatabaseUnavailable`.
    """
    roots_of(settings)
    async with AsyncExitStack() as stack:
        embedded = await _open_embedded(stack, settings)
        if migrates and embedded is not None and embedded.postgres_url is not None:
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
            database.codec = await open_codec(database, settings.store)
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


async def _check_cache(cache: ConversationCache, url: str | None, *, required: bool) -> None:
    """Raise if a required cache cannot be reached: at start that is a wrong setting, later only a miss and a counter.

    The time limit of a command is short, because a miss is cheaper than a wait. The first connection may take longer.
    """
    status = await cache.status()
    for _ in range(CACHE_CONNECT_ATTEMPTS):
        if not status.is_late:
            break
        await asyncio.sleep(CACHE_RETRY_S)
        status = await cache.status()
    if status.state != "down":
        return
    if not required:
        log.warning("cache_away", url=redact(url or ""), problem=status.problem)
    else:
        raise StartupError(
            redact(url or ""),
            f"the cache cannot be reached ({status.problem})",
            "Start it, correct EXAI_CACHE__URL, or set EXAI_CACHE__URL=off to run without a cache, or "
            "EXAI_CACHE__REQUIRED=false to start without it",
        )


def _cache_url(settings: Settings, embedded: Embedded | None) -> str | None:
    given = settings.cache.url
    if given is None or given == "embedded":
        return embedded.valkey_url if embedded else None
    return None if isinstance(given, str) else given.get_secret_value()
