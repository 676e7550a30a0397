"""Files: each content is stored once per owner, under any number of names, and read back unchanged.

Invariant: bytes are stored before the rows that name them, so no row lacks its bytes, and bytes without a row are
removed by a sweep once they are older than the grace period. The bytes of one file are held at a time, however
many are stored with one call; reading, hashing and decoding run in a thread.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

from exai.account import hold
from exai.blobs.base import PART_BYTES, Blobs
from exai.db.files import FileList, FileRepository, NewFile, files_along
from exai.db.records import FilesAlong
from exai.encryption.contents import seal_content
from exai.encryption.origins import seal_name
from exai.errors import BlobError, InvalidArgument, NotFound
from exai.files.loading import FileContent, FilePath, LoadableFile, loaded, ready, sealed
from exai.files.names import MAX_NAME_CHARS, shown_media_type, shown_name
from exai.files.origins import GivenFiles, source_of, sources_of
from exai.files.parts import FileLines, FilePart, read_lines, read_part
from exai.files.paths import MAX_PATH_CHARS, Roots, joined
from exai.files.threads import PathReading, ReadingThreads
from exai.models import PAGE_MESSAGES, ContinuationId, FileId, Owner, StoredFile, Unused
from exai.settings.load import FileSettings, LimitSettings
from exai.validation import (
    MAX_CONTINUATION_CHARS,
    MAX_LIST,
    check_conversation,
    check_items,
    check_list,
    check_name,
    check_number,
    check_optional_name,
    check_owner,
    check_page,
    check_text,
    file_id_of,
    is_uuid,
)

THREADS = 3
READING_LIMIT_S = 20.0
"""Threads that read files by their path, and the time after which one that still reads is given up."""

STATEMENT_BYTES = PART_BYTES
"""Maximum size of the contents sent with the rows of one statement."""

ALONG_BYTES = 16 * PART_BYTES
"""Maximum size of the contents sent with messages, which are as large without them."""

T = TypeVar("T")


class FileService:
    """Stores, reads, lists, links and deletes files. Never accesses files of other owners."""

    def __init__(
        self,
        repository: FileRepository,
        blobs: Blobs,
        settings: FileSettings,
        *,
        limits: LimitSettings,
        roots: Roots,
    ) -> None:
        self.repository, self.blobs, self._settings, self._limits = repository, blobs, settings, limits
        self._roots, self._threads = roots, ReadingThreads(THREADS, READING_LIMIT_S)

    @property
    def max_bytes(self) -> int:
        """Return the maximum size of a file."""
        return self._settings.max_bytes

    async def put(self, owner: Owner, contents: Sequence[FileContent]) -> tuple[StoredFile, ...]:
        """Store files and return them in the same order.

        1 database round trip where the contents are known or small; otherwise one more, and one for each part of the
        bytes that are new. The same content, name and media type again is the same file. Raises `InvalidArgument`,
        `BlobError` or a `DatabaseError`.
        """
        check_items("files", contents, FileContent)
        sources = [loaded(f"files[{index}]", content) for index, content in enumerate(contents)]
        return await self._put(owner, sources)

    async def along(self, owner: Owner, contents: Sequence[FileContent]) -> FilesAlong:
        """Return files to be stored by a statement that does more, with their bytes as far as those are not too many.

        Without its bytes a file is stored if its content is known; otherwise it has to be stored by `put` before.
        """
        chosen, files = self.blobs.chosen, []
        along_bytes = sum(len(content.data) for content in contents)
        for place, content in enumerate(contents):
            source = loaded(f"files[{place}]", content)
            new, data = await asyncio.to_thread(self._ready, owner, source)
            if chosen.puts_known:
                new = replace(new, storage_path=await chosen.put(owner, new.sha256, data, new.blob_id))
            elif chosen.inline_bytes >= 0 and along_bytes <= ALONG_BYTES:
                new = replace(new, data=data)
            files.append(new)
        return files_along(chosen.name, files)

    async def put_paths(self, owner: Owner, paths: Sequence[FilePath]) -> tuple[StoredFile, ...]:
        """Store files of this machine, each below an allowed root. Also raises `NotConfigured` if there is no root."""
        check_items("files", paths, FilePath)
        for index, path in enumerate(paths):
            check_name(f"files[{index}].path", path.path, MAX_PATH_CHARS)
        return await self._put(owner, [self._at(f"files[{index}]", path) for index, path in enumerate(paths)])

    async def resolve(self, owner: Owner, references: Sequence[str], directory: str = "") -> GivenFiles:
        """Return files given by id or by path; paths are stored first, as by `put`.

        Relative paths begin in `directory`, and are refused without one.
        """
        check_owner(owner)
        check_list("files", references, self._limits.append_files, "Give them with several messages")
        for place, reference in enumerate(references):
            check_name(f"files[{place}]", reference, MAX_PATH_CHARS)
        places = {each: place for place, each in reversed([*enumerate(references)]) if not is_uuid(each)}
        found: dict[str, str] = {}
        for reference, place in sorted(places.items(), key=lambda item: item[1]):
            field, path = f"files[{place}]", joined(directory, reference)
            resolved, _ = await self._read(owner, field, path, partial(self._roots.find, field, path))
            found[reference] = str(resolved)
        wanted = {found[each]: place for each, place in places.items()}
        sources = [self._at(f"files[{place}]", FilePath(path)) for path, place in wanted.items()]
        stored = dict(zip(wanted, await self._put(owner, sources), strict=True)) if sources else {}
        ids = [stored[found[each]].id if each in found else file_id_of("files", each) for each in references]
        return GivenFiles(tuple(dict.fromkeys(ids)), sources_of(stored.values()))

    async def list_read(
        self, owner: Owner, continuation_id: ContinuationId, machine: str, limit: int
    ) -> tuple[StoredFile, ...]:
        """Return a conversation's files that were read on this machine, those read last first: 1 round trip."""
        check_conversation(owner, continuation_id)
        return await self.repository.list_read(owner, continuation_id, machine, limit)

    async def get(self, owner: Owner, file_id: FileId) -> StoredFile:
        """Return a file's row, without its bytes: 1 database round trip. Raises `NotFound`."""
        check_owner(owner)
        known = file_id_of("file_id", file_id)
        file = (await self.repository.get(owner, [known])).get(known)
        if file is None:
            raise _no_file(file_id)
        return file

    async def get_all(self, owner: Owner, file_ids: Sequence[FileId]) -> tuple[StoredFile, ...]:
        """Return the rows of files in the same order: 1 database round trip for all. Raises `NotFound`."""
        check_owner(owner)
        found = await self.repository.get(owner, list(file_ids)) if file_ids else {}
        if missing := [file_id for file_id in file_ids if file_id not in found]:
            raise _no_file(", ".join(missing))
        return tuple(found[file_id] for file_id in file_ids)

    async def read(self, owner: Owner, file_id: FileId) -> tuple[StoredFile, bytes]:
        """Return a file and all its bytes, verified against their digest. Raises `NotFound` or `BlobError`."""
        file = await self.get(owner, file_id)
        with hold(file.size_bytes, "files being read"):
            return file, await self.blobs.get(owner, file)

    async def known(self, owner: Owner, file_ids: Sequence[FileId]) -> dict[FileId, StoredFile]:
        """Return those of the files that exist, by id: 1 database round trip."""
        return await self.repository.get(owner, list(file_ids))

    async def read_all(self, owner: Owner, files: Sequence[StoredFile]) -> dict[FileId, bytes]:
        """Return the bytes of those files that can be read, by id. Raises a `DatabaseError`."""
        with hold(sum(file.size_bytes for file in files), "files being read"):
            found = await self.blobs.get_all(owner, files) if files else {}
        contents = ((file.id, found.get(file.sha256)) for file in files)
        return {file_id: data for file_id, data in contents if isinstance(data, bytes)}

    async def read_part(self, owner: Owner, file_id: FileId, offset: int, limit: int) -> FilePart:
        """Return at most `limit` characters or bytes of a file from `offset` on; of a long file only these are read.

        Text in a variable-width encoding other than UTF-8 is decoded from the start.
        Raises as `read`, and `InvalidArgument` for an offset beyond the end of a text.
        """
        check_number("offset", offset)
        check_number("limit", limit, least=1)
        return await read_part(self.blobs, owner, await self.get(owner, file_id), offset, limit)

    async def read_lines(self, owner: Owner, file_id: FileId, first: int, most: int, limit: int) -> FileLines:
        """Return at most `most` lines of a text from the line `first` on; see `exai.files.parts.read_lines`."""
        check_number("line", first, least=1)
        check_number("lines", most, least=1)
        return await read_lines(self.blobs, owner, await self.get(owner, file_id), first, most=most, limit=limit)

    async def read_bytes(self, owner: Owner, file: StoredFile, offset: int, size_bytes: int) -> bytes:
        """Return `size_bytes` bytes of a file from `offset` on. Raises `BlobError` or a `DatabaseError`."""
        return await self.blobs.read(owner, file, offset, size_bytes)

    async def store(self, owner: Owner, name: str, media_type: str, data: bytes) -> FileId:
        """Store one file of an export; see `put`. Characters of its name that cannot be shown are replaced."""
        (file,) = await self.put(owner, [FileContent(shown_name(name), data, shown_media_type(media_type))])
        return file.id

    async def store_known(
        self, owner: Owner, name: str, media_type: str, sha256: str, size_bytes: int
    ) -> FileId | None:
        """Store a file if this owner has its content already, else return None: 1 database round trip."""
        stored_name = seal_name(self.blobs.codec, owner, sha256, shown_name(name))
        shown = shown_media_type(media_type), stored_name
        new = NewFile(str(uuid.uuid4()), sha256, size_bytes, *shown, str(uuid.uuid4()))
        (file,) = await self.repository.put(owner, self.blobs.chosen.name, [new])
        return file.id if file else None

    async def list(
        self,
        owner: Owner,
        *,
        continuation_id: ContinuationId | None = None,
        limit: int = PAGE_MESSAGES,
        cursor: str | None = None,
    ) -> FileList:
        """Return an owner's files, or one conversation's, newest first: 1 database round trip a page."""
        check_owner(owner)
        check_optional_name("continuation_id", continuation_id, MAX_CONTINUATION_CHARS)
        check_page(limit, cursor)
        return await self.repository.list(owner, continuation_id=continuation_id, limit=limit, cursor=cursor)

    async def find(self, owner: Owner, part: str, limit: int) -> FileList:
        """Return the newest files whose id begins with `part` or whose name contains it: 1 database round trip."""
        check_owner(owner)
        check_text("part", part, self._limits.message_bytes)
        check_page(limit, None)
        return await self.repository.list(owner, limit=limit, part=part)

    async def link(self, owner: Owner, continuation_id: ContinuationId, file_ids: Sequence[FileId]) -> int:
        """Link files to a conversation, all or none, and return the number of new links: 1 database round trip."""
        check_conversation(owner, continuation_id)
        check_list("file_ids", file_ids, MAX_LIST, "Link them with several calls")
        ids = [file_id_of(f"file_ids[{index}]", file_id) for index, file_id in enumerate(file_ids)]
        linked = await self.repository.link(owner, continuation_id, ids)
        if not linked.conversation:
            raise NotFound("conversation", continuation_id, "conversation_list lists them")
        if linked.missing:
            raise _no_file(", ".join(linked.missing))
        return linked.linked

    async def delete(self, owner: Owner, file_id: FileId) -> None:
        """Delete a file and its links; a sweep removes its content if no other file has it. Raises `NotFound`."""
        check_owner(owner)
        if not await self.repository.delete(owner, file_id_of("file_id", file_id)):
            raise _no_file(file_id)

    async def sweep(self, *, is_rehearsal: bool = False) -> tuple[int, Unused]:
        """Delete orphaned files and unused contents older than the grace period; or only count them."""
        grace_s = self._settings.orphan_grace_s
        if is_rehearsal:
            unused = await self.blobs.sweep(grace_s, self.repository.known, is_rehearsal=True)
            return await self.repository.count_orphans(grace_s), unused
        forgotten = 0
        while orphans := await self.repository.cleanup_orphans(grace_s):
            forgotten += len(orphans)
        return forgotten, await self.blobs.sweep(grace_s, self.repository.known)

    def _at(self, field: str, given: FilePath) -> LoadableFile:
        def load() -> FileContent:
            file = self._roots.read(field, given.path, self._settings.max_bytes)
            short = file.name if len(file.name) <= MAX_NAME_CHARS else file.name.rpartition("/")[2]
            return FileContent(given.name or short, file.data, given.media_type, source_of(file))

        def size() -> int:
            resolved, _ = self._roots.find(field, given.path)
            try:
                return min(resolved.stat().st_size, self._settings.max_bytes)
            except OSError:
                return 0

        return LoadableFile(field, load, size, given.path)

    async def _read(self, owner: Owner, field: str, path: str, work: Callable[[], T]) -> T:
        """Run work on a file of this machine in a thread of its own. Raises as `ReadingThreads.run`."""

        def begin(reading: PathReading) -> T:
            reading.touch(field, path)
            return work()

        return await self._threads.run(owner, begin)

    async def _put(self, owner: Owner, sources: Sequence[LoadableFile]) -> tuple[StoredFile, ...]:
        """Store the sources in turn: first the known and the small ones, then the bytes that proved to be new."""
        check_owner(owner)
        chosen = self.blobs.chosen
        stored: dict[int, StoredFile] = {}
        batch: dict[int, NewFile] = {}
        total_bytes = along_bytes = 0
        for place, source in enumerate(sources):
            async with self._loaded(owner, source) as (new, data):
                total_bytes += new.size_bytes
                self._check_total(total_bytes)
                if chosen.puts_known:
                    key = await chosen.put(owner, new.sha256, data, new.blob_id)
                    batch[place] = replace(new, storage_path=key)
                    continue
            # Without its bytes: the statement stores the row only if the owner's content is known already.
            if new.size_bytes > chosen.inline_bytes:
                batch[place] = new
                continue
            if along_bytes + new.size_bytes > STATEMENT_BYTES:
                stored |= await self._record(owner, batch)
                batch, along_bytes = {}, 0
            along_bytes += new.size_bytes
            batch[place] = replace(new, data=data)
        stored |= await self._record(owner, batch)
        # The statement returned no row for contents that are new and were sent without their bytes.
        missing = [place for place in range(len(sources)) if place not in stored]
        stored |= await self._upload(owner, {place: sources[place] for place in missing})
        return tuple(stored[place] for place in range(len(sources)))

    async def _upload(self, owner: Owner, sources: dict[int, LoadableFile]) -> dict[int, StoredFile]:
        """Store contents that are neither known nor small; a file of this machine is read again, as it is now."""
        batch: dict[int, NewFile] = {}
        kept: dict[str, tuple[str, str | None]] = {}
        for place, source in sources.items():
            async with self._loaded(owner, source) as (new, data):
                if new.sha256 not in kept:
                    path = await self.blobs.chosen.put(owner, new.sha256, data, new.blob_id)
                    kept[new.sha256] = new.blob_id, path
            # Frees the bytes before the next file is loaded: one file is held at a time.
            del data
            blob_id, path = kept[new.sha256]
            batch[place] = replace(new, blob_id=blob_id, storage_path=path)
        stored = await self._record(owner, batch)
        if stored.keys() != batch.keys():
            raise BlobError("files", "bytes that were just stored are not there", "Try again")
        return stored

    async def _record(self, owner: Owner, batch: dict[int, NewFile]) -> dict[int, StoredFile]:
        if not batch:
            return {}
        found = await self.repository.put(owner, self.blobs.chosen.name, list(batch.values()))
        placed = zip(batch.items(), found, strict=True)
        return {place: replace(file, source=new.source) for (place, new), file in placed if file is not None}

    @asynccontextmanager
    async def _loaded(self, owner: Owner, source: LoadableFile) -> AsyncIterator[tuple[NewFile, bytes]]:
        """Load a file, which is counted in its owner's account while the block runs."""
        if source.path is None:
            with hold(source.size(), "files being stored"):
                yield await asyncio.to_thread(self._ready, owner, source)
            return
        with hold(await self._read(owner, source.field, source.path, source.size), "files being stored"):
            yield await self._read(owner, source.field, source.path, partial(self._ready, owner, source))

    def stored_as(self, owner: Owner) -> Callable[[bytes], bytes]:
        """Return a function that returns the form in which a content is stored."""
        codec = self.blobs.codec

        def stored(data: bytes) -> bytes:
            found = seal_content(codec, owner, data)
            return found[0] if found else data

        return stored

    def _ready(self, owner: Owner, source: LoadableFile) -> tuple[NewFile, bytes]:
        """Load a file, in the form in which it is stored; blocks."""
        return sealed(self.blobs.codec, owner, *ready(source, self._settings.max_bytes))

    def _check_total(self, size_bytes: int) -> None:
        if size_bytes > self._settings.call_max_bytes:
            problem = f"are more than {self._settings.call_max_bytes:,} bytes together"
            raise InvalidArgument("files", problem, "Store them with several calls")


def _no_file(name: str) -> NotFound:
    return NotFound("file", name[:MAX_NAME_CHARS], "file_list lists them")
