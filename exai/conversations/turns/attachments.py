"""Insert the files of a conversation into its prompt: the content of each file once, in the message that first has it.

Invariant: files do not displace history. The files of the question are placed first, then history is chosen, and only
the remaining tokens are used for files of earlier turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import islice

from exai.account import hold
from exai.blobs.base import Blobs
from exai.blobs.decoding import BINARY, ONE_BYTE, Decoded, decode
from exai.conversations.turns.prompt import Asked, choose, count_left_out, estimate_tokens
from exai.db.files import FileRepository
from exai.errors import InvalidArgument
from exai.models import FILE_IDS, FileId, Message, Owner, Prompt, StoredFile
from exai.validation import is_file_id

MAX_FILES = 200
"""Maximum number of files considered per message, and queried for all messages together."""

FILE_BYTES_PER_TOKEN = 3
"""UTF-8 bytes assumed per token of a file whose content is not read yet."""

MAX_NOTES = 20

WRAPPING_TOKENS = 40
"""Maximum number of tokens of the lines around a file's content."""

MOST_GROWTH = {True: 2, False: 1.5}
"""How many bytes of UTF-8 may come of one byte of a single-byte encoding, and of one with more."""


class Attachments:
    """Puts the contents of files into prompts; a conversation without files costs nothing here."""

    def __init__(self, files: FileRepository, blobs: Blobs) -> None:
        self._files, self._blobs = files, blobs

    async def prompt(self, owner: Owner, history: Sequence[Message], system: Message | None, room_tokens: int) -> Asked:
        """Return what a model is asked with.

        One statement if any message has files, and one for each 4 MiB of them that are shown; none otherwise. Raises
        `InvalidArgument` when the files of the newest message alone do not fit.
        """
        facts = await self._facts(owner, history)
        newest = max(history, key=lambda message: message.seq)
        own = _known(newest, facts)
        own_tokens = sum(_tokens(file) for file in own)
        if own and own_tokens > room_tokens - estimate_tokens(newest.content):
            raise InvalidArgument(
                "files",
                f"are about {own_tokens:,} tokens together; the model can read {room_tokens:,} with the question",
                "Give fewer or smaller files, or choose a model with a larger window",
            )
        chosen, left_tokens = choose(history, system, room_tokens - own_tokens)
        shown = {file.id: file for file in own}
        for message in reversed(chosen):
            for file in _known(message, facts):
                if file.id not in shown and _tokens(file) <= left_tokens:
                    shown[file.id] = file
                    left_tokens -= _tokens(file)
        showing = _Showing(facts, await self._contents(owner, list(shown.values())), left_tokens)
        messages = [showing.part(message) for message in chosen]
        left_out = count_left_out(history, system, chosen)
        return Asked(messages, showing.left_tokens, left_out, tuple(showing.notes(newest)))

    async def _facts(self, owner: Owner, history: Sequence[Message]) -> Mapping[FileId, StoredFile]:
        newest_first = sorted(history, key=lambda message: message.seq, reverse=True)
        ids = dict.fromkeys(file_id for message in newest_first for file_id in file_ids_of(message))
        return await self._files.get(owner, list(islice(ids, MAX_FILES))) if ids else {}

    async def _contents(self, owner: Owner, files: Sequence[StoredFile]) -> Mapping[FileId, Decoded | str]:
        """Return these files as a model is shown them, or why it is not."""
        if not files:
            return {}
        wanted = [file for file in files if file.encoding != BINARY]
        with hold(sum(file.size_bytes for file in wanted), "files being read"):
            found = await self._blobs.get_all(owner, wanted) if wanted else {}
            return await asyncio.to_thread(lambda: {file.id: _decoded(file, found.get(file.sha256)) for file in files})


class _Showing:
    """Puts files into messages, oldest first: the content where a file was first given, elsewhere a line about it.

    These lines cost tokens as well, which are subtracted from the remaining room.
    """

    def __init__(
        self, facts: Mapping[FileId, StoredFile], contents: Mapping[FileId, Decoded | str], left_tokens: int
    ) -> None:
        self._facts, self._contents, self.left_tokens = facts, contents, left_tokens
        self._placed: set[FileId] = set()
        self._left_out: dict[FileId, str] = {}

    def part(self, message: Message) -> Prompt:
        """Return a message with its files."""
        parts = [message.content]
        for file_id in file_ids_of(message):
            file, content = self._facts.get(file_id), self._contents.get(file_id)
            if file is not None and isinstance(content, Decoded) and file_id not in self._placed:
                self._placed.add(file_id)
                note = f' note="{escape(content.note)}"' if content.note else ""
                parts.append(f"<file {_label(file)}{note}>\n{content.text}\n</file>")
            elif self.left_tokens >= WRAPPING_TOKENS:
                self.left_tokens -= WRAPPING_TOKENS
                parts.append(self._line(file_id, file, content))
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

    def notes(self, newest: Message) -> Iterator[str]:
        """Yield what the caller should know: how the newest message's files were decoded, and what was not shown."""
        own = file_ids_of(newest)
        said = dict(self._left_out)
        for file_id, content in self._contents.items():
            if isinstance(content, str):
                said[file_id] = f"file {self._facts[file_id].name} ({file_id}) was not shown to the model: {content}"
            elif content.note and file_id in own:
                said[file_id] = f"file {self._facts[file_id].name} ({file_id}): {content.note}"
        yield from islice(said.values(), MAX_NOTES)
        if len(said) > MAX_NOTES:
            yield f"{len(said) - MAX_NOTES:,} more files were not shown to the model"


def _decoded(file: StoredFile, found: bytes | str | None) -> Decoded | str:
    """Return a file as text; otherwise the reason why it is not shown."""
    if isinstance(found, str):
        return found
    decoded = None if found is None else decode(found, file.encoding)
    return decoded or f"not text, {file.size_bytes} bytes"


def file_ids_of(message: Message) -> tuple[FileId, ...]:
    """Return the file ids in a message's metadata, which may be malformed because callers of append write it freely."""
    ids = message.metadata.get(FILE_IDS, ())
    return tuple(dict.fromkeys(islice(filter(is_file_id, ids), MAX_FILES))) if isinstance(ids, list | tuple) else ()


def _known(message: Message, facts: Mapping[FileId, StoredFile]) -> list[StoredFile]:
    return [facts[file_id] for file_id in file_ids_of(message) if file_id in facts]


def _tokens(file: StoredFile) -> int:
    """Estimate by the size that the text has in UTF-8."""
    if file.encoding == BINARY:
        return WRAPPING_TOKENS
    growth = 1 if file.encoding is None or file.encoding.startswith("utf-") else MOST_GROWTH[file.encoding in ONE_BYTE]
    return int(file.size_bytes * growth) // FILE_BYTES_PER_TOKEN + WRAPPING_TOKENS


def _label(file: StoredFile) -> str:
    return f'name="{escape(file.name)}" id="{file.id}"'
