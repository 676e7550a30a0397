"""Scores the findings of a model against the defects that were planted in a case."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exai.workflows.findings import BLOCKING, CodeFinding, Verdict

CASES = Path(__file__).parent / "cases"
NEAR_LINES = 3
"""How far from its line a defect may be reported: models name the line of the symptom or of the definition."""


@dataclass(frozen=True)
class Planted:
    """A planted defect; one of `words`, as regular expressions, occurs in a finding that means it."""

    name: str
    file: str
    lines: tuple[int, int]
    words: tuple[str, ...]

    def is_meant_by(self, finding: CodeFinding) -> bool:
        """Return whether a finding is about this defect: at its place, in its words."""
        if finding.file is not None and Path(finding.file).name != self.file:
            return False
        first, last = self.lines
        if finding.line is not None and not first - NEAR_LINES <= finding.line <= last + NEAR_LINES:
            return False
        return any(re.search(word, finding.text, re.IGNORECASE) for word in self.words)


@dataclass(frozen=True)
class Case:
    """One case. `texts` are the files by name, `before` those of the commit on which they are a change."""

    name: str
    tool: str
    prompt: str
    planted: tuple[Planted, ...]
    texts: dict[str, str]
    before: dict[str, str]
    files: tuple[str, ...] = ()
    diff: str | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Score:
    """What a model found and missed of a case. `false` are its blocking findings that mean no planted defect."""

    case: str
    found: tuple[str, ...]
    missed: tuple[str, ...]
    false: tuple[str, ...]
    verdict_is_right: bool

    def as_text(self) -> str:
        """Return one line, and one for each defect that was missed and each false finding."""
        number = len(self.found) + len(self.missed)
        verdict = "" if self.verdict_is_right else ", wrong verdict"
        lines = [f"{self.case}: found {len(self.found)} of {number}, {len(self.false)} false{verdict}"]
        lines += [f"  missed: {each}" for each in self.missed]
        return "\n".join([*lines, *(f"  false: {each}" for each in self.false)])


def load_cases() -> list[Case]:
    """Return all cases, in order of their names."""
    return [_case(home) for home in sorted(CASES.iterdir())]


def score(case: Case, findings: Sequence[CodeFinding], verdict: Verdict | None) -> Score:
    """Score the findings of one answer; several findings of one defect count once."""
    found = [each.name for each in case.planted if any(map(each.is_meant_by, findings))]
    false = [
        finding.text
        for finding in findings
        if finding.severity in BLOCKING and not any(each.is_meant_by(finding) for each in case.planted)
    ]
    missed = tuple(each.name for each in case.planted if each.name not in found)
    return Score(case.name, tuple(found), missed, tuple(false), case.verdict in (None, verdict))


def _case(home: Path) -> Case:
    given = tomllib.loads((home / "case.toml").read_text())
    planted = [
        Planted(each["name"], each["file"], (each["lines"][0], each["lines"][1]), tuple(each["words"]))
        for each in given.pop("planted")
    ]
    given["files"] = tuple(given.get("files", ()))
    return Case(
        name=home.name, planted=tuple(planted), texts=_texts(home / "after"), before=_texts(home / "before"), **given
    )


def _texts(home: Path) -> dict[str, str]:
    """Return the texts of a directory; their names end in .txt so that no tool takes them for code of the project."""
    found = sorted(home.glob("*.txt")) if home.exists() else []
    return {path.name.removesuffix(".txt"): path.read_text() for path in found}
