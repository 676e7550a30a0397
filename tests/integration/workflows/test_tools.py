"""What single workflows do beside the common contract: judging a claim, planning, and reading a diff."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from exai.app import App, open_app
from exai.conversations import AppendRequest
from exai.errors import InvalidArgument
from exai.models import LOCAL_OWNER, NewMessage
from exai.settings.load import ProviderSettings
from exai.workflows import load_workflows
from tests.integration.conversations.conftest import Rig
from tests.integration.workflows.conftest import call, called, rows_of
from tests.support.provider_server import ProviderServer, kimi_answer

LONG = "".join(f"{number}: a line of the answer\n" for number in range(3_000))


def shown(provider: ProviderServer) -> str:
    """Everything that the model was shown by the last request."""
    return "\n---\n".join(message["content"] for message in provider.chats[-1].body["messages"])


@pytest.fixture
async def both(rig: Rig) -> AsyncIterator[App]:
    """An application with models of two providers."""
    own = rig.app.settings.providers
    glm = ProviderSettings(api_key=SecretStr("sk-test"), base_url=rig.provider.base_url)
    settings = rig.app.settings.model_copy(update={"providers": own.model_copy(update={"glm": glm})})
    async with open_app(settings) as app:
        yield app


async def test_the_newest_answer_is_judged_by_a_model_of_another_provider(rig: Rig, both: App) -> None:
    """With the conversation's evidence and without its reasoning; the claim is the other party's, not the judge's."""
    rig.provider.script(kimi_answer("withheld-one"), kimi_answer("claim-two"))
    key = (await call(both, "chat", prompt="question-one", model="kimi-k3"))["continuation_id"]
    await call(both, "debug", prompt="x", findings="high: finding-one (a.py:3)", continuation_id=key, ask_model=False)
    claim = await call(both, "chat", prompt="question-two", model="kimi-k3", continuation_id=key)
    judged = await call(both, "challenge", continuation_id=key)
    asked = rig.provider.chats[-1].body
    assert asked["model"].startswith("glm")
    assert judged["model"] == asked["model"]
    assert {message["role"] for message in asked["messages"]} == {"user"}
    assert shown(rig.provider).count("<instructions ") == 1
    assert shown(rig.provider).endswith(f"\n{load_workflows()['challenge'].instructions}\n</instructions>")
    for evidence in ("question-one", "finding-one", "question-two", "claim-two"):
        assert shown(rig.provider).count(evidence) == 1
    assert "withheld-one" not in shown(rig.provider)
    rows = await rows_of(both, key)
    assert rows[-2].content == f"Judge message {claim['seq']} of this conversation."
    assert rows[-2].metadata["claim_seq"] == claim["seq"]
    again = await call(both, "challenge", continuation_id=key)
    assert (await rows_of(both, key))[-2].metadata["claim_seq"] == claim["seq"]
    assert again["notes"] == []
    await call(both, "chat", prompt="Thanks.", continuation_id=key)
    assert load_workflows()["challenge"].instructions not in shown(rig.provider)


async def test_a_claim_in_words_is_judged_on_the_evidence(rig: Rig, both: App) -> None:
    """The conversation's answers are withheld then, too."""
    rig.provider.script(kimi_answer("withheld-one"))
    key = (await call(both, "chat", prompt="question-one", model="kimi-k3"))["continuation_id"]
    await call(both, "challenge", prompt="claim-two", continuation_id=key)
    assert "question-one" in shown(rig.provider)
    assert "Judge this claim: claim-two" in shown(rig.provider)
    assert "withheld-one" not in shown(rig.provider)
    assert rig.provider.chats[-1].body["model"].startswith("glm")


async def test_a_judgement_by_the_same_model_is_noted(rig: Rig, both: App) -> None:
    """Where it is asked for by name; agreement with oneself is no check."""
    key = (await call(both, "chat", prompt="Why?", model="kimi-k3"))["continuation_id"]
    judged = await call(both, "challenge", continuation_id=key, model="kimi-k3")
    assert judged["model"] == "kimi-k3"
    assert judged["notes"] == ["the claim was judged by the model that made it"]
    other = await call(both, "challenge", continuation_id=key, model="kimi-k2.6")
    assert other["notes"] == []


async def test_a_conversation_without_an_answer_has_no_claim(rig: Rig) -> None:
    """Nothing is asked, and the cure is named."""
    new = await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "x")]))
    with pytest.raises(InvalidArgument, match="Give the claim as prompt"):
        await call(rig.app, "challenge", continuation_id=new.continuation_id)
    assert rig.provider.chats == []


async def test_a_plan_is_rows_that_are_revised_and_branched(rig: Rig) -> None:
    """The model's steps and the caller's own, each with its number and branch."""
    rig.provider.script(kimi_answer("So.\n\n```plan\n1. Add the column\n2. Fill it\n```"))
    first = await call(rig.app, "planner", prompt="Plan the migration.")
    key = first["continuation_id"]
    own = await call(rig.app, "planner", prompt="Fill it in batches.", revises=2, continuation_id=key, ask_model=False)
    assert (own["step"], own["content"]) == (2, "Step 2 of planner recorded.")
    rig.provider.script(kimi_answer("Else.\n\n```plan\n1. Copy the table\n```"))
    await call(rig.app, "planner", prompt="Without downtime?", branch="copy", continuation_id=key)
    plan = [(row.role, row.content, dict(row.metadata)) for row in await rows_of(rig.app, key) if row.kind == "plan"]
    facts = {"workflow": "planner"}
    assert plan == [
        ("assistant", "Plan step 1: Add the column", {**facts, "number": 1}),
        ("assistant", "Plan step 2: Fill it", {**facts, "number": 2}),
        (
            "user",
            "Fill it in batches.\n\nThis replaces plan step 2.",
            {**facts, "revises": 2, "number": 2},
        ),
        ("assistant", "Plan step 1: Copy the table", {**facts, "branch": "copy", "number": 1}),
    ]
    assert "This replaces plan step 2." in shown(rig.provider)
    assert "Branch: copy" in shown(rig.provider)
    assert shown(rig.provider).count("Add the column") == 1


async def test_revision_of_a_step_that_the_plan_lacks_is_noted(rig: Rig) -> None:
    """The answer's plan is compared with the number, so a wrong one costs no further read."""
    plan = kimi_answer("So.\n\n```plan\n1. Add the column\n2. Fill it\n```")
    rig.provider.script(plan, plan)
    wrong = await call(rig.app, "planner", prompt="In batches.", revises=9)
    assert wrong["notes"] == ["revises: the plan of this answer has no step 9; its steps are 1 to 2"]
    right = await call(rig.app, "planner", prompt="In batches.", revises=2, continuation_id=wrong["continuation_id"])
    assert right["notes"] == []


async def test_a_plan_of_the_callers_own_is_one_row_for_each_step(rig: Rig) -> None:
    """Numbered lines are steps."""
    stored = await call(rig.app, "planner", prompt="1. Look\n2. Act\n   and check", ask_model=False)
    rows = await rows_of(rig.app, stored["continuation_id"])
    assert [(row.kind, row.content, row.metadata["number"]) for row in rows] == [
        ("plan", "Plan step 1: Look", 1),
        ("plan", "Plan step 2: Act\nand check", 2),
    ]
    assert rig.provider.chats == []


async def test_precommit_reads_the_uncommitted_diff_by_itself(rig: Rig, rooted: App) -> None:
    """With untracked files; another tool receives the same files, and recording a step reads none."""
    rig.provider.script(kimi_answer("No.\n\n```findings\nhigh: wrong sign (app.py:2)\n```\n\nVERDICT: fix first"))
    answer = await call(rooted, "precommit", prompt="Add numbers.")
    assert "return a - b  # planted" in shown(rig.provider)
    assert "planted too" in shown(rig.provider)
    assert any("app.py" in each for each in answer["read"])
    assert (answer["verdict"], answer["findings"][0]["file"]) == ("fix first", "app.py")
    assert answer["next"].startswith("Do not commit yet. Check finding 1 ")
    key = answer["continuation_id"]
    rows = await rows_of(rooted, key)
    assert next(row for row in rows if row.kind == "step").metadata["diff"] == "uncommitted"
    await call(rooted, "chat", prompt="Which sign?", continuation_id=key)
    assert "return a - b  # planted" in shown(rig.provider)
    recorded = await call(rooted, "precommit", prompt="Later.", continuation_id=key, ask_model=False)
    assert (recorded["read"], recorded["step"]) == ([], 2)


async def test_the_model_is_told_what_of_the_material_it_is_not_shown(rig: Rig, rooted: App, repository: Path) -> None:
    """Else a part would be taken for the whole, and pass."""
    (repository / "data.bin").write_bytes(b"\0" * 10)
    answer = await call(rooted, "precommit", prompt="Ready?")
    assert answer["left_out"] == ["data.bin (binary)"]
    question = rig.provider.chats[-1].body["messages"][-1]["content"]
    assert "Of the material this was left out:\n- data.bin (binary)" in question


async def test_codereview_reads_a_diff_only_if_it_is_named(rig: Rig, rooted: App, repository: Path) -> None:
    """And files in any case."""
    await call(rooted, "codereview", prompt="Is it right?", files=[str(repository / "new.py")])
    assert "planted too" in shown(rig.provider)
    assert "return a - b" not in shown(rig.provider)
    await call(rooted, "codereview", prompt="Is it right?", diff="uncommitted")
    assert "return a - b" in shown(rig.provider)


async def test_material_that_was_named_and_cannot_be_read_is_an_error(rig: Rig, rooted: App, repository: Path) -> None:
    """No answer about nothing: a reviewer would say that it needs more code."""
    (repository / "empty").mkdir()
    for given in (
        {"files": [str(repository / "*.rs")]},
        {"files": [str(repository / "empty")]},
        {"diff": "main...main"},
    ):
        with pytest.raises(InvalidArgument):
            await call(rooted, "codereview", prompt="Is it right?", **given)
    assert rig.provider.chats == []
    assert (await rooted.conversations.list(LOCAL_OWNER)).conversations == ()


async def test_a_long_answer_is_cut_and_says_how_to_go_on(rig: Rig) -> None:
    """Within the limits of clients, for any other fields of the result."""
    findings = "\n".join(f"low: {'x' * 500} (a.py:{number})" for number in range(1, 100))
    rig.provider.script(kimi_answer(f"{LONG}\n```findings\n{findings}\n```"))
    result = await called(rig.app, "analyze", {"prompt": "How?", "findings": ["y" * 3_000] * 3})
    answer, text = result["structuredContent"], result["content"][0]["text"]
    assert len(text) < 40_000
    assert answer["next_offset"] is not None
    assert f"seq {answer['seq']} and char_offset {answer['next_offset']}" in answer["next"]
    assert answer["findings"][0]["id"] == 1
