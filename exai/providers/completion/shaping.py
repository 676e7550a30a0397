"""Transform a message array into a form that every endpoint accepts; no I/O.

Chat templates of Gemma, Mistral and others refuse consecutive messages of one role, empty messages, an array that
begins with an answer, or a system message.

Invariant: no text is lost or reordered, and the array of a turn has that of the previous turn as its prefix, so that
the provider's prompt cache applies.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, Final

from exai.models import Prompt, PromptImage

BETWEEN: Final = "\n\n"
BEFORE_AN_ANSWER: Final = "(The conversation begins with the following message.)"
"""The user's message before an answer that nothing precedes."""


REASONING_FIELD: Final = "reasoning_content"
"""The field in which an answer's reasoning is returned if another provider gave it, or none did; it is then empty."""

RETURNED_FIELDS: Final = frozenset({REASONING_FIELD, "reasoning"})
"""The fields in which endpoints take reasoning back."""


def shaped(
    messages: Sequence[Prompt],
    *,
    strictly: bool = True,
    system_role: bool = True,
    reasoning_to: str | None = None,
    takes_images: bool = False,
) -> list[dict[str, Any]]:
    """Return messages of alternating roles, none empty, with the user's first, after the system's if there is one.

    Without `system_role` the system's text begins the first message of the user. Not `strictly`, the messages stay
    apart and in any order, for a model that is known to take them so. The provider `reasoning_to` receives the
    reasoning that it gave, an answer without any an empty one; all others receive none.
    """
    # A tool's message is accepted only as the answer to a recorded call; as the user's it keeps its place and text.
    said = [
        replace(message, role="user") if message.role == "tool" else message
        for message in messages
        if message.content.strip()
    ]
    encode = partial(_encoded, reasoning_to=reasoning_to, takes_images=takes_images)
    if not strictly and system_role:
        return encode(said)
    system = _joined(message.content for message in said if message.role == "system")
    talk = _merged(message for message in said if message.role != "system")
    if talk and talk[0].role != "user":
        talk.insert(0, Prompt("user", BEFORE_AN_ANSWER))
    if system and not system_role:
        first = talk.pop(0) if talk else Prompt("user", "")
        talk.insert(0, replace(first, content=_joined(filter(None, (system, first.content)))))
    elif system:
        talk.insert(0, Prompt("system", system))
    return encode(talk)


def alternates(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether strict shaping would leave the messages of a body unchanged."""
    roles = [message["role"] for message in messages]
    return roles in (_alternating(len(roles)), ["system", *_alternating(len(roles) - 1)])


def _alternating(length: int) -> list[str]:
    return [("user", "assistant")[at % 2] for at in range(length)]


def _encoded(messages: Iterable[Prompt], *, reasoning_to: str | None, takes_images: bool) -> list[dict[str, Any]]:
    encoded = []
    for message in messages:
        element: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.images and takes_images:
            images = ({"type": "image_url", "image_url": {"url": _address(image)}} for image in message.images)
            element["content"] = [{"type": "text", "text": message.content}, *images]
        if reasoning_to is not None and message.role == "assistant":
            own = message.reasoning if message.reasoning and message.reasoning.provider == reasoning_to else None
            element[own.field if own else REASONING_FIELD] = own.text if own else ""
        encoded.append(element)
    return encoded


def _address(image: PromptImage) -> str:
    return f"data:{image.media_type};base64,{b64encode(image.data).decode()}"


def _merged(messages: Iterable[Prompt]) -> list[Prompt]:
    """Return the messages with adjacent ones of the same role joined."""
    merged: list[Prompt] = []
    for role, group in groupby(messages, key=lambda message: message.role):
        parts = list(group)
        if len(parts) == 1:
            merged += parts
            continue
        images = tuple(image for part in parts for image in part.images)
        merged.append(Prompt(role, _joined(part.content for part in parts), images, parts[-1].reasoning))
    return merged


def _joined(contents: Iterable[str]) -> str:
    return BETWEEN.join(contents)
