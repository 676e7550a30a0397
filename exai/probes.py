"""Probes of the parts of the application, for health and the live numbers.

Invariant: only the database is required; the failure of another part degrades the state.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

from exai.blobs.base import Blobs
from exai.cache.conversations import ConversationCache
from exai.conversations.turns.leases import TurnLeases
from exai.db.driver.pool import Database
from exai.db.migrations.revision import check_revision
from exai.models import Recorder
from exai.monitoring.health import Component, Probe, Probed
from exai.monitoring.metrics import MetricsRecorder
from exai.providers.base import ProviderStatus
from exai.providers.registry import Providers
from exai.resilience import Clock
from exai.settings.sections import BudgetSettings

SELDOM_S = 60.0

MAX_TOKEN_FACTORS = 8
"""Number of models whose token counts the health of a provider states."""


async def probe_database(database: Database) -> Probed:
    """Probe whether the database accepts writes. A read-only one is down, since most calls end with a write."""
    obstacle = await database.obstacle()
    used, size, most = database.usage()
    detail = f"{database.address.shown}, {used} of {size} connections in use (at most {most})"
    if obstacle is not None:
        return Probed("down", f"{detail}: {obstacle}")
    if database.refusal is not None:
        return Probed("degraded", f"{detail}: a write was refused: {database.refusal}")
    return Probed("ok", detail)


async def probe_schema(database: Database) -> Probed:
    """Probe whether the schema is that of this release, or of a later one."""
    return Probed("ok", f"at revision {await check_revision(database)}")


async def probe_storage(blobs: Blobs) -> Probed:
    """Ask the selected store of files whether it can be used."""
    return Probed("ok", await blobs.chosen.check())


def seldom(probe: Probe, pause_s: float = SELDOM_S, clock: Clock = time.monotonic) -> Probe:
    """Return a probe that repeats a good result for `pause_s`, for one that is expensive or changes rarely."""
    known: tuple[float, Probed] | None = None

    async def ask() -> Probed:
        nonlocal known
        if known is not None and clock() < known[0]:
            return known[1]
        began = time.perf_counter()
        known = None
        found = replace(await probe(), latency_s=time.perf_counter() - began)
        if found.state == "ok":
            known = clock() + pause_s, found
        return found

    return ask


def _hits(recorder: MetricsRecorder) -> str:
    hits, reads = recorder.value("cache_reads_total", result="hit"), recorder.value("cache_reads_total")
    return f", {hits / reads:.0%} of {reads:,.0f} reads were hits" if reads else ""


def components(
    database: Database, cache: ConversationCache, providers: Providers, blobs: Blobs, recorder: MetricsRecorder
) -> list[Component]:
    """Return the components that health probes."""

    async def probe_cache() -> Probed:
        status = await cache.status()
        if status.state == "off":
            return Probed("off", "every read is one database round trip")
        if status.state == "down":
            return Probed("down", status.problem or "no answer")
        starting = status.watermark_age_s is None and status.problem is None
        clock = "" if status.clock_ahead_s is None else f", clock {status.clock_ahead_s:+.2f} s"
        memory = await cache.memory_bytes()
        used = "" if memory is None else f", {memory / 1_048_576:.0f} MiB used"
        bound = f"{status.server}, at most {status.max_staleness_s:g} s stale{clock}{used}{_hits(recorder)}"
        if status.state == "ok" or starting:
            return Probed("ok", bound)
        return Probed("degraded", f"{bound}, entries live that long only: {status.problem}")

    def provider_probe(name: str) -> Probe:
        async def probe() -> Probed:
            status = next(each for each in providers.status() if each.name == name)
            if not status.configured:
                return Probed("off", "no key")
            if status.breaker != "closed":
                return Probed("degraded", f"breaker {status.breaker}: {status.last_error}")
            return Probed("ok", "; ".join((status.base_url, *status.notes)) + _token_factors(status))

        return probe

    watched = [
        Component("database", partial(probe_database, database), required=True),
        Component("schema", seldom(partial(probe_schema, database))),
        Component("cache", probe_cache),
        Component("storage", seldom(partial(probe_storage, blobs))),
    ]
    return watched + [Component(each.name, provider_probe(each.name)) for each in providers.status()]


def _token_factors(status: ProviderStatus) -> str:
    """Return the ratios of token counts to estimates, for the models of a provider."""
    newest = status.token_factors[-MAX_TOKEN_FACTORS:]
    factors = (f"{each.model} x{each.factor:.2f} +-{each.spread:.0%}" for each in newest)
    return f"; tokens per estimated token: {', '.join(factors)}" if newest else ""


def provider_states(providers: Providers) -> list[dict[str, Any]]:
    """Return the state of every provider for the live numbers."""
    return [
        {
            "name": each.name,
            "configured": each.configured,
            "state": "off" if not each.configured else "ok" if each.breaker == "closed" else "degraded",
            "breaker": each.breaker,
            "detail": each.last_error or "",
        }
        for each in providers.status()
    ]


def watch_parts(recorder: Recorder, database: Database, leases: TurnLeases, budgets: BudgetSettings) -> None:
    """Set the gauges of connections, running turns and budgets to their present values."""
    in_use, is_open, size = database.usage()
    for state, number in (("in_use", in_use), ("idle", is_open - in_use), ("missing", size - is_open)):
        recorder.gauge("db_pool_connections", number, state=state)
    recorder.gauge("db_pool_waiting", database.waiting)
    recorder.gauge("turns_running", leases.count)
    for per, usd in (
        ("conversation", budgets.conversation_usd),
        ("owner_day", budgets.owner_day_usd),
        ("owner_month", budgets.owner_month_usd),
    ):
        if usd is not None:
            recorder.gauge("budget_limit_usd", usd, per=per)
