"""The section of the settings about the encryption of stored content."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import AfterValidator, SecretStr

from exai.settings.addresses import UnusableAddress
from exai.settings.sections import Section

KEY_BYTES: Final = 32
PLAIN: Final = "plain"
"""In the place of the newest key: what is stored from now on is not encrypted."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_MAKE: Final = "make a key with: openssl rand -base64 32"


class NamedKey(NamedTuple):
    """A key of 256 bits and the name under which rows refer to it."""

    name: str
    secret: bytes

    def __repr__(self) -> str:
        """Return the name only."""
        return f"NamedKey({self.name!r})"


def parse_keys(text: str) -> tuple[tuple[NamedKey, ...], bool]:
    """Return the keys, newest first, and whether the newest encrypts. Raises `UnusableAddress`."""
    keys: list[NamedKey] = []
    is_writing = True
    for place, item in enumerate(_items(text), 1):
        name, colon, encoded = item.partition(":")
        if item == PLAIN and place == 1:
            is_writing = False
            continue
        where = f"(key {place})"
        if not colon or not _NAME.fullmatch(name) or name == PLAIN:
            raise UnusableAddress(
                f"has no usable name {where}",
                "Write NAME:KEY,NAME:KEY with the newest first, names of a-z, 0-9, - and _; " + _MAKE,
            )
        if name in {key.name for key in keys}:
            raise UnusableAddress(f"has two keys named {name}", "Give each key a name of its own")
        secret = _decoded(encoded)
        if len(secret) != KEY_BYTES:
            raise UnusableAddress(f"has a key {name} that is not 32 bytes in base64 or hexadecimal", _MAKE.capitalize())
        keys.append(NamedKey(name, secret))
    if not keys:
        raise UnusableAddress("has no key", "Write NAME:KEY; " + _MAKE)
    return tuple(keys), is_writing


def _items(text: str) -> list[str]:
    if text.startswith(("[", "{")):
        try:
            value = json.loads(text)
        except ValueError:
            raise UnusableAddress("is not JSON", "Write NAME:KEY,NAME:KEY") from None
        pairs = [f"{name}:{key}" for name, key in value.items()] if isinstance(value, dict) else value
        return [each for each in pairs if isinstance(each, str)]
    return [each for each in re.split(r"[\s,]+", text) if each]


def _decoded(encoded: str) -> bytes:
    try:
        if len(encoded) == 2 * KEY_BYTES:
            return bytes.fromhex(encoded)
        return base64.b64decode(
            encoded + "=" * (-len(encoded) % 4), altchars=b"-_" if set(encoded) & set("-_") else None, validate=True
        )
    except (ValueError, binascii.Error):
        return b""


def _check_keys(secret: SecretStr) -> SecretStr:
    parse_keys(secret.get_secret_value())
    return secret


class StoreSettings(Section):
    """Encryption of what is stored, with `keys` as NAME:KEY,NAME:KEY; the first encrypts, all of them decrypt.

    `search` says whether keyed hashes of words are stored, by which messages are found; `embeddings` whether vectors of
    questions may be stored, which tell about their meaning. Both matter only with keys.
    """

    keys: Annotated[SecretStr, AfterValidator(_check_keys)] | None = None
    search: Literal["words", "off"] = "words"
    embeddings: bool = False

    @property
    def named_keys(self) -> tuple[NamedKey, ...]:
        """Return the keys, newest first; none without encryption."""
        return parse_keys(self.keys.get_secret_value())[0] if self.keys else ()

    @property
    def is_writing(self) -> bool:
        """Return whether what is stored from now on is encrypted."""
        return parse_keys(self.keys.get_secret_value())[1] if self.keys else False
