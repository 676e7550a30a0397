"""Measure chats: the time that EXAI adds to a model's answer, and reads beside many streaming answers.

Invariant: each round measures a chat and a database round trip one after the other, so that other load on the machine
affects both, and a ratio is the median of the ratios of rounds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any, Final

from exai.app import App, open_app
from exai.bench.chat.daemon import read_beside_chats, read_beside_pages
from exai.bench.chat.provider import AT_ONCE, HOST, STEADY, ask_provider
from exai.bench.contestants import PATIENT
from exai.bench.floors.postgres import OWNER, remove_all
from exai.bench.plan import Texts
from exai.bench.run import ReportProgress, machine
from exai.bench.servers import ServerAddresses, open_servers
from exai.conversations import AppendRequest, ChatRequest
from exai.errors import StartupError
from exai.models import ContinuationId
from exai.settings.load import load_settings

START_TIMEOUT_S: Final = 20.0
MESSAGE_BYTES: Final = 800
CONVERSATIONS: Final = 16
BESIDE_TARGET: Final = 5.0


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """Sizes of a run: messages of each conversation, chats, concurrent streaming chats, and reads beside them.

    Reads beside each number of open `pages` take turns in `rounds`.
    """

    messages: int = 50
    chats: int = 200
    streams: int = 200
    reads: int = 2_000
    pages: tuple[int, ...] = (0, 1, 5)
    rounds: int = 4


FULL: Final = ChatPlan()
QUICK: Final = ChatPlan(chats=5, streams=8, reads=20, rounds=1)


@dataclass(frozen=True, slots=True)
class PageTimes:
    """Times of `conversation_get` beside a number of open pages, and their ratios to those without a page."""

    p50_ms: float
    p99_ms: float
    p50_ratio: float
    p99_ratio: float


@dataclass(frozen=True, slots=True)
class ChatReport:
    """The results. `before` is the time until the provider has the request, `after` the time from its last byte on.

    Ratios are to one database round trip. `idle` and `beside` are the times of `conversation_get` by a client of a
    daemon, without and beside the streaming chats of other clients; `words_s` is the number of words a second of these.
    """

    plan: ChatPlan
    servers: str
    machine: str
    round_trip_ms: float
    before_ms: float
    after_ms: float
    before_ratio: float
    after_ratio: float
    idle_p50_ms: float
    idle_p99_ms: float
    beside_p50_ms: float
    beside_p99_ms: float
    words_s: float
    pages: Mapping[int, PageTimes]

    @property
    def beside_ratio(self) -> float:
        """The p99 of reads beside the chats, relative to that without them."""
        return self.beside_p99_ms / self.idle_p99_ms


async def run_chat(plan: ChatPlan, *, here: bool, progress: ReportProgress) -> ChatReport:
    """Run all measurements. Raises as `open_app`."""
    async with open_servers(load_settings(), here=here) as servers, _open_provider() as port:
        await remove_all(servers.postgres_url)
        try:
            return await _measure(plan, servers, port, progress)
        finally:
            await remove_all(servers.postgres_url)


async def _measure(plan: ChatPlan, servers: ServerAddresses, port: int, progress: ReportProgress) -> ChatReport:
    url = f"http://{HOST}:{port}/v1"
    endpoints = {f"bench-{model}": {"base_url": url, "models": [model]} for model in (AT_ONCE, *STEADY)}
    addresses = {
        "EXAI_DATABASE__URL": servers.postgres_url,
        "EXAI_CACHE__URL": servers.redis_url or "off",
        "EXAI_PROVIDERS__ENDPOINTS": json.dumps(endpoints),
    }
    async with open_app(load_settings(overrides={**addresses, **PATIENT})) as app:
        progress(0.0, "making conversations")
        names = await _conversations(app, plan)
        trips, before, after = await _added(app, port, plan, names, progress)
    progress(0.5, f"reading through a daemon, then beside {plan.streams} chats")
    times = await read_beside_chats(addresses, port, names[0], streams=plan.streams, reads=plan.reads)
    progress(0.8, f"reading beside {plan.pages[-1]} open pages")
    beside = await read_beside_pages(addresses, names[0], pages=plan.pages, reads=plan.reads, rounds=plan.rounds)
    progress(1.0, "done")
    return ChatReport(
        plan,
        servers.shown,
        machine(),
        round_trip_ms=_ms(trips),
        before_ms=_ms(before),
        after_ms=_ms(after),
        before_ratio=_ratio(before, trips),
        after_ratio=_ratio(after, trips),
        idle_p50_ms=_ms(times.idle),
        idle_p99_ms=_p99_ms(times.idle),
        beside_p50_ms=_ms(times.beside),
        beside_p99_ms=_p99_ms(times.beside),
        words_s=times.words_s,
        pages=_page_times(beside),
    )


def _page_times(beside: Mapping[int, Sequence[float]]) -> dict[int, PageTimes]:
    alone = beside[0]
    return {
        number: PageTimes(_ms(times), _p99_ms(times), _ms(times) / _ms(alone), _p99_ms(times) / _p99_ms(alone))
        for number, times in beside.items()
    }


async def _conversations(app: App, plan: ChatPlan) -> list[ContinuationId]:
    texts = Texts(MESSAGE_BYTES)
    names = []
    for _ in range(CONVERSATIONS):
        messages = [message for _ in range(plan.messages // 2) for message in texts.exchange()]
        names.append((await app.conversations.append(AppendRequest(OWNER, messages))).continuation_id)
    await app.maintenance.index_words()
    return names


async def _added(
    app: App, port: int, plan: ChatPlan, names: Sequence[ContinuationId], progress: ReportProgress
) -> tuple[list[float], list[float], list[float]]:
    """Return seconds of a database round trip, before the provider and after it, each by round."""
    trips, began, ended = [], [], []
    await _ask(app, names[0])
    await ask_provider(port, "/times")
    for number in range(plan.chats):
        started = time.monotonic()
        await app.database.fetch("ping")
        trips.append(time.monotonic() - started)
        began.append(time.monotonic())
        await _ask(app, names[number % len(names)])
        ended.append(time.monotonic())
        progress(0.5 * number / plan.chats, "chats")
    seen = await ask_provider(port, "/times")
    if len(seen) != plan.chats:
        raise StartupError("bench", f"the provider had {len(seen)} requests", "Run it again")
    before = [received - start for start, (received, _) in zip(began, seen, strict=True)]
    return trips, before, [end - last for end, (_, last) in zip(ended, seen, strict=True)]


async def _ask(app: App, name: ContinuationId) -> None:
    # The read puts the conversation into the cache, as an earlier call of its client would have.
    await app.conversations.read(OWNER, name)
    await app.chat.run(ChatRequest(OWNER, "Go on.", model=AT_ONCE, continuation_id=name))


@asynccontextmanager
async def _open_provider() -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "exai.bench.chat.provider"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None  # noqa: S101 - asked for above
        async with asyncio.timeout(START_TIMEOUT_S):
            line = await process.stdout.readline()
        if not line:
            raise StartupError("bench", "its provider did not start", "See the output above")
        yield int(json.loads(line)["port"])
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _ratio(seconds: Sequence[float], trips: Sequence[float]) -> float:
    return median(one / trip for one, trip in zip(seconds, trips, strict=True))


def _ms(seconds: Sequence[float]) -> float:
    return median(seconds) * 1_000


def _p99_ms(seconds: Sequence[float]) -> float:
    return quantiles(seconds, n=100, method="inclusive")[98] * 1_000


def chat_as_json(report: ChatReport) -> dict[str, Any]:
    """Return the report as plain values."""
    return {**asdict(report), "beside_ratio": report.beside_ratio}


def chat_as_text(report: ChatReport) -> str:
    """Return the report as lines."""
    plan = report.plan
    verdict = "met" if report.beside_ratio < BESIDE_TARGET else "missed"
    return "\n".join(
        [
            f"EXAI on {report.machine}",
            f"servers: {report.servers}",
            "",
            f"a chat in a cached conversation of {plan.messages} messages, median of {plan.chats}; "
            f"a database round trip takes {report.round_trip_ms:.2f} ms",
            f"  before the provider has the request  {report.before_ms:.2f} ms, {report.before_ratio:.1f} round trips",
            f"  after the provider's last byte       {report.after_ms:.2f} ms, {report.after_ratio:.1f} round trips",
            "",
            f"conversation_get by WebSocket, a client in its own process, {plan.reads} in turn",
            f"  idle                                 p50 {report.idle_p50_ms:.2f} ms, p99 {report.idle_p99_ms:.2f} ms",
            f"  beside {plan.streams} chats, {report.words_s:,.0f} words/s  "
            f"p50 {report.beside_p50_ms:.2f} ms, p99 {report.beside_p99_ms:.2f} ms, {report.beside_ratio:.1f} times",
            f"  target: p99 below {BESIDE_TARGET:g} times idle: {verdict}",
            "",
            f"conversation_get as above beside open pages, {plan.reads} in turn each",
            *(
                f"  {number} open  p50 {each.p50_ms:.2f} ms, p99 {each.p99_ms:.2f} ms, "
                f"{each.p50_ratio:.2f} and {each.p99_ratio:.2f} times"
                for number, each in report.pages.items()
            ),
        ]
    )
