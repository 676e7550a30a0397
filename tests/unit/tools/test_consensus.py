"""The arguments of `consensus`, in the forms that clients send them, and the size of its answer."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import pytest

from exai.mcp.core.protocol import ClientInfo
from exai.mcp.features.coercion import coerce
from exai.mcp.features.results import call_result
from exai.mcp.features.schemas import portable_schema
from exai.models import ContinuationId, WebSource
from exai.token_estimate import text_tokens
from exai.tools.consensus import ConsensusArguments, ConsensusOutput
from exai.tools.limits import ANSWER_CHARS
from exai.workflows.consensus import ConsensusResult, PanelAnswer

MEANT = ConsensusArguments(prompt="A or B?", files=["a.py"], models=["kimi", "glm"], stances="for_against", rank=True)


def understood(given: dict[str, Any]) -> ConsensusArguments:
    arguments, _ = coerce(portable_schema(ConsensusArguments), given, ConsensusArguments.KEEPS_EMPTY)
    return ConsensusArguments.model_validate(arguments)


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": "A or B?", "files": ["a.py"], "models": ["kimi", "glm"], "stances": "for_against", "rank": True},
        {
            "prompt": "A or B?",
            "files": '["a.py"]',
            "models": '["kimi", "glm"]',
            "stances": "for_against",
            "rank": "true",
        },
        {
            "prompt": "A or B?",
            "files": "a.py",
            "models": "kimi\nglm",
            "stances": "for_against",
            "rank": "True",
            "focus": "",
            "continuation_id": None,
        },
        {"prompt": "A or B?", "files": ["a.py"], "models": ["kimi", "glm"], "stances": "for_against", "rank": True,
         "focus": "null", "continuationId": "null"},
        {"Prompt": "A or B?", "files": ["a.py"], "models": ["kimi", "glm"], "stances": "for_against", "rank": True},
        {"prompt": "A or B?", "files": ["a.py"], "models": "kimi, glm", "stances": "for_against", "rank": True},
    ],
    ids=["native", "strings", "lines and empty", "null", "camel case", "commas"],
)  # fmt: skip
def test_all_forms_of_one_call_are_the_same_call(given: dict[str, Any]) -> None:
    assert understood(given) == MEANT


def test_the_arguments_of_an_older_consensus_are_understood() -> None:
    older = {
        "step": "A or B?",
        "step_number": 1,
        "total_steps": 3,
        "next_step_required": True,
        "findings": "None yet.",
        "relevant_files": ["a.py"],
        "models": [
            {"model": "kimi", "stance": "for"},
            {"model": "glm", "stance": "against"},
        ],
        "current_model_index": 0,
        "model_responses": [],
        "images": [],
    }
    assert understood(older) == MEANT.model_copy(update={"rank": False, "findings": "None yet."})


@pytest.mark.parametrize(
    ("models", "sides"),
    [
        ([("kimi", "against"), ("glm", "for")], ["against", "for"]),
        ([("kimi", "for"), ("glm", "for")], ["for", "for"]),
        ([("kimi", "neutral"), ("glm", "neutral")], ["weigh", "weigh"]),
        ([("kimi", "against"), ("glm", None)], ["against", None]),
        ([("kimi", "for"), ("glm", "against"), ("local", "critical")], ["for", "against", "against"]),
        ([("kimi", "for"), ("glm", "against"), ("local", "neutral")], None),
        ([("kimi", None), ("glm", None)], None),
    ],
)
def test_the_stance_of_each_model_is_kept(models: list[tuple[str, str | None]], sides: list[str] | None) -> None:
    """In the order in which they are given; one for, one against and others that weigh are `for_against`."""
    seats = [{"model": name, **({"stance": stance} if stance else {})} for name, stance in models]
    found = understood({"prompt": "A or B?", "models": seats})
    assert found.models == [name for name, _ in models]
    assert found.sides == sides
    assert found.stances == ("for_against" if sides is None and models[0][1] else "none")


def test_what_else_a_model_has_is_reported_and_an_unknown_stance_refused() -> None:
    """Nothing that was given is dropped without a note."""
    seats = [{"model": "kimi", "stance": "for", "stance_prompt": "Be bold."}, {"model": "glm", "stance": "against"}]
    assert understood({"prompt": "A or B?", "models": seats}).ignored == ["models[0].stance_prompt"]
    seats[0]["stance"] = "sideways"
    with pytest.raises(ValueError, match=r"models\[0\].stance .* a stance is for, against or neutral"):
        understood({"prompt": "A or B?", "models": seats})


def test_the_largest_answer_fits_with_next_and_continuation_id_first() -> None:
    answers = [PanelAnswer("kimi", "answered", label, seq=3, opening='"' * 600, cost_usd=0.1) for label in "ABCDE"]
    result = ConsensusResult(
        content="x" * 200_000,
        next="Decide yourself.",
        continuation_id=ContinuationId("c"),
        seq=9,
        model="glm",
        answers=tuple(answers),
        is_complete=True,
        retry_key="k",
        read=tuple(f"file {number}.py (10 lines)" for number in range(1_000)),
        cost_usd=Decimal("0.5"),
    )
    shape = call_result(ConsensusOutput.of(result))
    text = shape["content"][0]["text"]
    assert len(text) <= ANSWER_CHARS + 2_000
    assert len(orjson.dumps(shape["structuredContent"])) <= ANSWER_CHARS + 2_000
    assert text.index("continuation_id: c") < 200
    assert text.index("next: The synthesis continues") < 400


@pytest.mark.parametrize("dense", ["0f3a" * 30_000, "漢字" * 60_000], ids=["hex", "Han"])
@pytest.mark.parametrize(("client", "tokens"), [("", 10_000), ("claude-code", 25_000)])
def test_the_densest_answer_has_no_more_tokens_than_its_client_shows(dense: str, client: str, tokens: int) -> None:
    """Openings, names of files, sources and the synthesis together."""
    answers = [PanelAnswer("kimi", "answered", label, seq=3, opening=dense[:600]) for label in "ABCDE"]
    result = ConsensusResult(
        content=dense,
        next="Decide yourself.",
        continuation_id=ContinuationId("c"),
        seq=9,
        model="glm",
        answers=tuple(answers),
        is_complete=True,
        retry_key="k",
        read=(dense[:100],) * 1_000,
        left_out=(dense[:100],) * 1_000,
        sources=(WebSource("page", f"https://example.com/{dense[:100]}"),) * 500,
    )
    shape = call_result(ConsensusOutput.of(result, ClientInfo(client)))
    for shown in (shape["content"][0]["text"], orjson.dumps(shape["structuredContent"]).decode()):
        assert max(text_tokens(shown), len(shown.encode()) // 4) <= tokens
    assert shape["structuredContent"]["next_offset"] > 1_000
    assert "more, in the metadata of the question" in shape["structuredContent"]["read"][-1]
