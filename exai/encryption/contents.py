"""The contents of files, encrypted in parts of 1 MiB, so that a part can be read without the others.

An equal content of an owner has an equal stored form, which is therefore stored once: its key follows from the content,
by a keyed hash. The hash, the size, the digest and the encoding of the content are in a text beside it, encrypted and
bound to the digest of the stored form. The key of the hash does not change with the named keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from exai.encryption.codec import Codec, KeyedCodec
from exai.encryption.keyring import NONCE_BYTES, TAG_BYTES
from exai.errors import ContentUnreadable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PART_BYTES: Final = 1_048_576
FIELD: Final = "file"


@dataclass(frozen=True, slots=True)
class ContentSeal:
    """What is needed to read an encrypted content; `characters` are those that begin in each part of it."""

    synthetic: str
    size_bytes: int
    sha256: str
    encoding: str | None
    characters: Sequence[int] = ()

    @property
    def stored_bytes(self) -> int:
        """Return the size of the stored form."""
        return self.size_bytes + TAG_BYTES * parts_of(self.size_bytes)


def parts_of(size_bytes: int) -> int:
    """Return the number of parts of a content; an empty one has one."""
    return max(1, -(-size_bytes // PART_BYTES))


def seal_content(
    codec: Codec, owner: str, data: bytes, sha256: str = "", encoding: str | None = None
) -> tuple[bytes, ContentSeal] | None:
    """Return the stored form of a content, and what is needed to read it; None if contents are not encrypted."""
    if not isinstance(codec, KeyedCodec) or not codec.is_on:
        return None
    seal = ContentSeal(codec.keyring.hashed(owner, "content", data).hex(), len(data), sha256, encoding)
    cipher, parts = _cipher(codec, owner, seal), []
    for number in range(parts_of(len(data))):
        part = data[number * PART_BYTES : (number + 1) * PART_BYTES]
        parts.append(cipher.encrypt(_nonce(number), part, _bound(owner, seal, number)))
    return b"".join(parts), seal


def write_seal(codec: Codec, owner: str, stored_sha256: str, seal: ContentSeal) -> str:
    """Return what is stored beside a content."""
    facts = (seal.synthetic, seal.size_bytes, seal.sha256, seal.encoding, seal.characters)
    return codec.text(owner, stored_sha256, FIELD, orjson.dumps(facts).decode())


def read_seal(codec: Codec, owner: str, stored_sha256: str, text: str) -> ContentSeal:
    """Return what is needed to read a content. Raises `ContentUnreadable`."""
    return ContentSeal(*orjson.loads(codec.opened_text(owner, stored_sha256, FIELD, text)))


def stored_range(seal: ContentSeal, offset: int, size_bytes: int) -> tuple[int, int]:
    """Return where the parts of a range begin in the stored form, and their size there."""
    first, last = offset // PART_BYTES, max(offset, offset + size_bytes - 1) // PART_BYTES
    begin, end = first * (PART_BYTES + TAG_BYTES), (last + 1) * (PART_BYTES + TAG_BYTES)
    return begin, min(end, seal.stored_bytes) - begin


def open_parts(codec: Codec, owner: str, seal: ContentSeal, data: bytes, place: tuple[int, int]) -> bytes:
    """Return a range of a content, its offset and size, from the parts that `stored_range` names.

    Raises `ContentUnreadable`.
    """
    from cryptography.exceptions import InvalidTag

    if not isinstance(codec, KeyedCodec):
        raise ContentUnreadable("the content of a file", "it is encrypted", "Set EXAI_STORE__KEYS")
    offset, size_bytes = place
    cipher, first, found = _cipher(codec, owner, seal), offset // PART_BYTES, []
    width = PART_BYTES + TAG_BYTES
    try:
        for begin in range(0, len(data), width):
            number = first + begin // width
            found.append(cipher.decrypt(_nonce(number), data[begin : begin + width], _bound(owner, seal, number)))
    except (InvalidTag, ValueError):
        changed = "its bytes were changed after they were encrypted, or belong to another file"
        raise ContentUnreadable("the content of a file", changed, "Restore it from a backup") from None
    start = offset - first * PART_BYTES
    return b"".join(found)[start : start + size_bytes]


def _cipher(codec: KeyedCodec, owner: str, seal: ContentSeal) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(codec.keyring.hashed(owner, "content key", bytes.fromhex(seal.synthetic)))


def _nonce(number: int) -> bytes:
    # The key is that of one content, so a number is used once.
    return number.to_bytes(NONCE_BYTES, "big")


def _bound(owner: str, seal: ContentSeal, number: int) -> bytes:
    return f"{owner}\0{seal.size_bytes}\0{number}".encode("utf-8", "surrogatepass")
