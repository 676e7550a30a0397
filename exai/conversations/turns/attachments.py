"""Insert the files of a conversation into its prompt: the content of each file once, in the message that first has it.

Invariant: files do not displace history. The files of the question are placed first, then history is chosen, and only
the remaining tokens are used for files of earlier turns, from the newest back to one message. That message stays the
same for many turns, so that the array of a turn begins with that of the previous one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice

from exai.account import hold
from exai.blobs.base import Blobs
from exai.blobs.decoding import BINARY, Decoded, decode
from exai.conversations.turns.prompt import (
    Asked,
    choose,
    count_left_out,
    estimate_tokens,
    file_ids_of,
    first_shown,
)
from exai.db.files import FileRepository
from exai.errors import InvalidArgument
from exai.models import FileId, Message, Owner, Prompt, StoredFile
from exai.token_estimate import text_tokens

MAX_KNOWN_FILES = 2_000
"""Maximum number of files considered in one prompt, the newest first."""

MAX_NOTES = 20

LIKELY_BYTES_PER_TOKEN = 8
"""Bytes for each free token up to which files of earlier turns are read: more than those of indented code."""

MOST_BYTES_PER_TOKEN = 32
"""A file of the question with more bytes for each token of the window is refused unread."""

LONG_HISTORY_CHARS = 500_000
"""Length from which the tokens of a history are estimated in a thread."""


@dataclass(frozen=True, slots=True)
class _Content:
    """A file as text with its estimated tokens; `decoded` is the reason if it is not shown."""

    decoded: Decoded | str
    tokens: int = 0


class Attachments:
    """Puts the contents of files into prompts; a conversation without files costs nothing here."""

    def __init__(self, files: FileRepository, blobs: Blobs) -> None:
        self._files, self._blobs = files, blobs

    async def prompt(
        self, owner: Owner, history: Sequence[Message], system: Message | None, room_tokens: int, limit_tokens: int
    ) -> Asked:
        """Return what a model is asked with: history up to `room_tokens`, and a question up to `limit_tokens`.

        One statement if any message has files, and one for each 4 MiB of them that are read; none otherwise. Raises
        `InvalidArgument` when the files of the newest message alone do not fit.
        """
        facts = await self._facts(owner, history)
        newest = max(history, key=lambda message: message.seq)
        own = _known(newest, facts)
        least_tokens = sum(file.size_bytes for file in own if file.encoding != BINARY) // MOST_BYTES_PER_TOKEN
        if least_tokens > limit_tokens:
            raise _too_large(least_tokens, limit_tokens)
        contents = await self._contents(owner, _candidates(history, facts, own, room_tokens))
        own_tokens = sum(contents[file.id].tokens for file in own)
        if own_tokens and own_tokens > limit_tokens - estimate_tokens(newest.content):
            raise _too_large(own_tokens, limit_tokens)
        if sum(len(message.content) for message in history) > LONG_HISTORY_CHARS:
            chosen, left_tokens = await asyncio.to_thread(choose, history, system, room_tokens - own_tokens)
        else:
            chosen, left_tokens = choose(history, system, room_tokens - own_tokens)
        showing = _Showing(facts, contents, newest, left_tokens)
        showing.first_seq = showing.first_with_files(chosen)
        messages = [showing.part(message) for message in chosen]
        left_out = count_left_out(history, system, chosen)
        return Asked(messages, showing.left_tokens, left_out, tuple(showing.notes()))

    async def _facts(self, owner: Owner, history: Sequence[Message]) -> Mapping[FileId, StoredFile]:
        newest_first = sorted(history, key=lambda message: message.seq, reverse=True)
        ids = dict.fromkeys(file_id for message in newest_first for file_id in file_ids_of(message))
        return await self._files.get(owner, list(islice(ids, MAX_KNOWN_FILES))) if ids else {}

    async def _contents(self, owner: Owner, files: Sequence[StoredFile]) -> Mapping[FileId, _Content]:
        """Return these files as a model is shown them, or why it is not."""
        if not files:
            return {}
        wanted = [file for file in files if file.encoding != BINARY]
        with hold(sum(file.size_bytes for file in wanted), "files being read"):
            found = await self._blobs.get_all(owner, wanted) if wanted else {}
            return await asyncio.to_thread(lambda: {file.id: _content(file, found.get(file.sha256)) for file in files})


class _Showing:
    """Puts files into messages, oldest first: the content where a file was first given, elsewhere a line about it.

    `first_seq` is the first message whose files are shown. Files of the newest message always are.
    """

    first_seq = 0

    def __init__(
        self,
        facts: Mapping[FileId, StoredFile],
        contents: Mapping[FileId, _Content],
        newest: Message,
        left_tokens: int,
    ) -> None:
        self._facts, self._contents, self._newest, self.left_tokens = facts, contents, newest, left_tokens
        self._own = frozenset(file_ids_of(newest))
        self._room_tokens = left_tokens
        self._placed: set[FileId] = set()
        self._left_out: dict[FileId, str] = {}

    def first_with_files(self, chosen: Sequence[Message]) -> int:
        """Return the number of the oldest message whose files fit with those of all newer ones."""
        seen, sizes = set(self._own), []
        for message in reversed(chosen):
            if message.role != "system":
                new = [file_id for file_id in file_ids_of(message) if file_id not in seen and self._may_fit(file_id)]
                seen.update(new)
                sizes.append((message.seq, sum(self._contents[file_id].tokens for file_id in new)))
        return first_shown(sizes, self._room_tokens, is_whole=True)

    def _may_fit(self, file_id: FileId) -> bool:
        content = self._contents.get(file_id)
        return content is not None and (file_id in self._own or content.tokens <= self._room_tokens)

    def part(self, message: Message) -> Prompt:
        """Return a message with its files."""
        parts = [message.content]
        for file_id in file_ids_of(message):
            file, content = self._facts.get(file_id), self._contents.get(file_id)
            decoded = content.decoded if content else None
            is_shown = message.seq >= self.first_seq and self._may_fit(file_id) and file_id not in self._placed
            if file is not None and content is not None and isinstance(content.decoded, Decoded) and is_shown:
                self._placed.add(file_id)
                self._left_out.pop(file_id, None)
                if file_id not in self._own:
                    self.left_tokens = max(self.left_tokens - content.tokens, 0)
                note = f' note="{escape(content.decoded.note)}"' if content.decoded.note else ""
                parts.append(f"<file {_label(file)}{note}>\n{content.decoded.text}\n</file>")
            else:
                parts.append(self._line(file_id, file, decoded))
        return Prompt(message.role, "\n\n".join(parts))

    def _line(self, file_id: FileId, file: StoredFile | None, content: Decoded | str | None) -> str:
        if file is None:
            self._left_out[file_id] = f"file {file_id} has been deleted"
            return f'<file id="{file_id}" note="deleted since"/>'
        if isinstance(content, str):
            return f'<file {_label(file)} note="{escape(content)}"/>'
        if file_id in self._placed:
            return f'<file {_label(file)} note="shown in an earlier message"/>'
        self._left_out[file_id] = f"file {file.name} ({file_id}) was left out, because the model's window is full"
        return f'<file {_label(file)} note="no room left for it"/>'

    def notes(self) -> Iterator[str]:
        """Yield what the caller should know: how the newest message's files were decoded, and what was not shown."""
        said = dict(self._left_out)
        for file_id, content in self._contents.items():
            file = self._facts[file_id]
            if isinstance(content.decoded, str):
                said[file_id] = f"file {file.name} ({file_id}) was not shown to the model: {content.decoded}"
            elif content.decoded.note and file_id in self._own:
                said[file_id] = f"file {file.name} ({file_id}): {content.decoded.note}"
        yield from islice(said.values(), MAX_NOTES)
        if len(said) > MAX_NOTES:
            yield f"{len(said) - MAX_NOTES:,} more files were not shown to the model"


def _candidates(
    history: Sequence[Message], facts: Mapping[FileId, StoredFile], own: Sequence[StoredFile], room_tokens: int
) -> list[StoredFile]:
    """Return the files to read: those of the question, and the newest of earlier turns that may fit."""
    chosen = {file.id: file for file in own}
    left_bytes = room_tokens * LIKELY_BYTES_PER_TOKEN
    for message in sorted(history, key=lambda message: message.seq, reverse=True):
        for file in _known(message, facts):
            if file.id not in chosen and (file.encoding == BINARY or file.size_bytes <= left_bytes):
                chosen[file.id] = file
                left_bytes -= 0 if file.encoding == BINARY else file.size_bytes
    return list(chosen.values())


def _content(file: StoredFile, found: bytes | str | None) -> _Content:
    """Return a file as text; otherwise the reason why it is not shown."""
    if isinstance(found, str):
        return _Content(found)
    decoded = None if found is None else decode(found, file.encoding)
    if decoded is None:
        return _Content(f"not text, {file.size_bytes} bytes")
    return _Content(decoded, text_tokens(decoded.text) + 1)


def _too_large(own_tokens: int, limit_tokens: int) -> InvalidArgument:
    return InvalidArgument(
        "files",
        f"are about {own_tokens:,} tokens together; the model can read {limit_tokens:,} with the question",
        "Give fewer or smaller files, or choose a model with a larger window",
    )


def _known(message: Message, facts: Mapping[FileId, StoredFile]) -> list[StoredFile]:
    return [facts[file_id] for file_id in file_ids_of(message) if file_id in facts]


def _label(file: StoredFile) -> str:
    return f'name="{escape(file.name)}" id="{file.id}"'
