"""The keys of a process: for each named key and owner one that encrypts, and one index key that stays when keys change.

The index key makes hashes: of words, of addresses of contents, of requests. It is random, belongs to the database, and
is stored there encrypted under every named key that is in use. So a change of keys changes no hash.

Invariant: nothing here is ever stored or logged but `fingerprint` and `wrapped`.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from exai.errors import ConfigError
from exai.settings.store import KEY_BYTES, NamedKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
MAX_CIPHERS: Final = 4_096
"""Owners whose derived keys are kept in memory."""

SETTING: Final = "EXAI_STORE__KEYS"


class Keyring:
    """Named keys, newest first, and what is derived from them."""

    def __init__(self, keys: Sequence[NamedKey], index_key: bytes) -> None:
        self._keys = {key.name: key.secret for key in keys}
        self._index_key = index_key
        self._ciphers: dict[tuple[str, str], AESGCM] = {}
        self._owner_keys: dict[str, bytes] = {}

    def cipher(self, name: str, owner: str) -> AESGCM | None:
        """Return the cipher of a named key for an owner, None without a key of that name."""
        found = self._ciphers.get((name, owner))
        if found is None and name in self._keys:
            if len(self._ciphers) >= MAX_CIPHERS:
                self._ciphers.clear()
            found = self._ciphers[name, owner] = _cipher(_derived(self._keys[name], "content", owner))
        return found

    def hashed(self, owner: str, purpose: str, data: bytes) -> bytes:
        """Return a hash of `data`, which only this owner's data for this purpose has; it outlives named keys."""
        key = self._owner_keys.get(owner)
        if key is None:
            if len(self._owner_keys) >= MAX_CIPHERS:
                self._owner_keys.clear()
            key = self._owner_keys[owner] = _derived(self._index_key, "index", owner)
        return hmac.digest(key, purpose.encode() + b"\0" + data, "sha256")


def fingerprint(key: NamedKey) -> str:
    """Return what tells this key from another one of the same name, and nothing about its value."""
    return _derived(key.secret, "fingerprint", "")[:16].hex()


def new_index_key() -> bytes:
    """Return a new index key."""
    return os.urandom(KEY_BYTES)


def wrap(key: NamedKey, index_key: bytes) -> bytes:
    """Return the index key encrypted under a named key."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + _cipher(_derived(key.secret, "wrap", "")).encrypt(nonce, index_key, key.name.encode())


def unwrap(key: NamedKey, wrapped: bytes) -> bytes:
    """Return the index key. Raises `ConfigError` if it was not encrypted under this key."""
    from cryptography.exceptions import InvalidTag

    cipher = _cipher(_derived(key.secret, "wrap", ""))
    try:
        return cipher.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], key.name.encode())
    except InvalidTag:
        raise ConfigError(
            SETTING,
            f"the database's row of the key {key.name} in exai.encryption_keys was changed",
            "Restore that row from a backup, or configure another key that encrypts content there",
        ) from None


def _derived(secret: bytes, purpose: str, owner: str) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = f"exai 1 {purpose}\0{owner}".encode("utf-8", "surrogatepass")
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def _cipher(key: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise ConfigError(SETTING, "needs the package cryptography", 'Install "exai[server]"') from None
    return AESGCM(key)
