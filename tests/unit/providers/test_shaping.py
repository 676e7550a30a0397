"""The message array: accepted by every chat template, without loss of text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exai.models import Prompt, Role
from exai.providers.completion.shaping import BEFORE_AN_ANSWER, shaped

ROLES: dict[str, Role] = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def prompts(text: str) -> list[Prompt]:
    """Read `u:one a:two`, where `-` is an empty content."""
    pairs = (part.split(":") for part in text.split())
    return [Prompt(ROLES[role], "" if content == "-" else content) for role, content in pairs]


@pytest.mark.parametrize(
    ("given_messages", "sent"),
    [
        ("u:1 a:2 u:3", "user:1 assistant:2 user:3"),
        ("u:1 u:2", "user:1+2"),
        ("s:0 u:1 a:2 a:3 u:4", "system:0 user:1 assistant:2+3 user:4"),
        ("u:1 a:- u:2", "user:1+2"),
        ("u:- u:1", "user:1"),
        ("a:1 u:2", f"user:{BEFORE_AN_ANSWER} assistant:1 user:2"),
        ("s:0 a:1 u:2", f"system:0 user:{BEFORE_AN_ANSWER} assistant:1 user:2"),
        ("u:1 s:0 u:2", "system:0 user:1+2"),
        ("s:0 s:1 u:2", "system:0+1 user:2"),
        ("u:1 t:2 a:3", "user:1+2 assistant:3"),
        ("s:0", "system:0"),
    ],
)
def test_array_alternates_and_begins_with_the_user(given_messages: str, sent: str) -> None:
    """Templates of Gemma and Mistral raise an error for anything else."""
    made = [
        f"{message['role']}:{message['content'].replace(chr(10) * 2, '+')}"
        for message in shaped(prompts(given_messages))
    ]
    assert " ".join(made) == sent


def test_system_text_goes_with_the_user_where_there_is_no_such_role() -> None:
    """Gemma's first template has none."""
    assert shaped(prompts("s:0 u:1 a:2"), system_role=False) == [
        {"role": "user", "content": "0\n\n1"},
        {"role": "assistant", "content": "2"},
    ]
    assert shaped(prompts("s:0"), system_role=False) == [{"role": "user", "content": "0"}]


SPEAKERS: list[Role] = ["user", "assistant", "tool"]


@given(st.lists(st.tuples(st.sampled_from(SPEAKERS), st.text(max_size=5)), max_size=12))
def test_no_text_is_lost_and_each_array_begins_as_the_last(said: list[tuple[Role, str]]) -> None:
    """The provider's cached prefix of a turn serves the next one."""
    messages = [Prompt(role, content) for role, content in said]
    made = shaped(messages)
    roles = [message["role"] for message in made]
    assert roles == ["user", "assistant"] * (len(made) // 2) + ["user"] * (len(made) % 2)
    assert all(message["content"].strip() for message in made)
    kept = "".join(content for _, content in said if content.strip())
    joined = "\n\n".join(message["content"] for message in made)
    assert joined.replace("\n", "").removeprefix(BEFORE_AN_ANSWER) == kept.replace("\n", "")
    before = shaped(messages[:-1])
    assert made[: max(len(before) - 1, 0)] == before[:-1]
