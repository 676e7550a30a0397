"""What judges and arbiters are shown of answers, and what is read from theirs."""

from __future__ import annotations

import pytest

from exai.conversations.turns.prompt import estimate_tokens
from exai.workflows.consensus.prompts import (
    Disagreement,
    disagreements_in,
    has_dismissals,
    judged_text,
    label_answers,
    mean_ranks,
    ranks_in,
)

NAMES = ["kimi-k3.1-pro", "glm-5.3"]


def shown(text: str, question: str = "Which?") -> str:
    [answer] = label_answers([(0, text, None)], "seed", NAMES, question)
    return answer.content


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ("As Kimi, I prefer A.", "As [a model], I prefer A."),
        ("I am GLM-5.3 and prefer A.", "I am [a model] and prefer A."),
        ("I am kimi-k3.1-pro-highspeed, and glad.", "I am [a model], and glad."),
        ("I'm Claude, made by Anthropic.", "I'm [a model], made by [a model]."),
        ("I was trained by OpenAI.", "I was trained by [a model]."),
        ("kimi-k3.1-pro says A.", "[a model] says A."),
        ("Google Cloud is cheaper than Claude's answer.", "Google Cloud is cheaper than Claude's answer."),
        ("The algorithm glmnet is fine.", "The algorithm glmnet is fine."),
    ],
)
def test_authors_are_hidden_and_other_words_kept(said: str, seen: str) -> None:
    assert shown(said) == seen


def test_a_name_that_the_question_uses_is_kept() -> None:
    assert shown("Kimi is cheaper than GLM.", "Kimi or GLM?") == "Kimi is cheaper than GLM."


def test_the_order_depends_on_the_seed_alone() -> None:
    given = [(index, str(index), None) for index in range(5)]
    once = label_answers(given, "a", NAMES, "?")
    assert once == label_answers(given, "a", NAMES, "?")
    assert {tuple(each.index for each in label_answers(given, str(seed), NAMES, "?")) for seed in range(20)} != {
        tuple(each.index for each in once)
    }


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("A: ok\nRANKING: B > A > C", {"B": 1, "A": 2, "C": 3}),
        ("RANKING: B > A = C", {"B": 1, "A": 2.5, "C": 2.5}),
        ("**RANKING:** A=B=C", {"A": 2, "B": 2, "C": 2}),
        ("RANKING: A > B > C\nOn reflection\nRANKING: C > B > A", {"C": 1, "B": 2, "A": 3}),
        ("RANKING: B > A", None),
        ("RANKING: B > A > C > D", None),
        ("RANKING: B > A > A", None),
        ("All are good.", None),
        ("", None),
    ],
)
def test_a_ranking_is_an_order_of_all_letters_or_none(text: str, ranks: dict[str, float] | None) -> None:
    assert ranks_in(text, ["A", "B", "C"]) == ranks


def test_mean_ranks_count_their_judges() -> None:
    assert mean_ranks([{0: 1, 1: 2}, {1: 1, 2: 2}]) == {0: (1, 1), 1: (1.5, 2), 2: (2, 1)}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("DIFFER: A, C: the price", [Disagreement(("A", "C"), "the price")]),
        (
            "- DIFFER: A and B: locks.\nDIFFER: B, C: x",
            [Disagreement(("A", "B"), "locks"), Disagreement(("B", "C"), "x")],
        ),
        ("DIFFER: none", []),
        ("DIFFER: A, Z: x", []),
        ("DIFFER: A: x", []),
        ("DIFFER: A, B: ...", []),
    ],
)
def test_disagreements_name_known_letters(text: str, found: list[Disagreement]) -> None:
    assert disagreements_in(text, "ABC") == found


def test_answers_that_do_not_fit_are_shortened_alike_and_the_question_is_whole() -> None:
    labelled = label_answers([(0, "x" * 30_000, None), (1, "y" * 30_000, None)], "s", NAMES, "Which?")
    text = judged_text("Which?", labelled, "m4rk", 5_000)
    assert "<question m4rk>\nWhich?" in text
    assert 4_000 < estimate_tokens(text) <= 5_000
    assert text.count("x") == text.count("y")
    assert text.count("the rest was left out") == 2


@pytest.mark.parametrize(
    "text", ["\n" * 2**20, "DIFFER: A, B: x" + "-" * 2**20 + "y", "-" * 2**20, "RANKING" + "-" * 2**20]
)
def test_time_of_reading_grows_no_faster_than_the_text(text: str) -> None:
    """An answer may have 4 MiB, and is read where all other calls wait."""
    ranks_in(text, "ABC"), disagreements_in(text, "ABC"), has_dismissals(text)


def test_disagreements_without_end_are_limited() -> None:
    """They are in the sentence about what to do next, which no client may have to cut."""
    assert len(disagreements_in("\n".join(f"DIFFER: A, B: {number}" for number in range(10_000)), "ABC")) == 10
    assert len(disagreements_in("DIFFER: A, B: x\n" * 10_000, "ABC")) == 1
