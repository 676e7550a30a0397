"""Which small differences of two questions are large ones of their meaning."""

from __future__ import annotations

import pytest

from exai.conversations.turns.similar import exact_parts


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do 2 mutexes work?", "How do 3 mutexes work?"),
        ("How do two mutexes work?", "How do three mutexes work?"),
        ("Is -5 a natural number?", "Is 5 a natural number?"),
        ("What if a < b?", "What if a > b?"),
        ("Is 3 > 5?", "Is 5 > 3?"),
        ("Should I lock it?", "Should I never lock it?"),
        ("Who is for it?", "Who is neither for it?"),
        ("Why can it fail?", "Why can't it fail?"),
        ("Soll ich es sperren?", "Soll ich es nicht sperren?"),
        ("Faut-il le faire?", "Faut-il ne pas le faire?"),
        ("Нужно ли это?", "Не нужно ли это?"),
        ("应该加锁吗?", "不应该加锁吗?"),
        ("有两个锁吗?", "有三个锁吗?"),
        ("What does `read` do?", "What does `write` do?"),
        ("What does os.read do?", "What does os.write do?"),
        ("What is in /etc/hosts?", "What is in /etc/passwd?"),
        ("What does max_size mean?", "What does min_size mean?"),
        ("What is std::move?", "What is std::forward?"),
    ],
)
def test_questions_that_mean_something_else_have_other_parts(one: str, other: str) -> None:
    assert exact_parts(one) != exact_parts(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How does a mutex work?", "Please explain how a mutex works."),
        ("What does `os.read` do?", "Explain `os.read`, please."),
        ("Why are 3 locks not enough?", "For what reason do 3 locks not suffice?"),
        ("Wie arbeitet ein Mutex?", "Erkl\u00e4re, wie ein Mutex arbeitet."),
    ],
)
def test_paraphrases_have_the_same_parts(one: str, other: str) -> None:
    assert exact_parts(one) == exact_parts(other)
