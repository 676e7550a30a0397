"""The workflows' files: a header with everything that the engine needs, and instructions of bounded length."""

from __future__ import annotations

from importlib.resources import files

import pytest

from exai.workflows.definitions import MAX_INSTRUCTION_CHARS, load_workflows, parse_workflow

GOOD = """+++
title = "T"
description = "D"
effort = "low"
reads = "none"
material = false

[next]
recorded = "R"
answered = "A"
+++
Do it.
"""
WORDS = {
    "codereview": ("review my changes", "bugs"),
    "debug": ("why does this fail", "root cause", "stack trace"),
    "thinkdeep": ("second opinion", "think"),
    "planner": ("plan this",),
    "secaudit": ("security audit", "vulnerabilities"),
    "testgen": ("write tests", "unit"),
    "precommit": ("before i commit", "git diff"),
    "docgen": ("write documentation", "docstrings"),
    "analyze": ("how does this work", "architecture"),
    "refactor": ("refactor", "clean up"),
    "tracer": ("trace", "who calls it"),
    "challenge": ("is that really right",),
}


@pytest.mark.parametrize("name", WORDS)
def test_the_first_sentences_have_the_words_that_people_say(name: str) -> None:
    """Clients find a tool by its description, of which some search the beginning only."""
    start = load_workflows()[name].header.description.lower()[:220]
    assert all(word in start for word in WORDS[name])


def test_every_workflow_is_there_with_bounded_instructions() -> None:
    assert load_workflows().keys() == WORDS.keys()
    for workflow in load_workflows().values():
        assert len(workflow.instructions) <= MAX_INSTRUCTION_CHARS
        assert len(workflow.header.description) < 500


def test_a_sentence_for_blocking_findings_exists_where_findings_are_read() -> None:
    for workflow in load_workflows().values():
        assert (workflow.header.next.blocking is not None) == (workflow.header.reads == "findings"), workflow.name
        assert (workflow.header.next.nothing_read is not None) == workflow.header.material, workflow.name
        for sentence in workflow.header.next.model_dump().values():
            assert sentence is None or "must continue" not in sentence


@pytest.mark.parametrize(
    "text",
    [
        "Do it.",
        GOOD.replace('title = "T"\n', ""),
        GOOD.replace('effort = "low"', 'effort = "some"'),
        GOOD.replace('title = "T"', 'title = "T"\nfurther = 1'),
        GOOD.replace("Do it.", ""),
        GOOD.replace("Do it.", "x" * 10_000),
        GOOD.replace('answered = "A"\n', ""),
        "x" + GOOD,
        GOOD.replace("[next]", "[next"),
    ],
)
def test_a_broken_file_is_refused_with_its_name(text: str) -> None:
    """At start, not at the first call."""
    with pytest.raises(ValueError, match="workflow broken"):
        parse_workflow("broken", text, {})
    assert parse_workflow("good", GOOD, {}).instructions == "Do it."


def test_the_engine_names_no_workflow() -> None:
    """What differs between workflows is in their files."""
    package = files("exai.workflows")
    for module in package.iterdir():
        if module.name.endswith(".py") and module.name != "consensus.py":
            source = module.read_text("utf-8")
            assert not [name for name in WORDS if f'"{name}"' in source], module.name
