"""Steps, findings and verdicts are rows: what is stored, what a model is shown of it, and what it costs."""

from __future__ import annotations

import orjson
import pytest

from exai.app import open_app
from exai.db.search import SearchQuery
from exai.errors import Conflict, InvalidArgument
from exai.mcp.core.protocol import ClientInfo
from exai.models import LOCAL_OWNER
from exai.settings.load import FileSettings
from exai.workflows import load_workflows
from tests.integration.conversations.conftest import Rig
from tests.integration.workflows.conftest import call, called, rows_of, tools_of
from tests.support.provider_server import ProviderServer, chunk, kimi_answer, stream

REVIEW = """The loop never ends.

```findings
high: the loop never ends for an empty list (src/a.py:12)
- Low: the name misleads (src/a.py)
```

VERDICT: fix first
"""


def shown(provider: ProviderServer) -> str:
    """Everything that the model was shown by the last request."""
    return "\n---\n".join(message["content"] for message in provider.chats[-1].body["messages"])


async def test_answer_has_findings_with_places_a_verdict_and_what_to_do_next(rig: Rig) -> None:
    """The result of a review; its findings are numbered as the model's block has them."""
    rig.provider.script(kimi_answer(REVIEW))
    result = await called(rig.app, "codereview", {"prompt": "Is it right?", "findings": "medium: slow, I think"})
    answer = result["structuredContent"]
    assert [(each["id"], each["severity"], each["file"], each["line"], each["by"]) for each in answer["findings"]] == [
        (1, "high", "src/a.py", 12, "model"),
        (2, "low", "src/a.py", None, "model"),
        (3, "medium", None, None, "caller"),
    ]
    assert (answer["verdict"], answer["step"], answer["complete"]) == ("fix first", 1, True)
    assert answer["next"].startswith("No code was read.")
    assert list(answer)[:2] == ["continuation_id", "next"]
    text = result["content"][0]["text"]
    assert text.startswith(f"continuation_id: {answer['continuation_id']} | next: ")
    assert "The loop never ends." in text
    assert answer["cost_usd"] > 0


async def test_rows_are_typed_and_numbered_in_the_order_of_the_work(rig: Rig) -> None:
    """Findings of the caller, the step, the model's findings, the verdict, the answer: each kind is its own row."""
    rig.provider.script(kimi_answer(REVIEW))
    answer = await call(rig.app, "codereview", prompt="Is it right?", findings=["medium: slow (b.py:3)"], focus="speed")
    rows = await rows_of(rig.app, answer["continuation_id"])
    assert [(row.role, row.kind) for row in rows] == [
        ("user", "finding"),
        ("user", "step"),
        ("assistant", "finding"),
        ("assistant", "finding"),
        ("assistant", "verdict"),
        ("assistant", "answer"),
    ]
    assert rows[0].content == "Finding: medium: slow (b.py:3)"
    assert dict(rows[0].metadata) == {
        "workflow": "codereview",
        "by": "caller",
        "severity": "medium",
        "file": "b.py",
        "line": 3,
    }
    assert rows[1].metadata["focus"] == "speed"
    assert rows[4].metadata["verdict"] == "fix first"
    assert answer["seq"] == rows[-1].seq
    found = await rig.app.conversations.search(SearchQuery(LOCAL_OWNER, "misleads"))
    assert {hit.seq for hit in found.hits} == {rows[3].seq, rows[5].seq}


async def test_recording_a_step_costs_one_round_trip_and_asking_two(rig: Rig) -> None:
    """The promises of append and chat hold; the step is counted by the same statement."""
    rig.reset()
    recorded = await call(rig.app, "debug", prompt="It hangs.", hypothesis="A lock.", ask_model=False)
    assert rig.cost()[0] == 1
    assert (recorded["step"], recorded["model"], recorded["content"]) == (1, None, "Step 1 of debug recorded.")
    assert rig.provider.chats == []
    key = recorded["continuation_id"]
    rig.reset()
    asked = await call(rig.app, "debug", prompt="Alone it does not.", continuation_id=key)
    assert (rig.cost()[0], asked["step"]) == (2, 2)
    await call(rig.app, "chat", prompt="And?", continuation_id=key)
    assert (await call(rig.app, "debug", prompt="More.", continuation_id=key, ask_model=False))["step"] == 3
    assert (await call(rig.app, "analyze", prompt="How?", continuation_id=key, ask_model=False))["step"] == 1


async def test_steps_of_a_fork_go_on_counting_those_it_inherited(rig: Rig) -> None:
    """Only those up to where it was forked."""
    key = (await call(rig.app, "debug", prompt="One.", ask_model=False))["continuation_id"]
    for text in ("Two.", "Three."):
        await call(rig.app, "debug", prompt=text, continuation_id=key, ask_model=False)
    fork = await rig.app.conversations.fork(LOCAL_OWNER, key, at_seq=2)
    again = await call(rig.app, "debug", prompt="Else.", continuation_id=fork.continuation_id, ask_model=False)
    assert again["step"] == 3


async def test_instructions_end_the_question_they_are_for_and_are_not_stored(rig: Rig) -> None:
    """They stay with their question when another tool asks, each once; the conversation has their name."""
    rig.provider.default = lambda _: kimi_answer("Fine.")
    answer = await call(rig.app, "secaudit", prompt="Is it safe?")
    (first,) = rig.provider.chats[-1].body["messages"]
    assert first["role"] == "user"
    assert first["content"].startswith("Is it safe?\n\n<instructions ")
    assert first["content"].endswith(f"\n{load_workflows()['secaudit'].instructions}\n</instructions>")
    key = answer["continuation_id"]
    await call(rig.app, "chat", prompt="Thanks.", system="Be brief.", continuation_id=key)
    assert rig.provider.chats[-1].body["messages"][0]["content"] == "Be brief."
    await call(rig.app, "tracer", prompt="Trace.", target="f", continuation_id=key)
    system, *others = (message["content"] for message in rig.provider.chats[-1].body["messages"])
    assert system == "Be brief."
    assert [content.count("<instructions ") for content in others] == [1, 0, 0, 0, 1]
    assert others[0] == first["content"]
    assert load_workflows()["tracer"].instructions in others[-1]
    rows = await rows_of(rig.app, key)
    assert [row.metadata.get("instructions") for row in rows if row.kind == "step"] == ["secaudit", "tracer"]
    assert not any("You audit code" in row.content for row in rows)


async def test_effort_is_asked_for_where_the_model_has_it(rig: Rig) -> None:
    """A preference of the workflow, not a demand that some models refuse."""
    await call(rig.app, "debug", prompt="Why?", model="kimi-k3.1-pro")
    assert rig.provider.chats[-1].body["reasoning_effort"] == "high"
    await call(rig.app, "docgen", prompt="Document.", model="kimi-k3.1-pro")
    assert rig.provider.chats[-1].body["reasoning_effort"] == "low"


async def test_a_repeated_key_is_one_turn_with_the_same_result(rig: Rig) -> None:
    """Also for a recorded step; other arguments under the key are a conflict."""
    rig.provider.script(kimi_answer(REVIEW))
    given = {"prompt": "Is it right?", "findings": ["low: x"], "idempotency_key": "k"}
    first = await call(rig.app, "codereview", **given)
    again = await call(rig.app, "codereview", **given)
    assert again == {**first, "duplicate": True}
    assert len(rig.provider.chats) == 1
    with pytest.raises(Conflict):
        await call(rig.app, "codereview", **{**given, "focus": "speed"})
    recorded = await call(rig.app, "debug", prompt="x", ask_model=False, idempotency_key="r")
    assert await call(rig.app, "debug", prompt="x", ask_model=False, idempotency_key="r") == {
        **recorded,
        "duplicate": True,
    }


async def test_a_stored_turn_gives_the_result_that_its_caller_had(rig: Rig) -> None:
    """On another daemon too: a task is read from its row."""
    rig.provider.script(kimi_answer(REVIEW))
    spec = tools_of(rig.app)["codereview"]
    answer = await call(rig.app, "codereview", prompt="Is it right?", findings=["low: x"])
    turn = (await rows_of(rig.app, answer["continuation_id"]))[-1].turn_id
    async with open_app(rig.app.settings) as other:
        stored = await other.chat.result(LOCAL_OWNER, turn or "")
    assert stored is not None
    assert spec.answer_from is not None
    made = orjson.loads(orjson.dumps(spec.answer_from(stored.result, ClientInfo()).as_json()))
    assert made == answer


async def test_an_answer_that_broke_off_has_no_verdict(rig: Rig) -> None:
    """A last line that happens to be there proves nothing."""
    rig.provider.script(kimi_answer("All is well.\n\nVERDICT: pass", finish="length"))
    answer = await call(rig.app, "codereview", prompt="Is it right?")
    assert answer["verdict"] is None
    assert "broke off" in answer["next"]
    assert "verdict" not in {row.kind for row in await rows_of(rig.app, answer["continuation_id"])}


async def test_a_pass_beside_a_blocking_finding_is_noted(rig: Rig) -> None:
    """The caller must not take the word for the whole answer."""
    rig.provider.script(kimi_answer("```findings\ncritical: data loss (a.py:1)\n```\nVERDICT: pass"))
    answer = await call(rig.app, "codereview", prompt="Is it right?", findings=["x"], continuation_id=None)
    assert answer["verdict"] == "pass"
    assert any("critical" in note for note in answer["notes"])


async def test_the_failure_of_a_model_leaves_the_step(rig: Rig) -> None:
    """A client that never comes back leaves valid rows, which any tool reads."""
    rig.provider.script(stream(chunk({"content": "Half"}), "rst"))
    with pytest.raises(Exception, match="kimi"):
        await call(rig.app, "debug", prompt="Why?", hypothesis="A race.")
    (conversation,) = (await rig.app.conversations.list(LOCAL_OWNER)).conversations
    rows = await rows_of(rig.app, conversation.continuation_id)
    assert [row.kind for row in rows] == ["hypothesis", "step", "partial"]
    again = await call(rig.app, "debug", prompt="Again.", continuation_id=conversation.continuation_id)
    assert again["step"] == 2
    assert "Hypothesis: A race." in shown(rig.provider)


async def test_files_are_read_stored_and_shown(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> None:
    """By path and by id; the result lists the files."""
    source = tmp_path_factory.mktemp("project")
    (source / "a.py").write_text("def planted(): ...\n")
    settings = rig.app.settings.model_copy(update={"files": FileSettings(roots=(source,))})
    async with open_app(settings) as app:
        answer = await call(app, "analyze", prompt="What is it?", files=[str(source / "a.py")])
    assert len(answer["read"]) == 1
    assert "a.py" in answer["read"][0]
    assert "def planted(): ..." in shown(rig.provider)


async def test_a_claim_needs_a_text_or_an_answer(rig: Rig) -> None:
    """And every other tool a prompt."""
    with pytest.raises(InvalidArgument, match="prompt"):
        await call(rig.app, "challenge")
    with pytest.raises(ValueError, match="prompt"):
        await call(rig.app, "debug")
