"""Insert the files of a conversation into its prompt: the content of each file once, in the message that first has it.

Invariant: no content of a file can imitate the end of the file. Files do not displace history. The files of the
question are placed first, then history is chosen, and only the remaining tokens are used for files of earlier turns,
from the newest back to one message. That message stays the same for many turns, so that the array of a turn begins with
that of the previous one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from itertools import islice

from exai.account import hold
from exai.blobs.base import Blobs
from exai.blobs.decoding import BINARY, UTF_8, Decoded, decode
from exai.conversations.turns.documents import Documents
from exai.conversations.turns.instructions import Instructions
from exai.conversations.turns.prompt import (
    NO_INSTRUCTIONS,
    Asked,
    choose,
    count_left_out,
    estimate_tokens,
    file_ids_of,
    first_shown,
    reasoning_of,
)
from exai.db.documents import StoredText
from exai.db.files import FileRepository
from exai.errors import InvalidArgument
from exai.files.images import image_of
from exai.models import ConversationId, FileId, Message, Owner, Prompt, PromptImage, StoredFile
from exai.providers.base import Model
from exai.token_estimate import text_tokens

MAX_KNOWN_FILES = 2_000
"""Maximum number of files considered in one prompt, the newest first."""

MAX_NOTES = 20

END_CHARS = 8
"""Length of the part of a file's id that marks the end of its content."""

LIKELY_BYTES_PER_TOKEN = 8
"""Bytes for each free token up to which files of earlier turns are read: more than those of indented code."""

MOST_BYTES_PER_TOKEN = 32
"""A file of the question with more bytes for each token of the window is refused unread."""

IMAGE_TOKENS = 1_500
"""Tokens assumed for an image: Kimi counts 1,024 for each, others by its size."""

IMAGE_KINDS = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "image/gif": re.compile(rb"GIF8[79]a"),
}
"""The beginnings of the kinds of images that models read."""

LONG_HISTORY_CHARS = 500_000
"""Length from which the tokens of a history are estimated in a thread."""


@dataclass(frozen=True, slots=True)
class _Content:
    """A file as text or image with its estimated tokens; `decoded` is the reason if it is not shown."""

    decoded: Decoded | PromptImage | str
    tokens: int = 0


class Attachments:
    """Puts instructions and the contents of files into prompts; without files no statement is needed."""

    def __init__(
        self, files: FileRepository, blobs: Blobs, documents: Documents, instructions: Instructions = NO_INSTRUCTIONS
    ) -> None:
        self._files, self._blobs, self._documents, self._instructions = files, blobs, documents, instructions

    async def prompt(
        self,
        owner: Owner,
        history: Sequence[Message],
        system: Message | None,
        room_tokens: int,
        *,
        limit_tokens: int,
        model: Model | None = None,
        conversation_id: ConversationId | None = None,
    ) -> Asked:
        """Return the messages for a model: history up to `room_tokens`, and a question up to `limit_tokens`.

        Without a `model`, for a text that several receive, images are named only. The files that a daemon has read from
        a disk for the conversation have their sources.

        One statement if any message has files, and one for each 4 MiB of them that are read; none otherwise. Raises
        `InvalidArgument` when the files of the newest message alone do not fit.
        """
        facts = await self._facts(owner, history, conversation_id)
        newest = max(history, key=lambda message: message.seq)
        own = _known(newest, facts)
        least_tokens = sum(file.size_bytes for file in own if file.encoding != BINARY) // MOST_BYTES_PER_TOKEN
        if least_tokens > limit_tokens:
            raise _too_large(least_tokens, limit_tokens)
        limits = model.images if model else None
        if model and limits and sum(map(is_image, own)) > limits.count:
            raise InvalidArgument(
                "files", f"hold more than the {limits.count} images that {model.name} reads", "Give fewer images"
            )
        contents = await self._contents(owner, _candidates(history, facts, own, room_tokens, model), model)
        own_tokens = sum(contents[file.id].tokens for file in own)
        question_tokens = estimate_tokens(newest.content) + self._instructions.tokens_of(newest)
        if own_tokens and own_tokens > limit_tokens - question_tokens:
            raise _too_large(own_tokens, limit_tokens)
        choosing = partial(choose, history, system, room_tokens - own_tokens, self._instructions)
        is_long = sum(len(message.content) for message in history) > LONG_HISTORY_CHARS
        chosen, left_tokens = await asyncio.to_thread(choosing) if is_long else choosing()
        showing = _Showing(
            facts,
            contents,
            newest,
            left_tokens,
            max_images=limits.count if limits else 0,
            instructions=self._instructions,
        )
        showing.first_seq = showing.first_with_files(chosen) if facts else 0
        messages = [showing.part(message) for message in chosen]
        left_out = count_left_out(history, system, chosen)
        return Asked(messages, showing.left_tokens, left_out, tuple(showing.notes()), tuple(facts.values()))

    async def _facts(
        self, owner: Owner, history: Sequence[Message], conversation_id: ConversationId | None
    ) -> Mapping[FileId, StoredFile]:
        newest_first = sorted(history, key=lambda message: message.seq, reverse=True)
        ids = dict.fromkeys(file_id for message in newest_first for file_id in file_ids_of(message))
        known = list(islice(ids, MAX_KNOWN_FILES))
        if conversation_id is None or not known:
            return await self._files.get(owner, known) if known else {}
        return await self._files.get_shown(owner, known, conversation_id)

    async def _contents(
        self, owner: Owner, files: Sequence[StoredFile], model: Model | None
    ) -> Mapping[FileId, _Content]:
        """Return these files as a model is shown them, or why it is not."""
        if not files:
            return {}
        texts = await self._documents.texts(owner, [file for file in files if not _is_readable(file, model)], model)
        wanted = [
            file
            for file in files
            if file.address not in texts and (file.encoding != BINARY or _is_readable(file, model))
        ]
        with hold(sum(file.size_bytes for file in wanted), "files being read"):
            found = await self._blobs.get_all(owner, wanted) if wanted else {}
            return await asyncio.to_thread(
                lambda: _within_total(
                    {file.id: _content(file, found.get(file.sha256), model, texts.get(file.address)) for file in files},
                    model,
                )
            )


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
        *,
        max_images: int,
        instructions: Instructions,
    ) -> None:
        self._max_images, self._instructions = max_images, instructions
        self._facts, self._contents, self._newest, self.left_tokens = facts, contents, newest, left_tokens
        self._own = frozenset(file_ids_of(newest))
        self._room_tokens = left_tokens
        self._placed: set[FileId] = set()
        self._left_out: dict[FileId, str] = {}

    def first_with_files(self, chosen: Sequence[Message]) -> int:
        """Return the number of the oldest message whose files fit with those of all newer ones."""
        seen, sizes, images = set(self._own), [], []
        left_images = self._max_images - sum(self._is_image(file_id) for file_id in self._own)
        for message in reversed(chosen):
            if message.role != "system":
                new = [file_id for file_id in file_ids_of(message) if file_id not in seen]
                seen.update(new)
                fitting = [self._contents[file_id].tokens for file_id in new if self._may_fit(file_id)]
                sizes.append((message.seq, sum(fitting)))
                images.append((message.seq, sum(self._is_image(file_id) for file_id in new)))
        by_tokens = first_shown(sizes, self._room_tokens, is_whole=True)
        return (
            max(by_tokens, first_shown(images, max(left_images, 0), is_whole=True)) if self._max_images else by_tokens
        )

    def _is_image(self, file_id: FileId) -> bool:
        return file_id in self._facts and is_image(self._facts[file_id])

    def _may_fit(self, file_id: FileId) -> bool:
        content = self._contents.get(file_id)
        return content is not None and (file_id in self._own or content.tokens <= self._room_tokens)

    def part(self, message: Message) -> Prompt:
        """Return a message with its files, and with the instructions for its answer at the end."""
        if not message.metadata:
            return Prompt(message.role, message.content)
        parts, images = [message.content], []
        for file_id in file_ids_of(message):
            file, content = self._facts.get(file_id), self._contents.get(file_id)
            decoded = content.decoded if content else None
            if isinstance(decoded, PromptImage) and message.role != "user":
                decoded = "an image, which models read only in a message of the user"
            is_shown = message.seq >= self.first_seq and self._may_fit(file_id) and file_id not in self._placed
            if file is not None and content is not None and not isinstance(decoded, str | None) and is_shown:
                self._placed.add(file_id)
                self._left_out.pop(file_id, None)
                if file_id not in self._own:
                    self.left_tokens = max(self.left_tokens - content.tokens, 0)
                if isinstance(decoded, PromptImage):
                    images.append(decoded)
                    parts.append(f'<file {_label(file)} note="image {len(images)} of this message"/>')
                    continue
                note = f' note="{escape(decoded.note)}"' if decoded.note else ""
                # The content cannot imitate its end, because its author does not know the id.
                parts.append(f"<file {_label(file)}{note}>\n{decoded.text}\n</file {file.id[:END_CHARS]}>")
            else:
                parts.append(self._line(file_id, file, decoded))
        if (instructions := self._instructions.block_of(message)) is not None:
            parts.append(instructions)
        return Prompt(message.role, "\n\n".join(parts), tuple(images), reasoning_of(message))

    def _line(self, file_id: FileId, file: StoredFile | None, content: Decoded | PromptImage | str | None) -> str:
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
        """Yield notes for the caller: how the newest message's files were decoded, and which parts were left out."""
        said = dict(self._left_out)
        for file_id, content in self._contents.items():
            file = self._facts[file_id]
            if isinstance(content.decoded, str):
                said[file_id] = f"file {file.name} ({file_id}) was not shown to the model: {content.decoded}"
            elif isinstance(content.decoded, Decoded) and content.decoded.note and file_id in self._own:
                said[file_id] = f"file {file.name} ({file_id}): {content.decoded.note}"
        yield from islice(said.values(), MAX_NOTES)
        if len(said) > MAX_NOTES:
            yield f"{len(said) - MAX_NOTES:,} more files were not shown to the model"


def _candidates(
    history: Sequence[Message],
    facts: Mapping[FileId, StoredFile],
    own: Sequence[StoredFile],
    room_tokens: int,
    model: Model | None,
) -> list[StoredFile]:
    """Return the files to read: those of the question, and the newest of earlier turns that may fit."""
    chosen = {file.id: file for file in own}
    if not facts:
        return []
    left_bytes = room_tokens * LIKELY_BYTES_PER_TOKEN
    left_images = model.images.count if model and model.images else 0
    for message in sorted(history, key=lambda message: message.seq, reverse=True):
        for file in _known(message, facts):
            if file.id in chosen:
                continue
            if _is_readable(file, model):
                left_images -= 1
                if left_images < 0:
                    continue
            if file.encoding == BINARY or file.size_bytes <= left_bytes:
                chosen[file.id] = file
                left_bytes -= 0 if file.encoding == BINARY else file.size_bytes
    return list(chosen.values())


def is_image(file: StoredFile) -> bool:
    """Return whether a file was given as an image that is not text."""
    return file.encoding == BINARY and file.media_type.startswith("image/")


def _is_readable(file: StoredFile, model: Model | None) -> bool:
    return (
        is_image(file) and model is not None and model.images is not None and file.size_bytes <= model.images.size_bytes
    )


def _image(file: StoredFile, found: bytes | None, model: Model | None) -> _Content:
    """Return an image as the model receives it; otherwise the reason why it is not shown."""
    if model is None or model.images is None:
        return _Content(f"an image, and {model.name if model else 'a panel'} reads none")
    if file.size_bytes > model.images.size_bytes:
        return _Content(f"an image larger than the {model.images.size_bytes:,} bytes that {model.name} reads")
    kind = next((kind for kind, begin in IMAGE_KINDS.items() if found and begin.match(found)), None)
    if found is None or kind is None:
        return _Content(f"not a PNG, JPEG, WebP or GIF image, {file.size_bytes} bytes")
    limits = model.images
    if kind.removeprefix("image/") not in limits.formats:
        return _Content(f"an image of the type {kind}, and {model.name} reads {', '.join(limits.formats)} only")
    facts = image_of(found) if limits.side_pixels else None
    if facts is not None and limits.side_pixels and max(facts.width, facts.height) > limits.side_pixels:
        return _Content(
            f"an image of {facts.width:,} x {facts.height:,} pixels, and {model.name} reads at most "
            f"{limits.side_pixels:,} a side"
        )
    return _Content(PromptImage(kind, found), IMAGE_TOKENS)


def _within_total(contents: dict[FileId, _Content], model: Model | None) -> dict[FileId, _Content]:
    """Leave out the images beyond the bytes that one request may hold of them; the contents are the newest first."""
    most_bytes = model.images.total_bytes if model and model.images else None
    left_bytes = most_bytes
    for file_id, content in contents.items():
        if left_bytes is None or not isinstance(content.decoded, PromptImage):
            continue
        if len(content.decoded.data) > left_bytes:
            reason = f"the images of one request have at most {most_bytes:,} bytes together"
            contents[file_id] = _Content(f"an image, left out because {reason}")
        else:
            left_bytes -= len(content.decoded.data)
    return contents


def _content(file: StoredFile, found: bytes | str | None, model: Model | None, read: StoredText | None) -> _Content:
    """Return a file as text or image; otherwise the reason why it is not shown."""
    if read is not None:
        if read.text is None:
            return _Content(read.note)
        return _Content(Decoded(read.text, UTF_8, read.note), text_tokens(read.text) + 1)
    if isinstance(found, str):
        return _Content(found)
    if is_image(file):
        return _image(file, found, model)
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
