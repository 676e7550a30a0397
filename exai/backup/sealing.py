"""Encrypts the files of a backup with a passphrase, in chunks that are authenticated one by one.

The key comes from the passphrase by scrypt. Each file has a key of its own, derived with a random salt that begins the
file, so that a chunk's nonce is its number. The last chunk is marked in its nonce.

Invariant: a file that is changed, cut, extended, or put in the place of another one is not decrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from exai.errors import InvalidArgument

KEY_BYTES: Final = 32
SALT_BYTES: Final = 16
CHUNK_BYTES: Final = 262_144
TAG_BYTES: Final = 16
NUMBER_BYTES: Final = 11
SCRYPT: Final = {"n": 2**16, "r": 8, "p": 1}
"""64 MiB and about a quarter of a second for each guess."""

MAX_SCRYPT_N: Final = 2**20


class Damaged(InvalidArgument):
    """A file of a backup is not what was written; `problem` says what is wrong with it."""

    def __init__(self, problem: str) -> None:
        super().__init__("DIRECTORY", problem, "Use another backup")


@dataclass(frozen=True, slots=True)
class Seal:
    """The keys of one passphrase and salt."""

    key: bytes
    salt: bytes
    cost: int = SCRYPT["n"]

    def name_of(self, sha256: str) -> str:
        """Return a name for a content that does not show its digest."""
        return hmac.digest(self._derived(b"names"), sha256.encode(), "sha256").hex()

    def signature(self, data: bytes) -> str:
        """Return an authentication code for `data`."""
        return hmac.digest(self._derived(b"manifest"), data, "sha256").hex()

    def cipher(self, salt: bytes) -> AESGCM:
        """Return the cipher of one file."""
        return AESGCM(self._derived(b"file " + salt))

    def _derived(self, purpose: bytes) -> bytes:
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose).derive(self.key)


def seal_of(passphrase: str, salt: bytes | None = None, cost: int = SCRYPT["n"]) -> Seal:
    """Return the keys of a passphrase; a new backup has a new salt."""
    if not passphrase:
        raise InvalidArgument("passphrase", "is empty", "Give one of several words")
    if not 2 <= cost <= MAX_SCRYPT_N or cost & (cost - 1):
        raise Damaged("its key cannot be derived")
    salt = os.urandom(SALT_BYTES) if salt is None else salt
    scrypt = Scrypt(salt=salt, length=KEY_BYTES, n=cost, r=SCRYPT["r"], p=SCRYPT["p"])
    return Seal(scrypt.derive(passphrase.encode(errors="surrogateescape")), salt, cost)


class SealedWriter:
    """Writes an encrypted file; `name` is authenticated with each chunk."""

    def __init__(self, stream: BinaryIO, seal: Seal, name: str) -> None:
        salt = os.urandom(SALT_BYTES)
        self._stream, self._cipher, self._name = stream, seal.cipher(salt), name.encode()
        self._pending = bytearray()
        self._number = 0
        stream.write(salt)

    def write(self, data: bytes) -> None:
        """Encrypt all whole chunks but the last one, which may be the end of the file."""
        self._pending += data
        while len(self._pending) > CHUNK_BYTES:
            self._put(bytes(self._pending[:CHUNK_BYTES]), is_last=False)
            del self._pending[:CHUNK_BYTES]

    def end(self) -> None:
        """Write the last chunk."""
        self._put(bytes(self._pending), is_last=True)

    def _put(self, chunk: bytes, *, is_last: bool) -> None:
        self._stream.write(self._cipher.encrypt(_nonce(self._number, is_last=is_last), chunk, self._name))
        self._number += 1


def unsealed(stream: BinaryIO, seal: Seal, name: str) -> Iterator[bytes]:
    """Yield the content of an encrypted file in chunks. Raises `Damaged`."""
    salt = stream.read(SALT_BYTES)
    cipher = seal.cipher(salt)
    chunk = stream.read(CHUNK_BYTES + TAG_BYTES)
    for number in range(2 ** (8 * NUMBER_BYTES - 1)):
        following = stream.read(CHUNK_BYTES + TAG_BYTES)
        try:
            yield cipher.decrypt(_nonce(number, is_last=not following), chunk, name.encode())
        except InvalidTag:
            raise Damaged("it is changed or not complete") from None
        if not following:
            return
        chunk = following


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(NUMBER_BYTES, "big") + (b"\1" if is_last else b"\0")


def plain_digest(data: bytes) -> str:
    """Return what protects a manifest without a passphrase: it detects damage, not intention."""
    return hashlib.sha256(data).hexdigest()
