"""Render the results of `exai bench --door` as a table or as JSON.

Invariant: the one of `report`: a target is shown with what was measured for it, met or not.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from exai import __version__
from exai.bench.door.run import CALL_HTTP, CALL_WEBSOCKET, TEXT_BYTES, DoorReport, Idle
from exai.bench.report import Target, columns, target_lines, time_lines

CPU_RATIO: Final = 1.5
IDLE_KB: Final = 30.0
IDLE_CORE: Final = 0.02
TAIL_RATIO: Final = 10.0
LEAST_SHARE: Final = 0.5
KB: Final = 1_000


def door_targets(report: DoorReport) -> tuple[Target, ...]:
    """Return every target with the measured value."""
    by_socket, by_http = (
        max((each for each in report.comparisons if each.operation == name), key=lambda each: each.callers)
        for name in (CALL_WEBSOCKET, CALL_HTTP)
    )
    bytes_each = report.idle.bytes_each
    crowd = report.crowd
    return (
        Target("call by WebSocket: processor time of a bare echo", CPU_RATIO, "most", by_socket.cpu_ratio),
        Target("call by HTTP: processor time of a bare uvicorn answer", CPU_RATIO, "most", by_http.cpu_ratio),
        Target("idle connection: kB of memory", IDLE_KB, "most", None if bytes_each is None else bytes_each / KB),
        Target("idle connections: share of a core", IDLE_CORE, "most", report.idle.core_share),
        Target("without a pause: p99 over p50", TAIL_RATIO, "most", crowd.p99_ms / crowd.p50_ms),
        Target("without a pause: least of a fair share", LEAST_SHARE, "least", crowd.least_share),
    )


def door_as_json(report: DoorReport) -> dict[str, Any]:
    """Return the report as plain values."""
    return {
        "version": __version__,
        **asdict(report),
        "targets": [{**asdict(each), "verdict": each.verdict} for each in door_targets(report)],
    }


def door_as_text(report: DoorReport) -> str:
    """Return tables of calls, idle connections, concurrent connections and targets."""
    plan, crowd = report.plan, report.crowd
    rows = [
        ("idle connections", "number", "kB each", "of a core"),
        _idle_row("the door's", report.idle),
        _idle_row("the echo's", report.idle_of_echo),
    ]
    crowded = [
        ("without a pause", "number", "ops/s", "p50 ms", "p99 ms", "least share", "most share"),
        (
            "the door's",
            str(crowd.connections),
            *(f"{crowd.ops_s:,.0f}", f"{crowd.p50_ms:.2f}", f"{crowd.p99_ms:.2f}"),
            *(f"{crowd.least_share:.2f}", f"{crowd.most_share:.2f}"),
        ),
    ]
    return "\n".join(
        [
            f"EXAI {__version__} on {report.machine}",
            f"a tool that says back {TEXT_BYTES} bytes, by the daemon's doors with its logs and metrics, beside "
            "`orjson` on `websockets` or on uvicorn alone;",
            f"each server in a process of its own, CPU is the server's; {plan.rounds} rounds in turn, medians",
            *report.notes,
            "",
            *time_lines(report.comparisons),
            "",
            *columns(rows),
            f"over {report.idle.seconds:g} s each, pinged as by default",
            "",
            *columns(crowded),
            "",
            *target_lines(door_targets(report)),
        ]
    )


def _idle_row(name: str, idle: Idle) -> tuple[str, ...]:
    memory = "-" if idle.bytes_each is None else f"{idle.bytes_each / KB:.1f}"
    return name, f"{idle.connections:,}", memory, f"{idle.core_share:.2%}"
