"""The scoring of expert prompts, with a stand-in for the model: what is found, missed and false."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from exai.app import open_app
from exai.settings.load import FileSettings
from exai.workflows import load_workflows
from exai.workflows.findings import CodeFinding
from tests.eval.run import run_case
from tests.eval.scoring import Case, load_cases, score
from tests.integration.conversations.conftest import Rig
from tests.support.provider_server import kimi_answer

CASES = {case.name: case for case in load_cases()}


def perfect(case: Case) -> str:
    """An answer that finds each planted defect, in the words of its name."""
    lines = [f"high: {each.name} ({each.file}:{each.lines[0]})" for each in case.planted]
    verdict = f"\n\nVERDICT: {case.verdict}" if case.verdict else ""
    return "\n".join(["All of it.", "", "```findings", *lines, "```"]) + verdict


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_each_planted_defect_is_where_its_case_says(case: Case) -> None:
    """A case whose lines have moved would score every model as blind."""
    assert case.tool in load_workflows()
    for each in case.planted:
        lines = case.texts[each.file].splitlines()
        assert 1 <= each.lines[0] <= each.lines[1] <= len(lines)
        assert all(re.compile(word) for word in each.words)
        assert each.is_meant_by(CodeFinding("high", each.name, each.file, each.lines[0]))


@pytest.mark.parametrize(
    ("findings", "found", "false"),
    [
        ([("high", "SQL injection by words", "notes.py", 20)], 1, 0),
        ([("high", "SQL injection", "src/notes.py", 18), ("high", "the SQL again", "notes.py", 21)], 1, 0),
        ([("critical", "SQL injection", "other.py", 20)], 0, 1),
        ([("high", "SQL injection", "notes.py", 60)], 0, 1),
        ([("high", "SQL injection", None, None)], 1, 0),
        ([("critical", "the module has no tests", "notes.py", 20)], 0, 1),
        ([("low", "the module has no tests", "notes.py", 20)], 0, 0),
        ([], 0, 0),
    ],
)
def test_a_finding_counts_by_place_and_words(
    findings: list[tuple[str, str, str | None, int | None]], found: int, false: int
) -> None:
    """A defect counts once; only findings that block are counted as false."""
    made = [CodeFinding(severity, *rest) for severity, *rest in findings]  # type: ignore[arg-type]
    seen = score(CASES["security_notes"], made, None)
    assert (len(seen.found), len(seen.false)) == (found, false)
    assert len(seen.found) + len(seen.missed) == len(CASES["security_notes"].planted)


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
async def test_a_case_is_run_and_scored(case: Case, rig: Rig, tmp_path: Path) -> None:
    """A perfect answer scores all, a wrong one nothing; the model receives the files and not the planted defects."""
    root = tmp_path / "roots"
    settings = rig.app.settings.model_copy(update={"data_dir": tmp_path / "data", "files": FileSettings(roots=(root,))})
    wrong = "I see.\n\n```findings\nhigh: nobody uses it (readme.md:1)\n```\n\nVERDICT: pass"
    rig.provider.script(kimi_answer(perfect(case)), kimi_answer(wrong))
    async with open_app(settings) as app:
        for run, (found, false) in {"first": (len(case.planted), 0), "second": (0, 1)}.items():
            home = root / run
            home.mkdir(parents=True)
            seen = await run_case(app, case, None, home)
            assert (len(seen.found), len(seen.false)) == (found, false), seen.as_text()
            assert seen.verdict_is_right is (run == "first" or case.verdict is None)
    shown = "\n".join(str(each["content"]) for each in rig.provider.chats[0].body["messages"])
    for name, text in case.texts.items():
        assert name in shown
        assert text.splitlines()[-1].strip() in shown
    assert case.planted[0].name not in shown
