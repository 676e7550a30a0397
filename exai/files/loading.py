"""Files before they are stored: given as bytes, or at a path of this machine; loaded and checked then."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

from exai.blobs.base import characters_by_part, digest
from exai.blobs.decoding import encoding_of
from exai.db.files import NewFile
from exai.encryption.codec import Codec
from exai.encryption.contents import seal_content, write_seal
from exai.encryption.origins import seal_name
from exai.errors import InvalidArgument
from exai.files.names import checked_media_type, checked_name
from exai.files.paths import too_large
from exai.models import FileId, FileSource, Owner


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file before it is stored. `name` is for people and models, and does not determine where the file is stored.

    An `id` has to follow from owner, content and media type.
    """

    name: str
    data: bytes
    media_type: str | None = None
    source: FileSource | None = None
    id: FileId | None = None


@dataclass(frozen=True, slots=True)
class FilePath:
    """A file of this machine before it is stored; its default name is its path below the root."""

    path: str
    name: str | None = None
    media_type: str | None = None


@dataclass(frozen=True, slots=True)
class LoadableFile:
    """A file to store. `load` returns its content; it runs in a thread, possibly several times."""

    field: str
    load: Callable[[], FileContent]
    size: Callable[[], int] = int
    """The bytes needed to load it, beyond those already counted; called in a thread."""

    path: str | None = None
    """Set for a file of this machine, whose file system may hang."""


def loaded(field: str, content: FileContent) -> LoadableFile:
    """Return a file whose content is given."""
    return LoadableFile(field, lambda: content)


def sealed(codec: Codec, owner: Owner, new: NewFile, data: bytes) -> tuple[NewFile, bytes]:
    """Return a file in the form in which it is stored: encrypted, if contents are."""
    name = seal_name(codec, owner, new.sha256, new.name)
    found = seal_content(codec, owner, data, new.sha256, new.encoding)
    if found is None:
        return replace(new, name=name), data
    stored, seal = found
    stored_sha256 = digest(stored)
    encrypted = replace(
        new,
        name=name,
        sha256=stored_sha256,
        size_bytes=len(stored),
        encoding=write_seal(codec, owner, stored_sha256, replace(seal, characters=tuple(new.characters))),
        characters=characters_by_part(stored),
    )
    return encrypted, stored


def ready(source: LoadableFile, max_bytes: int) -> tuple[NewFile, bytes]:
    """Load a file, check it, and determine the values of its row; blocks."""
    content = source.load()
    if not isinstance(content.data, bytes):
        raise InvalidArgument(f"{source.field}.data", f"is a {type(content.data).__name__}", "Give bytes")
    size_bytes = len(content.data)
    if size_bytes > max_bytes:
        raise too_large(source.field, size_bytes, max_bytes)
    name = checked_name(f"{source.field}.name", content.name)
    media_type = checked_media_type(f"{source.field}.media_type", content.media_type, name)
    new = NewFile(
        id=content.id or str(uuid.uuid4()),
        sha256=digest(content.data),
        size_bytes=size_bytes,
        media_type=media_type,
        name=name,
        blob_id=str(uuid.uuid4()),
        encoding=encoding_of(content.data),
        characters=characters_by_part(content.data),
        is_keyed=content.id is not None,
        source=content.source,
    )
    return new, content.data
