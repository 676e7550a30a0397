"""`exai bench --keys`: operations with encryption beside the same ones without, in one run, on the same servers.

Invariant: both contestants alternate within each round, as everywhere in the bench; a ratio is the median of rounds.
"""

from __future__ import annotations

import base64
import os
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import Any, Final

from exai import __version__
from exai.bench.contestants import Contestants, Data, open_contestants
from exai.bench.floors.postgres import OWNER
from exai.bench.measure import Comparison, compare
from exai.bench.operations import APPEND, FULL, HIT, MISS, SEARCH, Operations, Pair
from exai.bench.plan import Plan, Texts
from exai.bench.report import columns
from exai.bench.run import ReportProgress, machine
from exai.bench.servers import open_servers
from exai.conversations import AppendRequest
from exai.models import ContinuationId
from exai.settings.load import load_settings

COMPARED: Final = (HIT, MISS, APPEND, FULL, SEARCH)
CALLERS: Final = (1, 16)


@dataclass(frozen=True, slots=True)
class KeysReport:
    """The results of a run: each operation with keys (`exai`) beside the one without (`bare`)."""

    plan: Plan
    servers: str
    machine: str
    comparisons: tuple[Comparison, ...]


async def run_keys(plan: Plan, *, progress: ReportProgress) -> KeysReport:
    """Run all measurements on embedded servers. Raises as `exai.bench.run.run_bench`."""
    texts = Texts(plan.message_bytes)
    key = f"bench:{base64.b64encode(os.urandom(32)).decode()}"
    comparisons = []
    async with open_servers(load_settings(), here=False) as servers, AsyncExitStack() as stack:
        ours: list[Operations] = []
        # The one without keys first: it would not start once the database has content that it cannot read.
        for overrides in ({"EXAI_STORE__KEYS": ""}, {"EXAI_STORE__KEYS": key}):
            contestants = await stack.enter_async_context(open_contestants(servers, plan.messages, overrides))
            progress(0.05 + 0.1 * len(ours), "making conversations")
            ours.append(Operations(contestants, await _filled(contestants, plan, texts), texts))
        pairs = _pairs(*ours)
        steps = [(pair, callers, number) for pair in pairs for callers, number in plan.operations if callers in CALLERS]
        for place, (pair, callers, number) in enumerate(steps):
            progress(0.25 + 0.7 * place / len(steps), pair.operation.name)
            most = plan.conversations // callers * callers if pair.operation.once else number
            comparisons.append(await compare(pair, callers, min(number, most), plan.rounds, lambda: None))
    progress(1.0, "done")
    return KeysReport(plan, servers.shown, machine(), tuple(comparisons))


def _pairs(without: Operations, with_keys: Operations) -> list[Pair]:
    found = [
        {each.operation.name: each.operation for each in one.all() if isinstance(each, Pair)}
        for one in (without, with_keys)
    ]
    return [Pair(found[1][name], found[0][name]) for name in COMPARED if name in found[0]]


async def _filled(contestants: Contestants, plan: Plan, texts: Texts) -> Data:
    names: list[ContinuationId] = []
    for _ in range(plan.conversations):
        messages = [message for _ in range(plan.messages // 2) for message in texts.exchange()]
        appended = await contestants.app.conversations.append(AppendRequest(OWNER, messages))
        names.append(appended.continuation_id)
    await contestants.app.maintenance.index_words()
    return Data(tuple(names), ())


def keys_as_json(report: KeysReport) -> dict[str, Any]:
    """Return the report as plain values."""
    return {"version": __version__, **asdict(report)}


def keys_as_text(report: KeysReport) -> str:
    """Return a table of times with keys, and of their ratios to those without."""
    rows: list[tuple[str, ...]] = [("operation", "at once", "p50 ms", "without", "CPU us", "without", "time", "CPU")]
    rows += [
        (
            *(each.operation, str(each.callers), f"{each.exai.p50_ms:.2f}", f"{each.bare.p50_ms:.2f}"),
            *(f"{each.exai.cpu_us:,.0f}", f"{each.bare.cpu_us:,.0f}"),
            *(f"{each.latency_ratio:.2f} x", f"{each.cpu_ratio:.2f} x"),
        )
        for each in report.comparisons
    ]
    heading = [f"EXAI {__version__} on {report.machine}", f"servers: {report.servers}"]
    sizes = f"messages of {report.plan.message_bytes} bytes; {report.plan.rounds} rounds in turn, with and without keys"
    return "\n".join([*heading, sizes, "", *columns(rows)])
