"""Large content of messages: taken out when they are stored, put back when they are read as a whole.

Invariant: the files of a message are stored and linked by the statement that stores the message, or before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from exai.db.records import AppendResult, FilesAlong, TurnBegun
from exai.errors import InvalidArgument
from exai.files.loading import FileContent
from exai.files.pieces import LEAST_BYTES, TAKEN_OUT, Piece, Taken, occurrences_of, pieces_of, put_back, take_out
from exai.files.service import FileService
from exai.models import Message, NewMessage, Owner
from exai.settings.load import LimitSettings
from exai.validation import MAX_NUMBER

THREAD_CHARS: Final = 1_000_000
"""A longer text is searched in a thread."""

Stored = TypeVar("Stored", AppendResult, TurnBegun)


class LargeContent:
    """Takes large content out of messages, and puts it back."""

    def __init__(self, files: FileService, limits: LimitSettings) -> None:
        self._files, self._limits = files, limits

    def take(self, owner: Owner, text: object) -> Taken | None:
        """Return a text without its large content, None if it has none; blocks for long texts."""
        return take_out(owner, text, self._limits.message_bytes, self._files.max_bytes)

    async def take_from(self, owner: Owner, text: object) -> Taken | None:
        """Return a text without its large content, None if it has none."""
        if not isinstance(text, str) or len(text) < LEAST_BYTES:
            return None
        is_long = len(text) > THREAD_CHARS
        return await asyncio.to_thread(self.take, owner, text) if is_long else self.take(owner, text)

    async def take_all(self, owner: Owner, messages: Sequence[NewMessage]) -> list[Taken | None]:
        """Return for each message its content without large content, or None; invalid messages are left to validation.

        Raises `InvalidArgument` for metadata that only this class writes.
        """
        found = []
        for place, message in enumerate(messages if isinstance(messages, list | tuple) else ()):
            check_field(f"messages[{place}].metadata", message)
            found.append(await self.take_from(owner, getattr(message, "content", None)))
        return found

    async def store(self, owner: Owner, pieces: Sequence[Piece]) -> None:
        """Store what was taken out."""
        if pieces:
            await self._files.put(owner, [_content(piece) for piece in pieces])

    async def send(
        self, owner: Owner, pieces: Sequence[Piece], send: Callable[[FilesAlong | None], Awaitable[Stored]]
    ) -> Stored:
        """Store messages by `send`, with what was taken out of them: one statement, if their bytes need no upload."""
        if not pieces:
            return await send(None)
        stored = await send(await self._files.along(owner, [_content(piece) for piece in pieces]))
        if stored.status != "file_not_found" or not any(piece.id in (stored.missing or "") for piece in pieces):
            return stored
        await self.store(owner, pieces)
        return await send(None)

    async def whole(
        self,
        owner: Owner,
        messages: Sequence[Message],
        budget_bytes: int = MAX_NUMBER,
        *,
        from_oldest: bool = False,
    ) -> tuple[Message, ...]:
        """Return messages as they were given: 1 database round trip for the rows of their files, and those for bytes.

        If the large content exceeds the budget, only the newest messages are returned, or the oldest, and at least one.
        A message of which a piece is not there any more stays as it is.
        """
        ids = dict.fromkeys(file_id for message in messages for file_id in pieces_of(message))
        if not ids:
            return tuple(messages)
        files = await self._files.known(owner, list(ids))
        chosen: list[Message] = []
        left_bytes = budget_bytes
        for message in messages if from_oldest else reversed(messages):
            left_bytes -= sum(files[each].size_bytes for each in occurrences_of(message) if each in files)
            if chosen and left_bytes < 0:
                break
            chosen.append(message)
        wanted = dict.fromkeys(each for message in chosen for each in pieces_of(message) if each in files)
        found = await self._files.read_all(owner, [files[each] for each in wanted])
        whole = [put_back(message, found) for message in chosen]
        return tuple(whole if from_oldest else reversed(whole))


def without_large(messages: Sequence[NewMessage], taken: Sequence[Taken | None]) -> Sequence[NewMessage]:
    """Return messages with the content that is left of them; their metadata is the caller's."""
    if not any(taken):
        return messages
    pairs = zip(messages, taken, strict=True)
    return [message if each is None else replace(message, content=each.content) for message, each in pairs]


def pieces_in(taken: Iterable[Taken | None]) -> tuple[Piece, ...]:
    """Return all pieces, each once."""
    return tuple({piece.id: piece for each in taken if each for piece in each.pieces}.values())


def check_field(field: str, message: object) -> None:
    """Raise `InvalidArgument` if metadata of a caller has the field that says what was taken out."""
    if isinstance(message, NewMessage) and isinstance(message.metadata, dict) and TAKEN_OUT in message.metadata:
        raise InvalidArgument(
            f"{field}.{TAKEN_OUT}", "is written by EXAI only", "Read the message with whole: true, and give that"
        )


def _content(piece: Piece) -> FileContent:
    return FileContent(piece.name, piece.data, piece.media_type, id=piece.id)
