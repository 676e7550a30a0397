"""Render the results of a run as a table or as JSON.

Invariant: a target is shown with what was measured for it, met or not, and nothing unmeasured is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from exai import __version__
from exai.bench.measure import Comparison
from exai.bench.operations import APPEND, FULL, HIT, MISS
from exai.bench.plan import TARGET_CALLERS
from exai.bench.run import Report

FAR_TARGET: Final = 1.1
BAR_WIDTH: Final = 30
CLEAR: Final = "\r\033[K"


@dataclass(frozen=True, slots=True)
class Target:
    """A target for a ratio or another figure; `seen` is None if it was not measured."""

    promise: str
    bound: float
    at: Literal["least", "most"]
    seen: float | None

    @property
    def verdict(self) -> str:
        """The verdict in one word."""
        if self.seen is None:
            return "not measured"
        return "met" if (self.seen >= self.bound if self.at == "least" else self.seen <= self.bound) else "missed"


def targets(report: Report) -> tuple[Target, ...]:
    """Return every target with the measured value."""
    near = _Found(report.sections[0].comparisons)
    far = _Found(report.sections[1].comparisons if len(report.sections) > 1 else ())
    return (
        Target("cached load: throughput of a bare GET and decode", 0.6, "least", near.throughput(HIT)),
        Target("cached load: processor time of a bare GET and decode", 1.7, "most", near.cpu(HIT)),
        Target("missed load: throughput of a bare prepared select", 0.7, "least", near.throughput(MISS)),
        Target("append: throughput of a bare insert", 0.7, "least", near.throughput(APPEND)),
        Target("full request afar: time of 1 Postgres and 2 Redis round trips", FAR_TARGET, "most", far.latency(FULL)),
    )


class _Found:
    """Looks up ratios in a section; None if one is missing."""

    def __init__(self, comparisons: Iterable[Comparison]) -> None:
        self._found = {(each.operation, each.callers): each for each in comparisons}

    def throughput(self, operation: str) -> float | None:
        found = self._found.get((operation, TARGET_CALLERS))
        return found.throughput_ratio if found else None

    def cpu(self, operation: str) -> float | None:
        found = self._found.get((operation, TARGET_CALLERS))
        return found.cpu_ratio if found else None

    def latency(self, operation: str) -> float | None:
        found = self._found.get((operation, 1))
        return found.latency_ratio if found else None


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as plain values."""
    return {
        "version": __version__,
        "servers": report.servers,
        "machine": report.machine,
        "plan": asdict(report.plan),
        "costs": [asdict(each) for each in (*report.costs, *report.floor_costs)],
        "uncounted": report.uncounted,
        "sections": [asdict(each) for each in report.sections],
        "absent": [asdict(each) for each in report.absent],
        "indexing_us": report.indexing_us,
        "targets": [{**asdict(each), "verdict": each.verdict} for each in targets(report)],
    }


def as_text(report: Report) -> str:
    """Return tables: costs on the wire, times beside the floors, targets."""
    plan = report.plan
    lines = [
        f"EXAI {__version__} on {report.machine}",
        f"servers: {report.servers}",
        f"data: {plan.conversations} conversations of {plan.messages} messages of {plan.message_bytes} bytes; "
        f"an append is one question and one answer; {plan.rounds} rounds in turn, medians",
        "",
        *_cost_lines(report),
    ]
    for section in report.sections:
        where = f", {section.latency_ms:g} ms away each way" if section.latency_ms else ""
        lines += ["", f"beside the least that could be done{where}", *time_lines(section.comparisons)]
    lines += [f"{each.name:<18}not measured: {each.reason}" for each in report.absent]
    lines += ["", f"put off by an append: {report.indexing_us:,.0f} us of statements that index a message's words"]
    return "\n".join([*lines, "", *target_lines(targets(report))])


def _cost_lines(report: Report) -> list[str]:
    if report.uncounted is not None:
        return [f"round trips were not counted: {report.uncounted}"]
    head = ("one operation, on the wire", "statements", "Postgres trips", "commands", "Redis trips")
    rows: list[tuple[str, ...]] = [
        (
            each.operation,
            *map(_shown, (each.statements, each.database_round_trips, each.commands, each.cache_round_trips)),
        )
        for each in report.costs
    ]
    return columns([head, *rows])


def _shown(number: int | None) -> str:
    return "-" if number is None else str(number)


def time_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """Return each operation's times beside its floor's."""
    ours, floor = ("at once", "ops/s", "p50 ms", "p99 ms", "CPU us"), ("floor", "ops/s", "p50 ms", "CPU us")
    head = ("operation", *ours, *floor, "ratio", "CPU ratio", "noise")
    return columns([head, *(_time_row(each) for each in comparisons)], texts=(0, 6))


def _time_row(each: Comparison) -> tuple[str, ...]:
    exai, bare = each.exai, each.bare
    return (
        each.operation,
        str(each.callers),
        *(f"{exai.ops_s:,.0f}", f"{exai.p50_ms:.2f}", f"{exai.p99_ms:.2f}", f"{exai.cpu_us:,.0f}"),
        each.floor,
        *(f"{bare.ops_s:,.0f}", f"{bare.p50_ms:.2f}", f"{bare.cpu_us:,.0f}"),
        *(f"{each.throughput_ratio:.2f}", f"{each.cpu_ratio:.2f}"),
        f"{max(exai.noise, bare.noise):.0%}",
    )


def target_lines(promised: Iterable[Target]) -> list[str]:
    """Return a table of targets with the measured values."""
    rows = [("target", "bound", "seen", "")]
    for each in promised:
        seen = "-" if each.seen is None else f"{each.seen:.2f}"
        rows.append((each.promise, f"{'>=' if each.at == 'least' else '<='} {each.bound:g}", seen, each.verdict))
    return columns(rows, texts=(0, 3))


def columns(rows: Sequence[Sequence[str]], texts: Sequence[int] = (0,)) -> list[str]:
    """Align columns: texts to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def bar(share: float, name: str) -> str:
    """Return one line of progress."""
    filled = round(share * BAR_WIDTH)
    return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {share:4.0%}  {name}"
