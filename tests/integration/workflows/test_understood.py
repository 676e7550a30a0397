"""Each form in which clients send arguments gives the same turn, for each workflow tool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from exai.errors import Conflict
from exai.mcp.core.protocol import Call, CallContext, ClientInfo
from exai.models import LOCAL_OWNER, Message
from exai.tools.registry import build_tools
from exai.workflows import load_workflows
from tests.integration.conversations.conftest import Rig
from tests.integration.workflows.conftest import called, quiet, rows_of

NATIVE: dict[str, Any] = {
    "prompt": "Why does it hang, and when?",
    "focus": "locks",
    "findings": ["high: it waits, it seems (a.py:3)", "alone it ends"],
    "model": "kimi-k3",
    "ask_model": True,
}
OWN: dict[str, dict[str, Any]] = {
    "debug": {"hypothesis": "A lock is held twice."},
    "tracer": {"target": "open_app"},
    "planner": {"revises": 2, "branch": "other"},
}
CAMEL = {"askModel": "ask_model", "Focus": "focus", "Prompt": "prompt", "Findings": "findings", "Model": "model"}
OLDER = {"step": "prompt", "focus_on": "focus", "use_assistant_model": "ask_model", "revises_step_number": "revises"}
OLDER |= {"branch_id": "branch", "target_description": "target"}
COUNTERS = {"step_number": 1, "total_steps": 3, "next_step_required": False, "confidence": "certain"}
COUNTERS |= {"files_checked": ["a.py"], "relevant_context": [], "is_step_revision": False}


def arguments_of(tool: str) -> dict[str, Any]:
    without = load_workflows()[tool].header.without
    return {name: value for name, value in NATIVE.items() if name not in without} | OWN.get(tool, {})


def as_strings(native: Mapping[str, Any]) -> dict[str, Any]:
    """Each value as text: what a client sends that never saw the schema."""
    return {
        name: "\n".join(value) if isinstance(value, list) else "true" if value is True else str(value)
        for name, value in native.items()
    }


def as_json_texts(native: Mapping[str, Any]) -> dict[str, Any]:
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in native.items()}


def with_nothing(native: Mapping[str, Any]) -> dict[str, Any]:
    """What is left out is sent as "", null and "null"."""
    return {**native, "continuation_id": "", "files": None, "diff": "null"}


def renamed(native: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    back = {own: name for name, own in names.items()}
    return {back.get(name, name): value for name, value in native.items()}


def forms(tool: str) -> dict[str, dict[str, Any]]:
    native = arguments_of(tool)
    nothing = with_nothing(native)
    if "diff" not in load_workflows()[tool].header.also:
        del nothing["diff"]
    if "files" in load_workflows()[tool].header.without:
        del nothing["files"]
    older = {**renamed(native, OLDER), **COUNTERS} if tool != "challenge" else renamed(native, OLDER)
    return {
        "strings": as_strings(native),
        "json": as_json_texts(native),
        "nothing": nothing,
        "camel": renamed(native, CAMEL),
        "older": older,
    }


def turn_of(rows: tuple[Message, ...]) -> list[Any]:
    """What a turn stored, without what differs between two turns."""
    return [(row.seq, row.role, row.kind, row.content, dict(row.metadata)) for row in rows]


@pytest.mark.parametrize("tool", [name for name in load_workflows() if name != "precommit"])
async def test_six_forms_of_the_arguments_are_one_turn(rig: Rig, tool: str) -> None:
    """Facts of real clients: every one of these has been sent by one."""
    turns = []
    for form, given in {"native": arguments_of(tool), **forms(tool)}.items():
        result = await called(rig.app, tool, given)
        answer = result["structuredContent"]
        rows = await rows_of(rig.app, answer["continuation_id"])
        asked = rig.provider.chats[-1].body
        turns.append((turn_of(rows), asked["model"], asked["messages"], answer["findings"], answer["next"]))
        assert turns[-1] == turns[0], form
        if form == "older":
            assert answer["understood"], form
            assert "note: understood: " in result["content"][0]["text"], form


@pytest.mark.parametrize("given", [{"next_step_required": True}, {"next_step_required": "true"}])
@pytest.mark.parametrize("tool", ["debug", "codereview", "precommit", "planner"])
async def test_another_step_that_is_announced_is_recorded_only(rig: Rig, tool: str, given: dict[str, Any]) -> None:
    """The older tools asked a model after the last step; so do their prompts here."""
    answer = await called(rig.app, tool, {"step": "One.", "step_number": 1, "total_steps": 2, **given})
    found = answer["structuredContent"]
    assert (found["step"], found["model"]) == (1, None)
    assert "next_step_required: taken as ask_model false" in found["understood"]
    assert rig.provider.chats == []


async def test_confidence_never_skips_the_model(rig: Rig) -> None:
    """However certain a caller is."""
    for confidence in ("certain", "almost_certain", 1):
        await called(rig.app, "debug", {"step": "Done.", "confidence": confidence, "next_step_required": False})
    assert len(rig.provider.chats) == 3


async def test_issues_of_older_tools_are_findings(rig: Rig) -> None:
    """Objects with a severity and a description."""
    issues = [{"severity": "high", "description": "It leaks.", "file": "a.py", "line": 3}, {"description": "Odd."}]
    answer = (await called(rig.app, "codereview", {"step": "Look.", "issues_found": issues}))["structuredContent"]
    assert [(each["severity"], each["text"], each["file"], each["line"]) for each in answer["findings"]] == [
        ("high", "It leaks.", "a.py", 3),
        (None, "Odd.", None, None),
    ]


async def test_an_argument_that_nobody_knows_is_refused_by_its_name(rig: Rig) -> None:
    with pytest.raises(ValueError, match="depth_of_field"):
        await called(rig.app, "debug", {"prompt": "Why?", "depth_of_field": 3})
    assert (await rig.app.conversations.list(LOCAL_OWNER)).conversations == ()


async def test_keys_and_revisions_may_come_in_meta(rig: Rig) -> None:
    """A program's idempotency key costs no client a line of schema; the revision protects what was read."""
    registry = build_tools(rig.app)
    method = next(each for each in registry.feature().methods if each.name == "tools/call")
    assert method.work is not None

    async def send(meta: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        params = {"name": "debug", "arguments": arguments, "_meta": meta}
        return await method.work(Call(1, method, params, "", ClientInfo()), CallContext(LOCAL_OWNER, "r", quiet))

    first = await send({"exai/idempotencyKey": "k"}, prompt="Why?")
    again = await send({"exai/idempotencyKey": "k"}, prompt="Why?")
    assert (again["structuredContent"]["duplicate"], len(rig.provider.chats)) == (True, 1)
    key = first["structuredContent"]["continuation_id"]
    with pytest.raises(Conflict, match="revision"):
        await send({"exai/expectedRevision": 1}, prompt="And?", continuation_id=key)
    assert method.terms_of is not None
    terms = method.terms_of(Call(1, method, {"name": "debug"}, "", ClientInfo()))
    assert terms.join_key is not None
    for meta, joined in (({}, True), ({"exai/idempotencyKey": "k"}, False)):
        params = {"name": "debug", "arguments": {"prompt": "x"}, "_meta": meta}
        assert (terms.join_key(Call(1, method, params, "", ClientInfo())) is not None) == joined
