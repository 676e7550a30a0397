"""Choose the messages of a prompt: the newest history that fits the model's window, oldest first.

Invariant: each stored message appears at most once and unchanged, so the prompt grows linearly with the conversation,
and the array of a turn begins with that of the previous one. History that no longer fits is left out in blocks, so that
many turns begin with the same message and the provider's cache of the prefix applies to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from exai.conversations.turns.instructions import Instructions
from exai.encryption.codec import require_readable
from exai.errors import InvalidArgument
from exai.files.sources import ChangedFile
from exai.models import DERIVED_KINDS, FILE_IDS, PANEL_KINDS, FileId, Message, Prompt, Reasoning, StoredFile
from exai.providers.completion.shaping import RETURNED_FIELDS
from exai.token_estimate import text_tokens
from exai.validation import is_file_id

MAX_BYTES_PER_TOKEN = 5
"""UTF-8 bytes that the history read for one token may have: slightly more than those of English prose."""

KEPT_SHARE = 0.7
"""Share of the room that history fills at least after a block of it was left out."""

MESSAGE_OVERHEAD_TOKENS = 8
"""Tokens a provider's template adds around one message."""

MAX_FILES = 200
"""Maximum number of files considered per message."""

WRAPPING_TOKENS = 40
"""Maximum number of tokens of the lines around a file's content, or of the line about a file that is not shown."""

FINISH_REASON = "finish_reason"
"""The field of an answer's metadata with the finish reason; an answer that broke off has none."""


REASONING = "reasoning"
"""The field of an answer's metadata with reasoning that its endpoint demands back."""


NO_INSTRUCTIONS = Instructions()


class Asked(NamedTuple):
    """The messages for a model, oldest first, and the tokens left of its window.

    `left_out` counts older messages that did not fit; `notes` has sentences for the caller. `files` are those of the
    messages, whether they were shown or only named, and `changed` those that are not the same on disk any more.
    """

    messages: list[Prompt]
    left_tokens: int
    left_out: int = 0
    notes: tuple[str, ...] = ()
    files: tuple[StoredFile, ...] = ()
    changed: tuple[ChangedFile, ...] = ()

    @property
    def has_images(self) -> bool:
        """Whether images, whose tokens are not those of a text, are among the messages."""
        return any(message.images for message in self.messages)


def estimate_tokens(text: str) -> int:
    """Return the estimated tokens of a message with this content."""
    return text_tokens(text) + 1 + MESSAGE_OVERHEAD_TOKENS


def message_tokens(message: Message, instructions: Instructions) -> int:
    """Return the estimated tokens of a message with its instructions and lines about its files, without contents."""
    if not message.metadata:
        return estimate_tokens(message.content)
    reasoning = reasoning_of(message)
    text_and_lines = estimate_tokens(message.content) + WRAPPING_TOKENS * len(file_ids_of(message))
    return text_and_lines + instructions.tokens_of(message) + (text_tokens(reasoning.text) if reasoning else 0)


def file_ids_of(message: Message) -> tuple[FileId, ...]:
    """Return the file ids in a message's metadata, which may be malformed because callers of append write it freely."""
    ids = message.metadata.get(FILE_IDS, ())
    if not ids:
        return ()
    return tuple(dict.fromkeys(islice(filter(is_file_id, ids), MAX_FILES))) if isinstance(ids, list | tuple) else ()


def reasoning_of(message: Message) -> Reasoning | None:
    """Return the stored reasoning of an answer, if its endpoint demands it back."""
    kept, provider = message.metadata.get(REASONING), message.metadata.get("provider")
    if kept is None:
        return None
    if not isinstance(kept, dict) or kept.get("field") not in RETURNED_FIELDS or not isinstance(provider, str):
        return None
    text = kept.get("text")
    return Reasoning(provider, kept["field"], text) if isinstance(text, str) else None


def check_fits(prompt: str, system: str | None, available_tokens: int, taken_tokens: int = 0) -> None:
    """Raise `InvalidArgument` for a question that does not fit the window even without history.

    `taken_tokens` are those of the texts that were taken out of the prompt.
    """
    needed = taken_tokens + estimate_tokens(prompt) + (estimate_tokens(system) if system else 0)
    if needed > available_tokens:
        raise InvalidArgument(
            "prompt",
            f"is about {needed:,} tokens; the model can read {available_tokens:,} beside its answer",
            "Shorten it, ask for less output, or choose a model with a larger window",
        )


def system_of(messages: Iterable[Message], older: Message | None) -> Message | None:
    """Return the system message in force: the newest one, which may be older than the messages read."""
    return max((message for message in messages if message.role == "system"), key=lambda each: each.seq, default=older)


def choose(
    messages: Iterable[Message],
    system: Message | None,
    available_tokens: int,
    instructions: Instructions = NO_INSTRUCTIONS,
) -> tuple[list[Message], int]:
    """Choose messages from the newest backwards until the window is full.

    Returns them oldest first, and the number of tokens left.

    The newest system message comes first and supersedes earlier ones. Partial answers of failed turns are left out,
    because the model did not complete them.

    Raises `ContentUnreadable` if one of the messages could not be decrypted.
    """
    ordered = sorted(messages, key=lambda message: message.seq, reverse=True)
    require_readable(ordered if system is None else (*ordered, system))
    system = system_of(ordered, system)
    left = available_tokens - (estimate_tokens(system.content) if system else 0)
    sent = [(message, message_tokens(message, instructions)) for message in ordered if is_sent(message)]
    is_whole = not ordered or ordered[-1].seq == 1
    first_seq = first_shown([(message.seq, tokens) for message, tokens in sent], left, is_whole=is_whole)
    chosen = [message for message, _ in sent if message.seq >= first_seq]
    if len(chosen) < len(sent) or not is_whole:
        _drop_headless_answers(chosen)
    left -= sum(tokens for message, tokens in sent[: len(chosen)])
    if system:
        chosen.append(system)
    chosen.reverse()
    return chosen, max(left, 0)


def first_shown(sizes: Sequence[tuple[int, int]], available_tokens: int, *, is_whole: bool) -> int:
    """Return the number of the oldest message to show, given number and tokens of each, newest first.

    All are shown if they fit and are `is_whole`, with nothing older. Otherwise the result is the number divisible by
    the highest power of two between the oldest message that fits and the oldest that leaves a part of the room free.
    It is the same for many turns, and needs no memory of the previous one.
    """
    oldest_fitting = oldest_kept = sizes[0][0] if sizes else 1
    most = min(available_tokens, sum(tokens for _, tokens in sizes))
    used = 0
    for seq, tokens in sizes:
        used += tokens
        if used > available_tokens:
            break
        oldest_fitting = seq
        if used <= most * KEPT_SHARE:
            oldest_kept = seq
    else:
        if is_whole:
            return oldest_fitting
    step = 1 << oldest_kept.bit_length()
    while step > 1 and oldest_kept // step * step < oldest_fitting:
        step //= 2
    return oldest_kept // step * step


def count_left_out(history: Sequence[Message], system: Message | None, chosen: Sequence[Message]) -> int:
    """Return how many messages of a conversation are older than those chosen of it, whether they were read or not."""
    oldest_chosen = min((message.seq for message in chosen if message.role != "system"), default=0)
    oldest_read = min((message.seq for message in history), default=1)
    unread = max(oldest_read - 1, 0) - (system is not None and 0 < system.seq < oldest_read)
    return unread + sum(message.seq < oldest_chosen for message in history if is_sent(message))


def is_sent(message: Message) -> bool:
    """Return whether a model is shown this message; the system message in force is chosen apart."""
    if message.role == "system" or (message.role == "assistant" and message.kind in DERIVED_KINDS | PANEL_KINDS):
        return False
    return message.kind not in ("partial", "failed") or FINISH_REASON in message.metadata


def _drop_headless_answers(newest_first: list[Message]) -> None:
    """Let a cut history start with a question: some templates refuse an array that starts with an answer."""
    while len(newest_first) > 1 and newest_first[-1].role != "user":
        newest_first.pop()
