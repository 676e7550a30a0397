"""Bytes of any size, encrypted for one place in the database; the name of the key is stored beside them.

Invariant: bytes that were encrypted for one place cannot be read at another one, nor for another owner.
"""

from __future__ import annotations

import os
from typing import Final

from exai.encryption.codec import Codec, KeyedCodec
from exai.encryption.keyring import NONCE_BYTES
from exai.encryption.reasons import CHANGED, missing
from exai.errors import ContentUnreadable

PURPOSE: Final = "bytes"


def key_name(codec: Codec) -> str | None:
    """Return the name of the key with which bytes are encrypted from now on, None if they are not."""
    return None if codec.beginning is None else codec.beginning.split("$")[2]


def seal_bytes(codec: Codec, owner: str, place: tuple[str, ...], data: bytes) -> bytes:
    """Return the form in which bytes are stored at a place."""
    name = key_name(codec)
    if name is None or not isinstance(codec, KeyedCodec):
        return data
    cipher = codec.keyring.cipher(name, owner)
    if cipher is None:
        raise AssertionError("the newest key is in the keyring")
    nonce = os.urandom(NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, data, _bound(owner, place))


def open_bytes(codec: Codec, owner: str, place: tuple[str, ...], data: bytes, name: str | None) -> bytes:
    """Return bytes as they were given, from the form in which they are stored with the key `name` (None: as given).

    Raises `ContentUnreadable`, which names the first part of the place.
    """
    if name is None:
        return data
    cipher = codec.keyring.cipher(name, owner) if isinstance(codec, KeyedCodec) else None
    if cipher is None:
        raise ContentUnreadable(place[0], *missing(name))
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], _bound(owner, place))
    except (InvalidTag, ValueError):
        raise ContentUnreadable(place[0], *CHANGED) from None


def _bound(owner: str, place: tuple[str, ...]) -> bytes:
    return "\0".join((PURPOSE, owner, *place)).encode("utf-8", "surrogatepass")
