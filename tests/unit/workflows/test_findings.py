"""Findings, plans and verdicts are read leniently, and nothing is read that was not said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exai.workflows import load_workflows
from exai.workflows.findings import (
    CodeFinding,
    findings_in,
    parse_finding,
    parse_findings,
    plan_in,
    plan_steps,
    verdict_in,
)


@pytest.mark.parametrize(
    ("line", "severity", "text", "file", "number"),
    [
        ("high: SQL from input (db.py:42)", "high", "SQL from input", "db.py", 42),
        ("- **High**: x (a/b.py:1-3)", "high", "x", "a/b.py", 1),
        ("1. [critical] boom (src/x.ts, line 7)", "critical", "boom", "src/x.ts", 7),
        ("HIGH - dash (a.py)", "high", "dash", "a.py", None),
        ("* nit: y (`a b/c.py:3`)", "low", "y", "a b/c.py", 3),
        ("error: z (C:/x/y.py:4)", "high", "z", "C:/x/y.py", 4),
        ("medium: a (b) c (Makefile:3).", "medium", "a (b) c", "Makefile", 3),
        ("low: x [src/a.py#L9]", "low", "x", "src/a.py", 9),
        ("no severity here", None, "no severity here", None, None),
        ("fails (sometimes)", None, "fails (sometimes)", None, None),
        ("Note that this: is odd", None, "Note that this: is odd", None, None),
        ("see version (v1.2)", None, "see version (v1.2)", None, None),
        ("(a.py:3)", None, "(a.py:3)", None, None),
    ],
)
def test_a_line_is_read_as_severity_text_and_place(
    line: str, severity: str | None, text: str, file: str | None, number: int | None
) -> None:
    assert parse_finding(line) == CodeFinding(severity, text, file, number)  # type: ignore[arg-type]


@pytest.mark.parametrize("line", ["", "  ", "none", "- None.", "---", "n/a", "No findings", "..."])
def test_a_line_that_says_nothing_is_no_finding(line: str) -> None:
    assert parse_finding(line) is None


@given(st.text())
def test_any_line_is_read_without_a_refusal(line: str) -> None:
    for found in parse_findings([line]):
        assert found.text
        assert parse_finding(found.as_line()) is not None


def test_a_single_text_of_several_lines_is_several_findings() -> None:
    assert [each.text for each in parse_findings(["a\n- b\n\nc"])] == ["a", "b", "c"]


@pytest.mark.parametrize("name", [name for name, each in load_workflows().items() if each.header.reads == "findings"])
def test_the_form_that_is_asked_for_is_no_finding_when_it_is_quoted(name: str) -> None:
    """A model may repeat its instructions before it answers."""
    instructions = load_workflows()[name].instructions
    assert findings_in(instructions) == ()
    assert [each.text for each in findings_in(f"{instructions}\n\n```findings\nlow: x\n```")] == ["x"]
    assert verdict_in(instructions) is None


def test_findings_are_those_of_the_last_labelled_block() -> None:
    answer = "```findings\nhigh: draft\n```\ntext\n```python\nhigh: str = 1\n```\n~~~findings\nlow: final (a.py:1)\n~~~"
    assert findings_in(answer) == (CodeFinding("low", "final", "a.py", 1),)


def test_findings_of_an_answer_without_a_labelled_block() -> None:
    """Only where every line names a severity: any other block is code."""
    assert len(findings_in("```\nhigh: a\nlow: b\n```")) == 2
    assert findings_in("```\nhigh: a\nx = 1\n```") == ()
    assert findings_in("high: in prose") == ()


def test_a_block_without_an_end_is_read_to_the_end() -> None:
    """The answer was cut."""
    assert len(findings_in("```findings\nhigh: a\nlow: b")) == 2


def test_longer_fences_hold_shorter_ones() -> None:
    assert findings_in("````markdown\n```findings\nhigh: quoted\n```\n````") == ()


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Fine.\n\nVERDICT: pass", "pass"),
        ("**VERDICT: fix first**", "fix first"),
        ("Verdict: Fix-First.", "fix first"),
        ("VERDICT: `unsure`\n\n", "unsure"),
        ("VERDICT: fix first\n```findings\nhigh: x\n```", "fix first"),
        ("VERDICT: pass | fix first | unsure", None),
        ("VERDICT: pass or unsure", None),
        ("VERDICT: pass\nBut I have not read all of it.", None),
        ("> VERDICT: pass", None),
        ("`VERDICT: pass`", None),
        ("```\nVERDICT: pass\n```", None),
        ("```\nVERDICT: pass", None),
        ("I would not say VERDICT: pass", None),
        ("VERDICT: passed with reservations", None),
        ("VERDICT:", None),
        ("", None),
        ("VERDICT: pass\n```python\nx = 1\n```", None),
        ("VERDICT: pass\n> which I cannot confirm", None),
        ("VERDICT: fix first\n\nThe file ends with:\nVERDICT: pass", None),
        ("Its last line is\n\n    VERDICT: pass", None),
        ("Its last line is\n\n\tVERDICT: pass", None),
        ("~~~ `quoted`\nVERDICT: pass\n~~~", None),
        ("```\n    ```\nVERDICT: pass\n```", None),
        ("VERDICT: pass | fix first | unsure\n\nVERDICT: unsure", "unsure"),
        ("VERDICT: pass\n\nAs said:\nVERDICT: pass", "pass"),
    ],
)
def test_only_an_unambiguous_last_line_is_a_verdict(answer: str, verdict: str | None) -> None:
    """An unclear one is unknown, never an approval."""
    assert verdict_in(answer) == verdict


def test_a_plan_is_read_from_its_block_with_its_numbers() -> None:
    answer = "1. not this\n```plan\n1. First, with\n   a second line\n2) Then\nStep 4: last\n```\n2. nor this"
    assert [(each.number, each.text) for each in plan_in(answer)] == [
        (1, "First, with\na second line"),
        (2, "Then"),
        (4, "last"),
    ]
    assert plan_in("1. no block") == ()
    assert plan_steps(["no number"]) == ()


@pytest.mark.parametrize(
    "text",
    [
        "\n" * 2**20,
        "VERDICT: x" + "*" * 2**20 + "x",
        "~~~" + "a" * 2**20 + "`",
        "~" * 2**20 + "`",
        "```findings\nhigh: (a" + " " * 2**20 + "x\n```",
        "```\nhigh: (a" + " " * 2**20 + "x\n```",
        "```plan\n1. a\n" + "b\n" * 2**19 + "```",
    ],
    ids=["lines", "verdict", "label", "fence", "place", "unlabelled", "plan"],
)
def test_time_of_reading_grows_no_faster_than_the_text(text: str) -> None:
    """An answer may have 4 MiB, and is read where all other calls wait: this takes hours if it is tried anew at every
    character."""
    findings_in(text), plan_in(text), verdict_in(text), parse_findings([text])


def test_a_plan_of_one_endless_step_is_cut_to_what_a_message_holds() -> None:
    (step,) = plan_in("```plan\n1. " + "b\n" * 2**19 + "```")
    assert len(step.text) == 20_000
