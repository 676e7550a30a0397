"""The files of a conversation, as a model is shown them: the stored content, once, where it was first given.

The invariant is that files never crowd out turns: history is chosen first, and only the room it leaves is given to the
files of earlier turns. The files of the question itself come before everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from html import escape

from exai.blobs.base import Blobs
from exai.blobs.decoding import BINARY, ONE_BYTE, decode
from exai.conversations.prompt import BYTES_PER_TOKEN, Asked, choose, count_left_out, estimate_tokens
from exai.conversations.requests import is_file_id
from exai.db.files import FileRepository
from exai.errors import InvalidArgument
from exai.models import FILE_IDS, FileId, Message, Owner, Prompt, StoredFile

WRAPPING_TOKENS = 40
"""What the lines around a file's content may cost."""

MOST_GROWTH = {True: 2, False: 1.5}
"""How many bytes of UTF-8 may come of one byte of a single-byte encoding, and of one with more."""


class Attachments:
    """Puts the contents of files into prompts; a conversation without files costs nothing here."""

    def __init__(self, files: FileRepository, blobs: Blobs) -> None:
        self._files, self._blobs = files, blobs

    async def prompt(self, owner: Owner, history: Sequence[Message], system: Message | None, room_tokens: int) -> Asked:
        """Return what a model is asked with.

        One statement if any message has files, none otherwise. Raises `InvalidArgument` when the files of the newest
        message alone do not fit.
        """
        facts = await self._facts(owner, history)
        newest = max(history, key=lambda message: message.seq)
        own = _known(newest, facts)
        own_tokens = sum(_tokens(file) for file in own)
        if own_tokens > room_tokens - estimate_tokens(newest.content):
            raise InvalidArgument(
                "files",
                f"are about {own_tokens:,} tokens together; the model can read {room_tokens:,} with the question",
                "Give fewer or smaller files, or choose a model with a larger window",
            )
        chosen, left_tokens = choose(history, system, room_tokens - own_tokens)
        shown = {file.id for file in own}
        for message in reversed(chosen):
            for file in _known(message, facts):
                if file.id not in shown and _tokens(file) <= left_tokens:
                    shown.add(file.id)
                    left_tokens -= _tokens(file)
        contents = await self._contents(owner, [facts[file_id] for file_id in shown])
        messages = [_part(message, facts, contents, shown) for message in chosen]
        return Asked(messages, left_tokens, count_left_out(history, system, chosen))

    async def _facts(self, owner: Owner, history: Sequence[Message]) -> Mapping[FileId, StoredFile]:
        ids = dict.fromkeys(file_id for message in history for file_id in file_ids_of(message))
        return await self._files.get(owner, list(ids)) if ids else {}

    async def _contents(self, owner: Owner, files: Sequence[StoredFile]) -> Mapping[FileId, str]:
        """Return what a model is shown of these files."""
        if not files:
            return {}
        wanted = [file for file in files if file.encoding != BINARY]
        found = await self._blobs.get_all(owner, wanted) if wanted else {}
        return await asyncio.to_thread(lambda: {file.id: _shown(file, found.get(file.sha256)) for file in files})


def _part(
    message: Message, facts: Mapping[FileId, StoredFile], contents: Mapping[FileId, str], shown: set[FileId]
) -> Prompt:
    """Return a message with its files; what is shown here is taken out of `shown`, so that it comes once."""
    parts = [message.content]
    for file_id in file_ids_of(message):
        file = facts.get(file_id)
        if file is None:
            parts.append(f'<file id="{file_id}" note="deleted since"/>')
        elif file_id in shown:
            shown.discard(file_id)
            parts.append(contents[file_id])
        else:
            parts.append(f'<file {_label(file)} note="shown elsewhere, or no room left for it"/>')
    return Prompt(message.role, "\n\n".join(parts))


def _shown(file: StoredFile, data: bytes | None) -> str:
    if file.encoding == BINARY:
        return f'<file {_label(file)} note="not text, {file.size_bytes} bytes"/>'
    if data is None:
        return f'<file {_label(file)} note="cannot be read: its bytes are not there"/>'
    decoded = decode(data, file.encoding)
    if decoded is None:
        return f'<file {_label(file)} note="not text, {file.size_bytes} bytes"/>'
    note = f' note="{escape(decoded.note)}"' if decoded.note else ""
    return f"<file {_label(file)}{note}>\n{decoded.text}\n</file>"


def file_ids_of(message: Message) -> tuple[FileId, ...]:
    """Return the files that were given with a message; whoever appends may write anything under that name."""
    ids = message.metadata.get(FILE_IDS, ())
    return tuple(filter(is_file_id, ids)) if isinstance(ids, list | tuple) else ()


def _known(message: Message, facts: Mapping[FileId, StoredFile]) -> list[StoredFile]:
    return [facts[file_id] for file_id in dict.fromkeys(file_ids_of(message)) if file_id in facts]


def _tokens(file: StoredFile) -> int:
    """Estimate by the size that the text has in UTF-8."""
    if file.encoding == BINARY:
        return WRAPPING_TOKENS
    growth = 1 if file.encoding is None or file.encoding.startswith("utf-") else MOST_GROWTH[file.encoding in ONE_BYTE]
    return int(file.size_bytes * growth) // BYTES_PER_TOKEN + WRAPPING_TOKENS


def _label(file: StoredFile) -> str:
    return f'name="{escape(file.name)}" id="{file.id}"'
