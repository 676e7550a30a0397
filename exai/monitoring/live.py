"""Live numbers: the work of a daemon since its start and in the last minutes, and its running calls.

Invariant: reading them waits for nothing and changes nothing. The numbers of several processes add up to those of
their daemon.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from exai.monitoring.metrics import MetricsRecorder

RATE_S: Final = 60.0
RECENT_S: Final = 300.0
TOOL_CALL: Final = "tools/call"
NO_ERROR: Final = frozenset({"ok", "cancelled"})
"""Outcomes of calls that are not errors: a client that cancels a call has decided so."""

TOKEN_KINDS: Final = ("input", "output", "cached", "reasoning")


@dataclass(slots=True)
class ToolNumbers:
    """Calls of one tool: since the start, and the durations of the latest ones."""

    calls: int = 0
    errors: int = 0
    recent: int = 0
    seconds: list[float] = field(default_factory=list)


@dataclass(slots=True)
class ProcessNumbers:
    """The numbers of one process, or the sums of several."""

    pids: list[int]
    uptime_s: float
    requests_per_s: float = 0.0
    errors_recent: int = 0
    tools: dict[str, ToolNumbers] = field(default_factory=dict)
    cache: dict[str, int] = field(default_factory=dict)
    pool: dict[str, int] = field(default_factory=dict)
    providers: list[dict[str, Any]] = field(default_factory=list)
    sessions: int = 0
    running: int = 0
    cost_usd: float = 0.0
    tokens: dict[str, int] = field(default_factory=dict)
    recorder: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return all fields in a form that `read_numbers` takes, in another process."""
        return asdict(self)


def read_numbers(given: Mapping[str, Any]) -> ProcessNumbers:
    """Return the numbers that another process has sent."""
    tools = {name: ToolNumbers(**numbers) for name, numbers in given["tools"].items()}
    return ProcessNumbers(**{**given, "tools": tools})


@dataclass(frozen=True, slots=True)
class ToolActivity:
    """One tool in a snapshot. Quantiles are those of the latest calls within 300 s, None if there was none."""

    tool: str
    calls: int
    errors: int
    recent: int
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class LiveSnapshot:
    """The numbers of a daemon at one time. `requests` and `errors` count calls of tools since the start."""

    at: datetime
    pids: tuple[int, ...]
    uptime_s: float
    requests: int
    requests_per_s: float
    errors: int
    errors_recent: int
    tools: tuple[ToolActivity, ...]
    cache: Mapping[str, Any]
    pool: Mapping[str, int]
    providers: Sequence[Mapping[str, Any]]
    sessions: int
    running: int
    cost_usd: float
    tokens: Mapping[str, int]
    recorder: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return the snapshot for JSON."""
        return {**asdict(self), "at": self.at.isoformat(timespec="milliseconds")}


GatherNumbers = Callable[[ProcessNumbers], Awaitable[Iterable[ProcessNumbers]]]
"""Returns the numbers of all processes of a daemon, given those of this one."""


class Live:
    """Reads the numbers of this process, and with `gather` of all processes of its daemon.

    `pool` returns the connections in use, open and allowed; `providers` the state of each provider; `running` the
    number of turns that wait for a model.
    """

    def __init__(
        self,
        recorder: MetricsRecorder,
        *,
        pool: Callable[[], tuple[int, int, int]],
        providers: Callable[[], list[dict[str, Any]]],
        running: Callable[[], int],
        gather: GatherNumbers | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._recorder, self._clock, self._now = recorder, clock, now
        self._pool, self._providers, self._running = pool, providers, running
        self._gather = gather
        self._started = clock()

    def gather_by(self, gather: GatherNumbers) -> None:
        """Read the numbers of the other processes of the daemon so."""
        self._gather = gather

    def numbers(self) -> ProcessNumbers:
        """Return the numbers of this process."""
        recorder = self._recorder
        in_use, is_open, size = self._pool()
        return ProcessNumbers(
            pids=[os.getpid()],
            uptime_s=round(self._clock() - self._started, 1),
            requests_per_s=recorder.recent("mcp_requests_total", RATE_S, method=TOOL_CALL) / RATE_S,
            errors_recent=sum(
                int(recorder.recent("mcp_requests_total", RECENT_S, method=TOOL_CALL, outcome=outcome))
                for outcome in self._outcomes() - NO_ERROR
            ),
            tools=self._tools(),
            cache={
                "hits": int(recorder.value("cache_reads_total", result="hit")),
                "misses": int(recorder.value("cache_reads_total", result="miss")),
                "recent_hits": int(recorder.recent("cache_reads_total", RECENT_S, result="hit")),
                "recent_misses": int(recorder.recent("cache_reads_total", RECENT_S, result="miss")),
            },
            pool={"in_use": in_use, "open": is_open, "size": size},
            providers=self._providers(),
            sessions=int(recorder.value("mcp_sessions")),
            running=self._running(),
            cost_usd=recorder.value("provider_cost_usd_total"),
            tokens={kind: int(recorder.value("provider_tokens_total", kind=kind)) for kind in TOKEN_KINDS},
            recorder={
                "waiting": int(recorder.value("recorder_queue")),
                "stored": int(recorder.value("recorder_events_total", outcome="stored")),
                "dropped": int(recorder.value("recorder_dropped_total")),
                "failed_flushes": int(recorder.value("recorder_flushes_total", outcome="failed")),
            },
        )

    async def gather(self) -> LiveSnapshot:
        """Return the numbers of all processes of this daemon."""
        own = self.numbers()
        return self._snapshot([own] if self._gather is None else await self._gather(own))

    def _outcomes(self) -> set[str]:
        return {dict(labels)["outcome"] for labels in self._recorder.labelled("mcp_requests_total")}

    def _tools(self) -> dict[str, ToolNumbers]:
        tools: dict[str, ToolNumbers] = {}
        for labels, calls in self._recorder.labelled("mcp_requests_total").items():
            by = dict(labels)
            if by["method"] == TOOL_CALL:
                numbers = tools.setdefault(by["tool"], ToolNumbers())
                numbers.calls += int(calls)
                numbers.errors += int(calls) if by["outcome"] not in NO_ERROR else 0
        for tool, numbers in tools.items():
            labels_of = {"method": TOOL_CALL, "tool": tool}
            numbers.recent = int(self._recorder.recent("mcp_requests_total", RECENT_S, **labels_of))
            numbers.seconds = self._recorder.latest("mcp_request_seconds", RECENT_S, **labels_of)
        return tools

    def _snapshot(self, processes: Iterable[ProcessNumbers]) -> LiveSnapshot:
        total = add_up(processes)
        read = total.cache["hits"] + total.cache["misses"]
        tools = sorted(total.tools.items(), key=lambda each: (-each[1].calls, each[0]))
        return LiveSnapshot(
            at=self._now(),
            pids=tuple(total.pids),
            uptime_s=total.uptime_s,
            requests=sum(each.calls for each in total.tools.values()),
            requests_per_s=round(total.requests_per_s, 2),
            errors=sum(each.errors for each in total.tools.values()),
            errors_recent=total.errors_recent,
            tools=tuple(_activity(name, numbers) for name, numbers in tools),
            cache={**total.cache, "hit_rate": round(total.cache["hits"] / read, 4) if read else None},
            pool=total.pool,
            providers=total.providers,
            sessions=total.sessions,
            running=total.running,
            cost_usd=round(total.cost_usd, 6),
            tokens=total.tokens,
            recorder=total.recorder,
        )


def add_up(processes: Iterable[ProcessNumbers]) -> ProcessNumbers:
    """Return the sum of at least one process; a provider is in the worst state that a process sees."""
    first, *others = processes
    total = read_numbers(first.as_json())
    for each in others:
        total.pids += each.pids
        total.uptime_s = max(total.uptime_s, each.uptime_s)
        total.requests_per_s += each.requests_per_s
        total.errors_recent += each.errors_recent
        total.sessions += each.sessions
        total.running += each.running
        total.cost_usd += each.cost_usd
        for name in ("cache", "pool", "tokens", "recorder"):
            sums: dict[str, int] = getattr(total, name)
            for key, value in getattr(each, name).items():
                sums[key] = sums.get(key, 0) + value
        for tool, numbers in each.tools.items():
            own = total.tools.setdefault(tool, ToolNumbers())
            own.calls += numbers.calls
            own.errors += numbers.errors
            own.recent += numbers.recent
            own.seconds += numbers.seconds
        total.providers = _worst(total.providers, each.providers)
    return total


def _worst(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[dict[str, Any]]:
    known = {each["name"]: each for each in other}
    return [max(each, known.get(each["name"], each), key=lambda it: _RANK.get(it["breaker"], 0)) for each in one]


_RANK: Final = {"closed": 0, "half_open": 1, "open": 2}


def _activity(tool: str, numbers: ToolNumbers) -> ToolActivity:
    seconds = sorted(numbers.seconds)
    p50, p99 = (
        round(seconds[min(int(len(seconds) * share), len(seconds) - 1)] * 1000, 2) if seconds else None
        for share in (0.5, 0.99)
    )
    return ToolActivity(tool, numbers.calls, numbers.errors, numbers.recent, p50, p99)
