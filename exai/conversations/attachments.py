"""The files of a conversation, as a model is shown them: the stored content, once, where it was first given.

The invariant is that files never crowd out turns: history is chosen first, and only the room it leaves is given to the
files of earlier turns. The files of the question itself come before everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from exai.blobs.base import BlobStore
from exai.conversations.prompt import BYTES_PER_TOKEN, Asked, choose, count_left_out, estimate_tokens
from exai.conversations.requests import is_file_id
from exai.db.files import FileRepository
from exai.errors import BlobError, InvalidArgument
from exai.models import FILE_IDS, FileId, Message, Owner, Prompt, StoredFile

WRAPPING_TOKENS = 40
"""What the lines around a file's content may cost."""


class Attachments:
    """Puts the contents of files into prompts; a conversation without files costs nothing here."""

    def __init__(self, files: FileRepository, blobs: BlobStore) -> None:
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
        messages = [await self._part(owner, message, facts, shown) for message in chosen]
        return Asked(messages, left_tokens, count_left_out(history, system, chosen))

    async def _facts(self, owner: Owner, history: Sequence[Message]) -> Mapping[FileId, StoredFile]:
        ids = dict.fromkeys(file_id for message in history for file_id in file_ids_of(message))
        return await self._files.get(owner, list(ids)) if ids else {}

    async def _part(
        self, owner: Owner, message: Message, facts: Mapping[FileId, StoredFile], shown: set[FileId]
    ) -> Prompt:
        """Return a message with its files; what is shown here is taken out of `shown`, so that it comes once."""
        parts = [message.content]
        for file_id in file_ids_of(message):
            file = facts.get(file_id)
            if file is None:
                parts.append(f'<file id="{file_id}" note="deleted since"/>')
            elif file_id in shown:
                shown.discard(file_id)
                parts.append(await self._content(owner, file))
            else:
                parts.append(f'<file {_label(file)} note="shown elsewhere, or no room left for it"/>')
        return Prompt(message.role, "\n\n".join(parts))

    async def _content(self, owner: Owner, file: StoredFile) -> str:
        try:
            data = await self._blobs.get(owner, file.sha256)
        except BlobError as error:
            return f'<file {_label(file)} note="cannot be read: {escape(error.problem)}"/>'
        text = text_of(data)
        if text is None:
            return f'<file {_label(file)} note="not text, {file.size_bytes} bytes"/>'
        return f"<file {_label(file)}>\n{text}\n</file>"


def file_ids_of(message: Message) -> tuple[FileId, ...]:
    """Return the files that were given with a message; whoever appends may write anything under that name."""
    ids = message.metadata.get(FILE_IDS, ())
    return tuple(filter(is_file_id, ids)) if isinstance(ids, list | tuple) else ()


def text_of(data: bytes) -> str | None:
    """Return the text of a file in UTF-8, None when it is not text."""
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _known(message: Message, facts: Mapping[FileId, StoredFile]) -> list[StoredFile]:
    return [facts[file_id] for file_id in dict.fromkeys(file_ids_of(message)) if file_id in facts]


def _tokens(file: StoredFile) -> int:
    return file.size_bytes // BYTES_PER_TOKEN + WRAPPING_TOKENS


def _label(file: StoredFile) -> str:
    return f'name="{escape(file.name)}" id="{file.id}"'
