"""Transform a message array into a form that every endpoint accepts; no I/O.

Chat templates of Gemma, Mistral and others refuse consecutive messages of one role, empty messages, an array that
begins with an answer, or a system message.

Invariant: no text is lost or reordered, and the array of a turn has that of the previous turn as its prefix, so that
the provider's prompt cache applies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from exai.models import Prompt, Role

BETWEEN: Final = "\n\n"
BEFORE_AN_ANSWER: Final = "(The conversation begins with the following message.)"
"""The user's message before an answer that nothing precedes."""


def shaped(messages: Sequence[Prompt], *, strictly: bool = True, system_role: bool = True) -> list[dict[str, str]]:
    """Return messages of alternating roles, none empty, with the user's first, after the system's if there is one.

    Without `system_role` the system's text begins the first message of the user. Not `strictly`, the messages stay
    apart and in any order, for a model that is known to take them so.
    """
    said = [Prompt(_role(message), message.content) for message in messages if message.content.strip()]
    if not strictly and system_role:
        return _encoded(said)
    system = _joined(message.content for message in said if message.role == "system")
    talk = _merged(message for message in said if message.role != "system")
    if talk and talk[0].role != "user":
        talk.insert(0, Prompt("user", BEFORE_AN_ANSWER))
    if system and not system_role:
        first = talk.pop(0).content if talk else ""
        talk.insert(0, Prompt("user", _joined(filter(None, (system, first)))))
    elif system:
        talk.insert(0, Prompt("system", system))
    return _encoded(talk)


def alternates(messages: Sequence[Mapping[str, str]]) -> bool:
    """Return whether strict shaping would leave the messages of a body unchanged."""
    roles = [message["role"] for message in messages]
    return roles in (_alternating(len(roles)), ["system", *_alternating(len(roles) - 1)])


def _alternating(length: int) -> list[str]:
    return [("user", "assistant")[at % 2] for at in range(length)]


def _encoded(messages: Iterable[Prompt]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _merged(messages: Iterable[Prompt]) -> list[Prompt]:
    """Return the messages with adjacent ones of the same role joined."""
    groups: list[tuple[Role, list[str]]] = []
    for message in messages:
        if groups and groups[-1][0] == message.role:
            groups[-1][1].append(message.content)
        else:
            groups.append((message.role, [message.content]))
    return [Prompt(role, _joined(contents)) for role, contents in groups]


def _joined(contents: Iterable[str]) -> str:
    return BETWEEN.join(contents)


def _role(message: Prompt) -> Role:
    # A tool's message is accepted only as the answer to a recorded call; as the user's it keeps its place and text.
    return "user" if message.role == "tool" else message.role
