"""Read findings, plan steps and verdicts from lines of text, as clients and models write them. No I/O.

Invariant: parsing is lenient and never fails, but it invents nothing: a line that quotes or repeats the requested form
is no finding, and only an unambiguous last line is a verdict. Parsing takes time in proportion to the text: each
expression is matched against the few characters that can contain a match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
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
MAX_STEP_CHARS: Final = 20_000
MAX_PLACE_CHARS: Final = 400
"""Length of the end of a finding in which its place is looked for."""

MAX_VERDICT_CHARS: Final = 200
FINDINGS: Final = "findings"
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
_OPENING = re.compile(
    r"^ {0,3}(?:(?P<ticks>`{3,}+)[ \t]*+(?P<of_ticks>[\w-]*+)[^`\n]*+$|(?P<waves>~{3,}+)[ \t]*+(?P<of_waves>[\w-]*+))"
)
_CLOSING = re.compile(r"^ {0,3}(?P<fence>`{3,}+|~{3,}+)\s*$")
_QUOTED = re.compile(r"^(?:\s*>| {4}| {0,3}\t)")
"""A line of a quotation, or of a block of code without a fence."""

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
        """Return the finding in the requested form."""
        place = f" ({self.file}{'' if self.line is None else f':{self.line}'})" if self.file else ""
        return f"{self.severity}: {self.text}{place}" if self.severity else f"{self.text}{place}"


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One step of a plan, by its number in the plan."""

    number: int | None
    text: str


def parse_findings(lines: Iterable[str]) -> tuple[CodeFinding, ...]:
    """Return the findings of a client: one for each line with text."""
    single = (line for each in lines for line in each.splitlines())
    return tuple(islice((found for found in map(parse_finding, single) if found is not None), MAX_FINDINGS))


def parse_finding(line: str) -> CodeFinding | None:
    """Return the finding in a line, read as `[severity:] text [(path[:line])]`; None if it holds none."""
    text = _MARKER.sub("", line.strip(), count=1).strip()
    if text.lower().strip(" .`*") in NOTHING or not any(map(str.isalnum, text)) or _TEMPLATE.search(text):
        return None
    severity, text = _severity_of(text)
    file, line_number = None, None
    place = _PLACE.search(text, max(len(text) - MAX_PLACE_CHARS, 0))
    if place and place.start() > 0 and (place["line"] or _PATH.fullmatch(place["path"])):
        file, line_number = place["path"].strip(), int(place["line"]) if place["line"] else None
        text = text[: place.start()].strip()
    return CodeFinding(severity, text[:MAX_FINDING_CHARS], file, line_number)


def findings_in(answer: str) -> tuple[CodeFinding, ...]:
    """Return the findings of a model's answer: those of its last block labelled `findings`.

    Without such a block, those of the last block of which every line names a severity.
    """
    blocks = [(label, lines) for label, lines in _parts(answer) if label in (FINDINGS, "", "text")]
    labelled = [lines for label, lines in blocks if label == FINDINGS]
    plain = [lines for _, lines in blocks if lines and all(map(_names_severity, lines))]
    chosen = (labelled or plain)[-1:]
    return parse_findings(chosen[0]) if chosen else ()


def plan_in(answer: str) -> tuple[PlanStep, ...]:
    """Return the plan of a model's answer, from its last block labelled `plan`."""
    labelled = [lines for label, lines in _parts(answer) if label == "plan"]
    return plan_steps(labelled[-1]) if labelled else ()


def plan_steps(lines: Sequence[str]) -> tuple[PlanStep, ...]:
    """Return numbered lines as steps of a plan; a line without a number belongs to the step before it."""
    steps: list[tuple[int, list[str]]] = []
    for line in lines:
        if found := _PLAN_STEP.match(line.strip()):
            if len(steps) == MAX_FINDINGS:
                break
            steps.append((int(found["number"]), [found["text"].strip()]))
        elif steps and line.strip():
            steps[-1][1].append(line.strip())
    return tuple(PlanStep(number, "\n".join(texts)[:MAX_STEP_CHARS]) for number, texts in steps)


def verdict_in(answer: str) -> Verdict | None:
    """Return the verdict in the last line of an answer, None if there is no unambiguous one.

    Only a block of findings may follow it, and no other line may state another one. Fenced blocks and quoted lines are
    not read, because they may repeat the form that was asked for.
    """
    parts = list(_parts(answer))
    while parts and (parts[-1][0] == FINDINGS or not parts[-1][1]):
        parts.pop()
    if not parts or parts[-1][0] is not None:
        return None
    lines = [line for label, lines in parts if label is None for line in lines]
    stated = {verdict for line in lines if (verdict := _stated(line)) is not None}
    last = _stated(lines[-1])
    return last if stated == {last} else None


def _stated(line: str) -> Verdict | None:
    """Return the verdict that a line states and nothing else."""
    if _QUOTED.match(line) or len(line := line.strip()) > MAX_VERDICT_CHARS or not (found := _VERDICT.match(line)):
        return None
    return VERDICTS.get(" ".join(found["word"].lower().replace("_", " ").replace("-", " ").split()))


def _severity_of(text: str) -> tuple[Severity | None, str]:
    """Return the severity that a text begins with, and the rest of it."""
    if (named := _SEVERITY.match(text)) and named["word"].lower() in SEVERITIES:
        return SEVERITIES[named["word"].lower()], named["rest"].strip()
    return None, text


def _names_severity(line: str) -> bool:
    return _severity_of(_MARKER.sub("", line.strip(), count=1).strip())[0] is not None


def _parts(answer: str) -> Iterator[tuple[str | None, list[str]]]:
    """Yield the parts of a text in their order, without blank lines: fenced blocks by their label, others by None."""
    label: str | None = None
    fence = ""
    lines: list[str] = []
    for line in answer.splitlines():
        closing = _CLOSING.match(line) if fence else None
        opening = None if fence else _OPENING.match(line)
        if closing is None and opening is None:
            if line.strip():
                lines.append(line)
            continue
        if closing is not None and not closing["fence"].startswith(fence):
            lines.append(line)
            continue
        yield label, lines
        lines, label, fence = [], None, ""
        if opening is not None:
            fence = opening["ticks"] or opening["waves"]
            label = (opening["of_ticks"] or opening["of_waves"] or "").lower()
    yield label, lines
