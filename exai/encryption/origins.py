"""The names of files, and the places from which they were read, encrypted.

The database compares both: equal names of a content are one file, and files are listed by machine. Beside the encrypted
name, and in place of the machine, it has a keyed hash, which is the same for every named key. A name is bound to its
content, whatever form that is stored in, and a place to its file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import orjson

from exai.encryption.codec import Codec, KeyedCodec
from exai.encryption.envelope import MEMBER, escaped, is_sealed_object, is_sealed_text, parse
from exai.encryption.reasons import MOVED
from exai.errors import ContentUnreadable
from exai.models import FileId, FileSource, Owner

NAME: Final = "name of a file"
SOURCE: Final = "source of a file"


def seal_name(codec: Codec, owner: Owner, sha256: str, name: str) -> str:
    """Return the stored form of the name of a file with this content, the digest of the content as it was given."""
    if not isinstance(codec, KeyedCodec) or not codec.is_on:
        return escaped(name)
    return codec.text(owner, _hashed(codec, owner, sha256, name), NAME, name)


def open_name(codec: Codec, owner: Owner, sha256: str, stored: str) -> str:
    """Return a name as it was given. Raises `ContentUnreadable`."""
    name = codec.opened_title(owner, None, stored, NAME) or ""
    if not is_sealed_text(stored) or not isinstance(codec, KeyedCodec):
        return name
    if name_hash(stored) != codec.place_of(owner, _hashed(codec, owner, sha256, name)):
        raise ContentUnreadable(NAME, *MOVED)
    return name


def name_hash(stored: str) -> str | None:
    """Return what equal encrypted names of a content have in common, None for a name that is not encrypted."""
    sealed = parse(stored) if is_sealed_text(stored) else None
    return sealed.bound[0] if sealed is not None and sealed.bound else None


def seal_source(codec: Codec, owner: Owner, file_id: FileId, source: FileSource) -> dict[str, Any]:
    """Return the stored form of the place from which a file was read."""
    facts = asdict(source)
    if not isinstance(codec, KeyedCodec) or not codec.is_on:
        return facts
    text = codec.text(owner, file_id, SOURCE, orjson.dumps(facts).decode())
    return {MEMBER: text, "machine": _hashed_machine(codec, owner, source.machine), "read_ns": source.read_ns}


def open_source(codec: Codec, owner: Owner, file_id: FileId, stored: Mapping[str, Any]) -> FileSource | None:
    """Return the place from which a file was read, None if EXAI has not written it. Raises `ContentUnreadable`."""
    facts = stored
    if is_sealed_object(stored):
        facts = orjson.loads(codec.opened_text(owner, file_id, SOURCE, stored[MEMBER]))
    try:
        return FileSource(**facts)
    except TypeError:
        return None


def machine_forms(codec: Codec, owner: Owner, machine: str) -> list[str]:
    """Return what may stand for a machine in a stored source."""
    return [machine, _hashed_machine(codec, owner, machine)] if isinstance(codec, KeyedCodec) else [machine]


def _hashed(codec: KeyedCodec, owner: Owner, sha256: str, name: str) -> str:
    return codec.keyring.hashed(owner, "file name", f"{sha256}\0{name}".encode()).hex()


def _hashed_machine(codec: KeyedCodec, owner: Owner, machine: str) -> str:
    return codec.keyring.hashed(owner, "machine", machine.encode()).hex()
