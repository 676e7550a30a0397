"""Read findings, plan steps and verdicts from lines of text, as clients and models write them. No I/O.

Invariant: reading is lenient and never fails, but it never invents: what quotes or repeats the form that was asked for
is no finding, and only an unambiguous last line is a verdict.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["critical", "high", "medium", "low", "info"]
Verdict = Literal["pass", "fix first", "unsure"]
FoundBy = Literal["model", "caller"]

BLOCKING: Final = ("critical", "high")
SEVERITIES: Final[dict[str, Severity]] = {
    **dict.fromkeys(("critical", "blocker", "severe", "fatal"), "critical"),
    **dict.fromkeys(("high", "major", "error", "important"), "high"),
    **dict.fromkeys(("medium", "moderate", "warning", "warn"), "medium"),
    **dict.fromkeys(("low", "minor", "nit", "trivial", "suggestion"), "low"),
    **dict.fromkeys(("info", "note", "notice", "informational", "information"), "info"),
}
"""Words that name a severity, those of other reviewers included."""

VERDICTS: Final[dict[str, Verdict]] = {"pass": "pass", "fix first": "fix first", "unsure": "unsure"}
MAX_FINDINGS: Final = 100
MAX_FINDING_CHARS: Final = 2_000
NOTHING: Final = frozenset({"none", "no findings", "nothing", "nothing to report", "n/a", "-", "..."})

_MARKER = re.compile(r"^(?:[-*+•]\s+|\(?\d{1,3}[.)]\s+)?(?:\[[ xX]\]\s+)?")
_SEVERITY = re.compile(
    r"^[*_`\[(]*(?P<word>[A-Za-z]{3,13})[*_`\])]*\s*(?:[:–—]|-\s|(?<=\])\s)[*_]*\s*(?P<rest>.+)$", re.DOTALL
)
_PLACE = re.compile(
    r"[(\[]\s*`?(?P<path>(?:[A-Za-z]:[\\/])?[^()\[\]`\s:,][^()\[\]`:,\n]*?)`?"
    r"(?:(?::|#L|,?\s+lines?\s+|:L)(?P<line>\d{1,7})(?:[-–:]L?\d{1,7})?)?`?\s*[)\]][.\s]*$"
)
_PATH = re.compile(r"(?:[^\s]*/)?[^\s/]*(?:\.[A-Za-z][\w+-]{0,11}|/[^\s/]+)|Makefile|Dockerfile")
_TEMPLATE = re.compile(r"what goes wrong and when, in one sentence|^\W*severity\b.*\(path", re.IGNORECASE)
_OPENING = re.compile(r"^ {0,3}(?P<fence>`{3,}|~{3,})[ \t]*(?P<label>[\w-]*)[^`\n]*$")
_QUOTED = re.compile(r"^\s*>")
_VERDICT = re.compile(r"^[*_#\s]*VERDICT[*_]*\s*[:=–-][*_`\s]*(?P<word>.+?)[*_.!`\s]*$", re.IGNORECASE)
_PLAN_STEP = re.compile(r"^(?:step\s+)?(?P<number>\d{1,4})[.):]\s+(?P<text>.+)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CodeFinding:
    """One finding. `severity` is None if none was named, `file` and `line` where it has no single place."""

    severity: Severity | None
    text: str
    file: str | None
    line: int | None

    def as_line(self) -> str:
        """Return the finding in the form in which it is asked for."""
        place = f" ({self.file}{'' if self.line is None else f':{self.line}'})" if self.file else ""
        return f"{self.severity}: {self.text}{place}" if self.severity else f"{self.text}{place}"


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One step of a plan, by its number in the plan."""

    number: int | None
    text: str


def parse_findings(lines: Iterable[str]) -> tuple[CodeFinding, ...]:
    """Return the findings of a client: one for each line that says something."""
    single = (line for each in lines for line in each.splitlines())
    return tuple(found for found in map(parse_finding, single) if found is not None)[:MAX_FINDINGS]


def parse_finding(line: str) -> CodeFinding | None:
    """Return the finding in a line, read as `[severity:] text [(path[:line])]`; None if it holds none."""
    text = _MARKER.sub("", line.strip(), count=1).strip()
    if text.lower().strip(" .`*") in NOTHING or not any(map(str.isalnum, text)) or _TEMPLATE.search(text):
        return None
    severity: Severity | None = None
    if (named := _SEVERITY.match(text)) and named["word"].lower() in SEVERITIES:
        severity, text = SEVERITIES[named["word"].lower()], named["rest"].strip()
    file, line_number = None, None
    if (place := _PLACE.search(text)) and place.start() > 0 and (place["line"] or _PATH.fullmatch(place["path"])):
        file, line_number = place["path"].strip(), int(place["line"]) if place["line"] else None
        text = text[: place.start()].strip()
    return CodeFinding(severity, text[:MAX_FINDING_CHARS], file, line_number)


def findings_in(answer: str) -> tuple[CodeFinding, ...]:
    """Return the findings of a model's answer: those of its last block labelled `findings`.

    Without such a block, those of the last block of which every line names a severity.
    """
    blocks = [(label, lines) for label, lines in _blocks(answer)[0] if label in ("findings", "", "text")]
    labelled = [lines for label, lines in blocks if label == "findings"]
    plain = [lines for _, lines in blocks if lines and all(map(_names_severity, lines))]
    chosen = (labelled or plain)[-1:]
    return parse_findings(chosen[0]) if chosen else ()


def plan_in(answer: str) -> tuple[PlanStep, ...]:
    """Return the plan of a model's answer, from its last block labelled `plan`."""
    labelled = [lines for label, lines in _blocks(answer)[0] if label == "plan"]
    return plan_steps(labelled[-1]) if labelled else ()


def plan_steps(lines: Sequence[str]) -> tuple[PlanStep, ...]:
    """Return numbered lines as steps of a plan; a line without a number belongs to the step before it."""
    steps: list[PlanStep] = []
    for line in lines:
        if found := _PLAN_STEP.match(line.strip()):
            steps.append(PlanStep(int(found["number"]), found["text"].strip()))
        elif steps and line.strip():
            steps[-1] = PlanStep(steps[-1].number, f"{steps[-1].text}\n{line.strip()}")
    return tuple(steps[:MAX_FINDINGS])


def verdict_in(answer: str) -> Verdict | None:
    """Return the verdict in the last line of an answer, None if there is no unambiguous one.

    Fenced blocks and quoted lines are not read, because they may repeat the form that was asked for.
    """
    lines = [line for line in _blocks(answer)[1] if line.strip() and not _QUOTED.match(line)]
    found = _VERDICT.match(lines[-1]) if lines else None
    return VERDICTS.get(" ".join(found["word"].lower().replace("_", " ").replace("-", " ").split())) if found else None


def _names_severity(line: str) -> bool:
    found = parse_finding(line)
    return found is not None and found.severity is not None


def _blocks(answer: str) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """Return the fenced blocks of a text, each with its label, and the lines outside them."""
    blocks: list[tuple[str, list[str]]] = []
    outside: list[str] = []
    closing: str | None = None
    for line in answer.splitlines():
        if closing is not None:
            bare = line.strip()
            if len(bare) >= len(closing) and set(bare) == {closing[0]}:
                closing = None
            else:
                blocks[-1][1].append(line)
        elif opening := _OPENING.match(line):
            closing = opening["fence"]
            blocks.append((opening["label"].lower(), []))
        else:
            outside.append(line)
    return [(label, [line for line in lines if line.strip()]) for label, lines in blocks], outside
