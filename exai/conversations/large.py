"""Large content of messages: taken out when they are stored, put back when they are read as a whole.

Invariant: the files of a message are stored and linked by the statement that stores the message, or before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from exai.db.records import AppendResult, FilesAlong, TurnBegun
from exai.errors import InvalidArgument
from exai.files.loading import FileContent
from exai.files.pieces import LEAST_BYTES, TAKEN_OUT, Piece, Taken, occurrences_of, pieces_of, put_back, take_out
from exai.files.service import FileService
from exai.items import ITEM, TAKEN_FROM_ITEM
from exai.models import Message, NewMessage, Owner
from exai.settings.load import LimitSettings
from exai.validation import MAX_NUMBER

THREAD_CHARS: Final = 1_000_000
"""A longer text is searched in a thread."""

ITEM_BYTES: Final = 32_000
"""Of an item, what stays in the metadata of its message."""

Stored = TypeVar("Stored", AppendResult, TurnBegun)


@dataclass(frozen=True, slots=True)
class Lightened:
    """What was taken out of the content and of the item of a message; None where nothing was."""

    content: Taken | None
    item: Taken | None

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All pieces of the message."""
        return tuple(piece for taken in (self.content, self.item) if taken for piece in taken.pieces)


class LargeContent:
    """Takes large content out of messages, and puts it back."""

    def __init__(self, files: FileService, limits: LimitSettings) -> None:
        self._files, self._limits = files, limits

    def take(self, owner: Owner, text: object) -> Taken | None:
        """Return a text without its large content, None if it has none; blocks for long texts."""
        return take_out(owner, text, self._limits.message_bytes, self._files.max_bytes, self._files.stored_as(owner))

    async def take_from(self, owner: Owner, text: object) -> Taken | None:
        """Return a text without its large content, None if it has none."""
        if not isinstance(text, str) or len(text) < LEAST_BYTES:
            return None
        is_long = len(text) > THREAD_CHARS
        return await asyncio.to_thread(self.take, owner, text) if is_long else self.take(owner, text)

    async def take_encoded(self, owner: Owner, text: object) -> Taken | None:
        """Return a text without its large images and `data:` URLs; a text beyond the limit of a message stays whole."""
        if not isinstance(text, str) or len(text) < LEAST_BYTES:
            return None
        return await asyncio.to_thread(
            take_out, owner, text, MAX_NUMBER, self._files.max_bytes, self._files.stored_as(owner)
        )

    async def take_all(self, owner: Owner, messages: Sequence[NewMessage]) -> list[Lightened | None]:
        """Return for each message what is large in it, or None; invalid messages are left to validation.

        Raises `InvalidArgument` for metadata that only this class writes.
        """
        found: list[Lightened | None] = []
        for place, message in enumerate(messages if isinstance(messages, list | tuple) else ()):
            check_field(f"messages[{place}].metadata", message)
            texts = [getattr(message, name, None) for name in ("content", "item")]
            if not any(isinstance(text, str) and len(text) >= LEAST_BYTES for text in texts):
                found.append(None)
            elif sum(len(text) for text in texts if isinstance(text, str)) > THREAD_CHARS:
                found.append(await asyncio.to_thread(self.lighten, owner, message))
            else:
                found.append(self.lighten(owner, message))
        return found

    def lighten(self, owner: Owner, message: NewMessage) -> Lightened | None:
        """Return what is large in a message, None if nothing is; blocks for long texts."""
        content = self.take(owner, message.content)
        item = take_out(
            owner, getattr(message, "item", None), ITEM_BYTES, self._files.max_bytes, self._files.stored_as(owner)
        )
        return Lightened(content, item) if content or item else None

    async def along(self, owner: Owner, pieces: Sequence[Piece]) -> FilesAlong:
        """Return what was taken out, to be stored by a statement that does more; see `FileService.along`."""
        return await self._files.along(owner, [_content(piece) for piece in pieces])

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
        stored = await send(await self.along(owner, pieces))
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


def without_large(message: NewMessage, taken: Lightened | None) -> NewMessage:
    """Return a message with what is left of its content and its item; its metadata is the caller's."""
    if taken is None:
        return message
    content = taken.content.content if taken.content else message.content
    return replace(message, content=content, item=taken.item.content if taken.item else message.item)


def stored_form(message: NewMessage, taken: Lightened | None) -> NewMessage:
    """Return a message as it is stored: its item, and what says what was taken out, are in its metadata."""
    if taken is not None and taken.content is not None:
        message = taken.content.applied(message)
    if message.item is None:
        return message
    left = taken.item if taken is not None else None
    facts = {ITEM: message.item} if left is None else {ITEM: left.content, TAKEN_FROM_ITEM: left.facts}
    return replace(message, metadata={**message.metadata, **facts}, item=None)


def given_form(message: Message) -> Message:
    """Return a message without its item in its metadata, which has it as `item`."""
    if ITEM not in message.metadata:
        return message
    metadata = {name: value for name, value in message.metadata.items() if name not in (ITEM, TAKEN_FROM_ITEM)}
    return message._replace(metadata=metadata)


def pieces_in(taken: Iterable[Lightened | Taken | None]) -> tuple[Piece, ...]:
    """Return all pieces, each once."""
    return tuple({piece.id: piece for each in taken if each for piece in each.pieces}.values())


def check_field(field: str, message: object) -> None:
    """Raise `InvalidArgument` if metadata of a caller has a field that only EXAI writes."""
    if not isinstance(message, NewMessage) or not isinstance(message.metadata, dict):
        return
    for name in (TAKEN_OUT, TAKEN_FROM_ITEM, ITEM):
        if name in message.metadata:
            cure = "Give it as item" if name == ITEM else "Read the message with whole: true, and give that"
            raise InvalidArgument(f"{field}.{name}", "is written by EXAI only", cure)


def _content(piece: Piece) -> FileContent:
    return FileContent(piece.name, piece.data, piece.media_type, id=piece.id)
