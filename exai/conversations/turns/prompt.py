"""Choose the messages of a prompt: the newest history that fits the model's window, oldest first.

Invariant: each stored message appears at most once and unchanged, so the prompt grows linearly with the conversation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from exai.errors import InvalidArgument
from exai.models import DERIVED_KINDS, Message, Prompt

BYTES_PER_TOKEN = 3
"""UTF-8 bytes assumed per token: fewer than English has, about what Chinese has; errs on the safe side."""

MESSAGE_OVERHEAD_TOKENS = 8
"""Tokens a provider's template adds around one message."""

FINISH_REASON = "finish_reason"
"""The field of an answer's metadata that says how the model ended it; an answer that broke off has none."""


class Asked(NamedTuple):
    """What a model is asked with, oldest first, and the tokens left of its window.

    `left_out` counts older messages that did not fit; `notes` has sentences for the caller.
    """

    messages: list[Prompt]
    left_tokens: int
    left_out: int = 0
    notes: tuple[str, ...] = ()


def estimate_tokens(text: str) -> int:
    """Return an upper estimate of the tokens of `text` in any provider's tokenizer."""
    return len(text.encode()) // BYTES_PER_TOKEN + 1 + MESSAGE_OVERHEAD_TOKENS


def check_fits(prompt: str, system: str | None, available_tokens: int) -> None:
    """Raise `InvalidArgument` for a question that does not fit the window even without history."""
    needed = estimate_tokens(prompt) + (estimate_tokens(system) if system else 0)
    if needed > available_tokens:
        raise InvalidArgument(
            "prompt",
            f"is about {needed:,} tokens; the model can read {available_tokens:,} beside its answer",
            "Shorten it, ask for less output, or choose a model with a larger window",
        )


def instructed(messages: list[Prompt], instructions: str) -> list[Prompt]:
    """Return an array with the instructions of its turn in the system message, after those of the conversation."""
    if messages and messages[0].role == "system":
        return [Prompt("system", f"{messages[0].content}\n\n{instructions}"), *messages[1:]]
    return [Prompt("system", instructions), *messages]


def choose(messages: Iterable[Message], system: Message | None, available_tokens: int) -> tuple[list[Message], int]:
    """Choose messages from the newest backwards until the window is full.

    Returns them oldest first, and the number of tokens left.

    The newest system message comes first and supersedes earlier ones. Partial answers of failed turns are left out,
    because the model did not complete them.
    """
    ordered = sorted(messages, key=lambda message: message.seq, reverse=True)
    system = next((message for message in ordered if message.role == "system"), system)
    left = available_tokens - (estimate_tokens(system.content) if system else 0)
    chosen: list[Message] = []
    for message in ordered:
        if not _is_sent(message):
            continue
        cost = estimate_tokens(message.content)
        if cost > left and chosen:
            _drop_headless_answers(chosen)
            break
        left -= cost
        chosen.append(message)
    if system:
        chosen.append(system)
    chosen.reverse()
    return chosen, max(left, 0)


def count_left_out(history: Sequence[Message], system: Message | None, chosen: Sequence[Message]) -> int:
    """Return how many messages of a conversation are older than those chosen of it, whether they were read or not."""
    oldest_chosen = min((message.seq for message in chosen if message.role != "system"), default=0)
    oldest_read = min((message.seq for message in history), default=1)
    unread = max(oldest_read - 1, 0) - (system is not None and 0 < system.seq < oldest_read)
    return unread + sum(message.seq < oldest_chosen for message in history if _is_sent(message))


def _is_sent(message: Message) -> bool:
    if message.role == "system" or (message.role == "assistant" and message.kind in DERIVED_KINDS):
        return False
    return message.kind not in ("partial", "failed") or FINISH_REASON in message.metadata


def _drop_headless_answers(newest_first: list[Message]) -> None:
    """Let a cut history start with a question: some templates refuse an array that starts with an answer."""
    while len(newest_first) > 1 and newest_first[-1].role != "user":
        newest_first.pop()
