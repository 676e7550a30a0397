"""Reports of one store, as text, JSON and Markdown, and the table of several."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conversation_store_conformance.runner import Outcome

MARKS = {"passed": "ok", "failed": "FAILED", "skipped": "-", "diverges": "diverges"}


@dataclass(frozen=True)
class Report:
    """The outcomes of all rules that were chosen, in the order of their groups."""

    store: str
    seed: str
    capabilities: Sequence[str]
    lacking: Sequence[str]
    outcomes: Sequence[Outcome]
    costs: Mapping[str, Mapping[str, float]]

    @property
    def passed(self) -> bool:
        """Return whether no rule failed; declared divergences are none."""
        return all(each.status != "failed" for each in self.outcomes)

    @property
    def counts(self) -> Mapping[str, int]:
        """Return the number of rules by status."""
        return Counter(each.status for each in self.outcomes)

    def as_json(self) -> dict[str, Any]:
        """Return the report for programs."""
        return {
            "store": self.store,
            "seed": self.seed,
            "passed": self.passed,
            "counts": dict(self.counts),
            "capabilities": list(self.capabilities),
            "lacking": list(self.lacking),
            "rules": [
                {
                    "id": each.rule.id,
                    "group": each.rule.group,
                    "sentence": each.rule.sentence,
                    "status": each.status,
                    **({"problem": each.problem} if each.problem else {}),
                    **({"reason": each.reason} if each.reason else {}),
                    **({"notes": list(each.notes)} if each.notes else {}),
                    **({"history": list(each.history)} if each.history else {}),
                    "took_s": round(each.took_s, 3),
                }
                for each in self.outcomes
            ],
            "costs": {name: dict(cost) for name, cost in self.costs.items()},
        }

    def as_text(self) -> str:
        """Return the report for a terminal; a failure has the calls that led to it."""
        lines = [f"{self.store}, seed {self.seed}"]
        for each in self.outcomes:
            beside = each.problem if each.status == "failed" else each.reason or "; ".join(each.notes)
            lines.append(f"{MARKS[each.status]:>8}  {each.rule.id:<32} {beside or each.rule.sentence}".rstrip())
            if each.status == "failed":
                lines += [f"{'':10}| {line}" for line in each.history]
        lines += [f"{name}: {_cost(cost)}" for name, cost in self.costs.items()]
        lines.append(", ".join(f"{count} {status}" for status, count in self.counts.items()))
        return "\n".join(lines)

    def as_markdown(self) -> str:
        """Return the report as a Markdown table."""
        lines = [f"## {self.store}", "", "| rule | what it demands | outcome |", "|---|---|---|"]
        for each in self.outcomes:
            beside = _cell("; ".join(filter(None, (each.problem, each.reason, *each.notes))))
            outcome = f"{MARKS[each.status]}{f': {beside}' if beside else ''}"
            lines.append(f"| `{each.rule.id}` | {_cell(each.rule.sentence)} | {outcome} |")
        if self.costs:
            lines += ["", "| call | cost |", "|---|---|"]
            lines += [f"| {name} | {_cost(cost)} |" for name, cost in self.costs.items()]
        return "\n".join([*lines, "", f"Seed {self.seed}."])


def as_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Return the reports of several stores, as JSON, as one Markdown table, followed by what failed."""
    names = [each["store"] for each in reports]
    by_store = [{rule["id"]: rule for rule in each["rules"]} for each in reports]
    ids = list(dict.fromkeys(rule["id"] for each in reports for rule in each["rules"]))
    lines = [f"| rule | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for name in ids:
        cells = [_mark(rules.get(name)) for rules in by_store]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    totals = [f"{each['counts'].get('passed', 0)} of {_judged(each)}" for each in reports]
    lines.append(f"| **kept** | {' | '.join(totals)} |")
    for each in reports:
        found = [rule for rule in each["rules"] if rule["status"] in ("failed", "diverges")]
        if found:
            lines += ["", f"**{each['store']}**", ""]
            lines += [f"* `{rule['id']}`: {_cell(rule['problem'])}{_because(rule)}" for rule in found]
    return "\n".join(lines)


def _judged(report: Mapping[str, Any]) -> int:
    return sum(count for status, count in report["counts"].items() if status != "skipped")


def _because(rule: Mapping[str, Any]) -> str:
    return f" (declared: {rule['reason']})" if rule.get("reason") else ""


def _mark(rule: Mapping[str, Any] | None) -> str:
    if rule is None or rule["status"] == "skipped":
        return "-"
    if rule["status"] == "passed":
        return "refused" if any(note.startswith("refused") for note in rule.get("notes", ())) else "ok"
    return "**no**" if rule["status"] == "failed" else "no, declared"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())[:300]


def _cost(cost: Mapping[str, float]) -> str:
    return ", ".join(f"{value:g} {name}" for name, value in cost.items())


def as_json_text(report: Report) -> str:
    """Return the JSON of a report as text."""
    return json.dumps(report.as_json(), indent=1, ensure_ascii=True)
