"""Files as a library: contents stored once per owner, linked to conversations, read back as they were.

The invariant is the order: bytes are kept before the row that names them, so that no row is without its bytes, and
bytes without a row are swept once they are older than the grace period. Paths of this machine are read only below
the roots that the settings allow.
"""

from __future__ import annotations

import asyncio
import mimetypes
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from exai.blobs.base import digest, storage_path
from exai.blobs.local import LocalBlobs
from exai.config import FileSettings, LimitSettings
from exai.db.files import FileList, FileRepository, NewFile
from exai.db.rows import check_text
from exai.errors import InvalidArgument, NotConfigured, NotFound
from exai.models import PAGE_MESSAGES, ContinuationId, FileId, Owner, StoredFile

MAX_NAME_CHARS = 255
DEFAULT_MEDIA_TYPE = "application/octet-stream"
ROOTS_SETTING = "EXAI_FILES__ROOTS"


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file before it is stored; `name` is for people and models and says nothing about where it is kept."""

    name: str
    data: bytes
    media_type: str | None = None


class FileService:
    """Stores, reads, lists, links and forgets files. Sees nothing of other owners."""

    def __init__(
        self, repository: FileRepository, blobs: LocalBlobs, settings: FileSettings, *, limits: LimitSettings
    ) -> None:
        self.repository, self.blobs, self._settings, self._limits = repository, blobs, settings, limits

    async def put(self, owner: Owner, contents: Sequence[FileContent]) -> tuple[StoredFile, ...]:
        """Store contents and return them in the same order: the bytes that are new, and 1 database round trip.

        Raises `InvalidArgument`, `BlobError` or a `DatabaseError`.
        """
        new = [self._checked(owner, f"files[{index}]", content) for index, content in enumerate(contents)]
        for content, file in zip(contents, new, strict=True):
            await self.blobs.put(owner, file.sha256, content.data)
        stored = await self.repository.put(owner, new)
        return tuple(stored[file.sha256] for file in new)

    async def put_paths(self, owner: Owner, paths: Sequence[str]) -> tuple[StoredFile, ...]:
        """Store files of this machine, each below an allowed root. Raises also `NotConfigured` without any root."""
        contents = [
            await asyncio.to_thread(self._read_path, f"files[{index}]", path) for index, path in enumerate(paths)
        ]
        return await self.put(owner, contents)

    async def resolve(self, owner: Owner, references: Sequence[str]) -> tuple[FileId, ...]:
        """Return the ids of files given by id or by path; paths are stored first, all with 1 database round trip."""
        if len(references) > self._limits.append_files:
            raise InvalidArgument(
                "files", f"has {len(references)} files; the limit is {self._limits.append_files}", "Give fewer at once"
            )
        paths = [each for each in references if not _is_id(each)]
        stored = dict(zip(paths, await self.put_paths(owner, paths), strict=True)) if paths else {}
        return tuple(stored[each].id if each in stored else _id("files", each) for each in references)

    async def read(self, owner: Owner, file_id: FileId) -> tuple[StoredFile, bytes]:
        """Return a file and its bytes, checked against their digest. Raises `NotFound` or `BlobError`."""
        known = _id("file_id", file_id)
        file = (await self.repository.get(owner, [known])).get(known)
        if file is None:
            raise _no_file(file_id)
        return file, await self.blobs.get(owner, file.sha256)

    async def list(
        self,
        owner: Owner,
        *,
        continuation_id: ContinuationId | None = None,
        limit: int = PAGE_MESSAGES,
        cursor: str | None = None,
    ) -> FileList:
        """Return an owner's files, or one conversation's, newest first: 1 database round trip a page."""
        check_text("continuation_id", continuation_id)
        return await self.repository.list(owner, continuation_id=continuation_id, limit=limit, cursor=cursor)

    async def link(self, owner: Owner, continuation_id: ContinuationId, file_ids: Sequence[FileId]) -> int:
        """Link files to a conversation, all or none, and return how many links are new: 1 database round trip."""
        check_text("continuation_id", continuation_id)
        ids = [_id(f"file_ids[{index}]", file_id) for index, file_id in enumerate(file_ids)]
        linked = await self.repository.link(owner, continuation_id, ids)
        if not linked.conversation:
            raise NotFound("conversation", continuation_id, "conversation_list shows which there are")
        if linked.missing:
            raise _no_file(", ".join(linked.missing))
        return linked.linked

    async def delete(self, owner: Owner, file_id: FileId) -> None:
        """Forget a file and its links; its bytes go with the next sweep. Raises `NotFound`."""
        if not await self.repository.delete(owner, _id("file_id", file_id)):
            raise _no_file(file_id)

    async def sweep(self) -> tuple[int, int]:
        """Forget orphans and remove bytes without a row, both older than the grace; returns how many of each."""
        forgotten = removed = 0
        while orphans := await self.repository.cleanup_orphans(self._settings.orphan_grace_s):
            forgotten += len(orphans)
        async for places in self.blobs.older_than(self._settings.orphan_grace_s):
            paths = {self.blobs.key(place): place for place in places}
            for key in set(paths) - await self.repository.known(list(paths)):
                removed += await self.blobs.remove(paths[key], self._settings.orphan_grace_s)
        return forgotten, removed

    def _checked(self, owner: Owner, field: str, content: FileContent) -> NewFile:
        size_bytes = len(content.data)
        if size_bytes > self._settings.max_bytes:
            raise InvalidArgument(
                field, f"is {size_bytes:,} bytes; the limit is {self._settings.max_bytes:,}", "Give a smaller file"
            )
        name = content.name.strip()
        if not name or len(name) > MAX_NAME_CHARS or not name.isprintable():
            raise InvalidArgument(
                f"{field}.name", "is not a file name", f"Use 1 to {MAX_NAME_CHARS} printable characters"
            )
        guessed = content.media_type or mimetypes.guess_type(name)[0] or DEFAULT_MEDIA_TYPE
        sha256 = digest(content.data)
        return NewFile(sha256, size_bytes, guessed, name, storage_path(owner, sha256))

    def _read_path(self, field: str, path: str) -> FileContent:
        """Read a file below an allowed root; what was checked is what is read, since both use one descriptor."""
        roots = [root.resolve() for root in self._settings.roots]
        if not roots:
            raise NotConfigured(
                "reading files by their path", f"Set {ROOTS_SETTING} to the directories that may be read"
            )
        resolved = _resolved(path)
        if resolved is None or not any(resolved.is_relative_to(root) for root in roots):
            # The same whether it is there or not: what is outside is nobody's business.
            raise InvalidArgument(
                field, f"{path!r} is not below an allowed root", f"Allowed are {', '.join(map(str, roots))}"
            )
        try:
            descriptor = os.open(resolved, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise InvalidArgument(
                field, f"{path!r} is not there", "Give a file's full path, or an id of file_put"
            ) from None
        except OSError as error:
            raise InvalidArgument(
                field, f"{path!r} cannot be read ({error.strerror})", "Check its permissions"
            ) from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidArgument(field, f"{path!r} is not a regular file", "Give a file")
            if _place(descriptor, resolved) != resolved:
                raise InvalidArgument(field, f"{path!r} was replaced while it was opened", "Try again")
            with os.fdopen(descriptor, "rb", closefd=False) as stream:
                return FileContent(resolved.name, stream.read(self._settings.max_bytes + 1))
        finally:
            os.close(descriptor)


def _resolved(path: str) -> Path | None:
    """Return where a path leads, as far as it leads anywhere; None for what is no full path."""
    try:
        return Path(path).resolve() if Path(path).is_absolute() else None
    except (OSError, ValueError, RuntimeError):
        # The last is what older Pythons say of links that lead in a circle.
        return None


def _place(descriptor: int, opened: Path) -> Path:
    """Return where an open file really is: a directory on the way may have become a link since it was checked."""
    by_number = Path(f"/proc/self/fd/{descriptor}")
    return by_number.resolve() if by_number.exists() else opened.resolve()


def _is_id(reference: str) -> bool:
    try:
        UUID(reference)
    except ValueError:
        return False
    return True


def _id(field: str, given: str) -> FileId:
    """Return an id as files are stored under it, whichever spelling of a UUID was given. Raises `InvalidArgument`."""
    try:
        return FileId(str(UUID(given)))
    except ValueError:
        raise InvalidArgument(field, "is not a file's id", "Use the id that file_put returned") from None


def _no_file(name: str) -> NotFound:
    return NotFound("file", name, "file_list shows which there are")
