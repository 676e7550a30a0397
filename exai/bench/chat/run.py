"""Measure chats: the time that EXAI adds to a model's answer, and reads beside many streaming answers.

Invariant: each round measures a chat and a database round trip one after the other, so that other load on the machine
affects both, and a ratio is the median of the ratios of rounds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any, Final

from exai.app import App, open_app
from exai.bench.chat.provider import AT_ONCE, HOST, STEADY
from exai.bench.contestants import PATIENT, batched_range
from exai.bench.floors.postgres import OWNER, remove_all
from exai.bench.plan import Texts
from exai.bench.run import ReportProgress, machine
from exai.bench.servers import ServerAddresses, open_servers
from exai.conversations import AppendRequest, ChatRequest, ChatResult
from exai.errors import StartupError
from exai.models import ContinuationId, Delta, OnDelta
from exai.settings.load import load_settings

START_TIMEOUT_S: Final = 20.0
MESSAGE_BYTES: Final = 800
CONVERSATIONS: Final = 16
BESIDE_TARGET: Final = 5.0


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """Sizes of a run: messages of each conversation, chats, concurrent streaming chats, and reads beside them."""

    messages: int = 50
    chats: int = 200
    streams: int = 200
    reads: int = 2_000


FULL: Final = ChatPlan()
QUICK: Final = ChatPlan(chats=5, streams=8, reads=20)


@dataclass(frozen=True, slots=True)
class ChatReport:
    """The results. `before` is the time until the provider has the request, `after` the time from its last byte on.

    Ratios are to one database round trip. `idle` and `beside` are the times of a read of a conversation without and
    beside the streaming chats; `words_s` is the number of words a second that arrived meanwhile.
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
        progress(0.5, "reading")
        idle = await _reads(app, plan, names)
        progress(0.7, f"reading beside {plan.streams} chats")
        beside, words_s = await _reads_beside(app, plan, names)
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
        idle_p50_ms=_ms(idle),
        idle_p99_ms=_p99_ms(idle),
        beside_p50_ms=_ms(beside),
        beside_p99_ms=_p99_ms(beside),
        words_s=words_s,
    )


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
    await _times(port)
    for number in range(plan.chats):
        started = time.monotonic()
        await app.database.fetch("ping")
        trips.append(time.monotonic() - started)
        began.append(time.monotonic())
        await _ask(app, names[number % len(names)])
        ended.append(time.monotonic())
        progress(0.5 * number / plan.chats, "chats")
    seen = await _times(port)
    if len(seen) != plan.chats:
        raise StartupError("bench", f"the provider had {len(seen)} requests", "Run it again")
    before = [received - start for start, (received, _) in zip(began, seen, strict=True)]
    return trips, before, [end - last for end, (_, last) in zip(ended, seen, strict=True)]


async def _ask(app: App, name: ContinuationId) -> None:
    # The read puts the conversation into the cache, as an earlier call of its client would have.
    await app.conversations.read(OWNER, name)
    await app.chat.run(ChatRequest(OWNER, "Go on.", model=AT_ONCE, continuation_id=name))


async def _reads(app: App, plan: ChatPlan, names: Sequence[ContinuationId]) -> list[float]:
    seconds = []
    for number in range(plan.reads):
        started = time.perf_counter()
        await app.conversations.read(OWNER, names[number % len(names)])
        seconds.append(time.perf_counter() - started)
    return seconds


async def _reads_beside(app: App, plan: ChatPlan, names: Sequence[ContinuationId]) -> tuple[list[float], float]:
    """Read while chats stream; return the times, and the words a second that arrived meanwhile."""
    words, chats = _Words(), list[asyncio.Task[ChatResult]]()
    try:
        # A few at a time, because their beginning is not measured.
        for numbers in batched_range(plan.streams):
            begun = [asyncio.Event() for _ in numbers]
            for number, each in zip(numbers, begun, strict=True):
                request = ChatRequest(OWNER, "Tell me.", model=STEADY[number % len(STEADY)])
                asking = app.chat.run(request, words.counting(each))
                chats.append(asyncio.create_task(asking))
            await _all_streaming(begun, chats)
        words.count, started = 0, time.perf_counter()
        seconds = await _reads(app, plan, names)
        return seconds, words.count / (time.perf_counter() - started)
    finally:
        for chat in chats:
            chat.cancel()
        await asyncio.gather(*chats, return_exceptions=True)


async def _all_streaming(begun: Sequence[asyncio.Event], chats: Sequence[asyncio.Task[ChatResult]]) -> None:
    """Wait for the first word of each. Raises `StartupError` if a chat ends."""

    async def all_begun() -> None:
        for each in begun:
            await each.wait()

    waiting = asyncio.create_task(all_begun())
    either: set[asyncio.Task[Any]] = {waiting, *chats}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if not waiting.done():
        waiting.cancel()
        problem = next((str(chat.exception() or "it ended") for chat in chats if chat.done()), "")
        raise StartupError("bench", f"a chat did not stream: {problem}", "Run it with less other work")


class _Words:
    """Counts the words of all chats."""

    def __init__(self) -> None:
        self.count = 0

    def counting(self, begun: asyncio.Event) -> OnDelta:
        """Return a callback that counts the words of one chat, and sets `begun` at the first."""

        async def on_delta(delta: Delta) -> None:
            self.count += bool(delta.content)
            begun.set()

        return on_delta


async def _times(port: int) -> list[tuple[float, float]]:
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(b"GET /times HTTP/1.1\r\nhost: bench\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    size = int(await reader.readline(), 16)
    found = json.loads(await reader.readexactly(size))
    writer.close()
    return [(received, last) for received, last in found]


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
            f"a read of a conversation, {plan.reads} in turn",
            f"  idle                                 p50 {report.idle_p50_ms:.2f} ms, p99 {report.idle_p99_ms:.2f} ms",
            f"  beside {plan.streams} chats, {report.words_s:,.0f} words/s  "
            f"p50 {report.beside_p50_ms:.2f} ms, p99 {report.beside_p99_ms:.2f} ms, {report.beside_ratio:.1f} times",
            f"  target: p99 below {BESIDE_TARGET:g} times idle: {verdict}",
        ]
    )
