"""`exai bench --scale`: the cost of operations on a small and on a very large database.

Invariant: both are measured in one run, on the same servers, by the same lines; only what is stored differs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from exai.app import App
from exai.bench.batch import run_batch
from exai.bench.contestants import UNSAMPLED, open_contestants
from exai.bench.floors.postgres import OWNER, make_tables, remove_all
from exai.bench.floors.seed_data import DEEP_ID, SeedData, open_seed_data, wide_id
from exai.bench.plan import Plan, Texts
from exai.bench.report import Target, columns, target_lines
from exai.bench.run import ReportProgress, machine
from exai.bench.servers import ServerAddresses, open_servers
from exai.conversations import AppendRequest
from exai.db.conversations import ConversationRepository
from exai.db.search import SearchQuery
from exai.models import PAGE_MESSAGES, ContinuationId, ConversationKey, NewMessage
from exai.settings.load import load_settings

ROUNDS: Final = 5
OPERATIONS: Final = 200
READERS: Final = 200
DAEMONS: Final = 3
COLD_ROUNDS: Final = 5
SEARCH_HITS: Final = 20
WARM_UP: Final = 500
MIB: Final = 1_048_576
READS: Final = ("read_page", "read_pages")

GROWTH: Final = 1.5
"""Maximum ratio of large to small: one more index level, and a colder page."""

SEARCH_BOUND: Final = 20.0
MEMORY_MIB: Final = 16.0

LOAD_DEEP, APPEND_DEEP = "load, of a long conversation", "append, to a long conversation"
LOAD, APPEND, LIST = "load, of one among many", "append, to one among many", "list"
SEARCH: Final = "search"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the small and the large database."""

    conversations: tuple[int, int] = (1_000, 1_000_000)
    messages: tuple[int, int] = (100, 100_000)
    read: int = 10_000


FULL: Final = Sizes()
QUICK: Final = Sizes((200, 20_000), (100, 5_000), 2_000)


@dataclass(frozen=True, slots=True)
class ScaleReport:
    """Best p50 of the rounds in ms, small and large; database reads of an uncached conversation; memory."""

    sizes: Sizes
    servers: str
    machine: str
    little_ms: dict[str, float]
    much_ms: dict[str, float]
    cold_reads: int
    grown_mib: float

    def targets(self) -> tuple[Target, ...]:
        """Return every target with the measured value."""
        grown = [
            Target(f"{name}: times of little stored", GROWTH, "most", self.much_ms[name] / self.little_ms[name])
            for name in (LOAD_DEEP, APPEND_DEEP, LOAD, APPEND, LIST)
        ]
        searched = self.much_ms[SEARCH] / self.much_ms[LOAD]
        return (
            *grown,
            Target("search of everything: times of reading one message", SEARCH_BOUND, "most", searched),
            Target(f"{READERS} readers of a cold conversation: database reads", 1, "most", self.cold_reads),
            Target(f"{self.sizes.read:,} conversations read: growth in MiB", MEMORY_MIB, "most", self.grown_mib),
        )


async def run_scale(sizes: Sizes, *, here: bool, progress: ReportProgress) -> ScaleReport:
    """Fill, measure, fill much more, and measure again. Raises as `open_app`."""
    async with open_servers(load_settings(), here=here) as servers:
        await remove_all(servers.postgres_url)
        try:
            return await _Scale(sizes, servers, progress).run()
        finally:
            # Embedded servers are removed with their data.
            if here:
                progress(0.99, "removing everything")
                await remove_all(servers.postgres_url)
            progress(1.0, "done")


class _Scale:
    def __init__(self, sizes: Sizes, servers: ServerAddresses, progress: ReportProgress) -> None:
        self._sizes, self._servers, self._progress = sizes, servers, progress
        self._texts = Texts(Plan().message_bytes)

    async def run(self) -> ScaleReport:
        await make_tables(self._servers.postgres_url)
        (few, many), (short, long) = self._sizes.conversations, self._sizes.messages
        async with open_seed_data(self._servers.postgres_url, self._texts.words) as seed:
            await self._fill(seed, (1, few), (1, short), (0.0, 0.02))
            little = await self._measure(few, 0.05)
            await self._fill(seed, (few + 1, many), (short + 1, long), (0.1, 0.7))
            much = await self._measure(many, 0.85)
            self._progress(0.9, "reading one cold conversation from everywhere")
            cold_reads = await self._cold_reads()
            self._progress(0.93, "reading very many conversations")
            grown_mib = await self._growth()
        return ScaleReport(self._sizes, self._servers.shown, machine(), little, much, cold_reads, grown_mib)

    async def _fill(
        self, seed: SeedData, conversations: tuple[int, int], messages: tuple[int, int], share: tuple[float, float]
    ) -> None:
        """Insert conversations, and messages of one of them, numbered from the first to the last of each."""
        first, last = conversations
        async for seq in seed.deep(*messages):
            self._progress(share[0], f"{seq:,} messages of one conversation")
        async for number in seed.wide(first, last):
            done = (number - first) / (last - first + 1)
            self._progress(share[0] + done * (share[1] - share[0]), f"{number:,} conversations")
        self._progress(share[1], "letting the server tidy up")
        await seed.settle()

    async def _measure(self, conversations: int, share: float) -> dict[str, float]:
        found = {}
        async with open_contestants(self._servers, 0, UNSAMPLED) as contestants:
            runs = self._operations(contestants.app, conversations)
            for name, run in runs.items():
                self._progress(share, name)
                await run_batch(run, 1, OPERATIONS // 4)
                # Deferred work of the previous operation must not be measured here.
                await contestants.app.maintenance.index_words()
                found[name] = min([(await run_batch(run, 1, OPERATIONS)).p50_ms for _ in range(ROUNDS)])
        return found

    def _operations(self, app: App, conversations: int) -> dict[str, Callable[[int], Awaitable[bool]]]:
        repository, service = ConversationRepository(app.database), app.conversations

        def one(number: int) -> ContinuationId:
            # A stride that visits all of them before it repeats one.
            return wide_id(1 + number * 7_919 % conversations)

        def load(name: Callable[[int], ContinuationId]) -> Callable[[int], Awaitable[bool]]:
            async def run(number: int) -> bool:
                page = await repository.read_page(ConversationKey(OWNER, name(number)), limit=PAGE_MESSAGES)
                return bool(page.messages)

            return run

        def append(name: Callable[[int], ContinuationId]) -> Callable[[int], Awaitable[bool]]:
            async def run(number: int) -> bool:
                await service.append(AppendRequest(OWNER, [NewMessage("user", self._texts.text())], name(number)))
                return True

            return run

        async def listed(_: int) -> bool:
            return bool((await service.list(OWNER, limit=PAGE_MESSAGES)).conversations)

        async def search(number: int) -> bool:
            await service.search(SearchQuery(OWNER, self._texts.query(number)), limit=SEARCH_HITS)
            return True

        return {
            LOAD_DEEP: load(lambda _: DEEP_ID),
            APPEND_DEEP: append(lambda _: DEEP_ID),
            LOAD: load(one),
            APPEND: append(one),
            LIST: listed,
            SEARCH: search,
        }

    async def _cold_reads(self) -> int:
        """Read an uncached conversation from three daemons at once; return the maximum number of database reads."""
        async with AsyncExitStack() as stack:
            apps = [
                (await stack.enter_async_context(open_contestants(self._servers, 0, UNSAMPLED))).app
                for _ in range(DAEMONS)
            ]
            most = 0
            for each in range(COLD_ROUNDS):
                before = [_reads(app) for app in apps]
                name = wide_id(self._sizes.conversations[0] - each)
                readers = (apps[number % DAEMONS].conversations.read(OWNER, name) for number in range(READERS))
                await asyncio.gather(*readers)
                most = max(most, sum(_reads(app) for app in apps) - sum(before))
            return most

    async def _growth(self) -> float:
        """Read a large number of conversations sequentially; return the growth of this process in MiB."""
        async with open_contestants(self._servers, 0, UNSAMPLED) as contestants:
            service = contestants.app.conversations
            for number in range(1, WARM_UP + 1):
                await service.read(OWNER, wide_id(number))
            before = _resident_mib()
            for number in range(WARM_UP + 1, WARM_UP + 1 + self._sizes.read):
                await service.read(OWNER, wide_id(1 + number % self._sizes.conversations[1]))
            return _resident_mib() - before


def _reads(app: App) -> int:
    return int(sum(app.recorder.value("db_statements_total", statement=name) for name in READS))


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def as_json(report: ScaleReport) -> dict[str, Any]:
    """Return the report as plain values."""
    return {
        "servers": report.servers,
        "machine": report.machine,
        "conversations": report.sizes.conversations,
        "messages": report.sizes.messages,
        "little_ms": report.little_ms,
        "much_ms": report.much_ms,
        "cold_reads": report.cold_reads,
        "grown_mib": report.grown_mib,
        "targets": [{"promise": each.promise, "seen": each.seen, "verdict": each.verdict} for each in report.targets()],
    }


def as_text(report: ScaleReport) -> str:
    """Return the report as a table."""
    few, many = report.sizes.conversations
    short, long = report.sizes.messages
    head = ("p50 ms, one caller", "little stored", "much stored")
    rows = [(name, f"{report.little_ms[name]:.2f}", f"{report.much_ms[name]:.2f}") for name in report.little_ms]
    return "\n".join(
        (
            f"EXAI on {report.machine}",
            f"servers: {report.servers}",
            f"little: {few:,} conversations, one of {short:,} messages; much: {many:,}, one of {long:,}",
            "",
            *columns([head, *rows]),
            "",
            *target_lines(report.targets()),
        )
    )
