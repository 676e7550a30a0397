"""The names of the keys in use, as the database has them, and the codec of a process with these keys.

Invariant: no process starts that lacks a key with which rows are encrypted, or has another one under its name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import asyncpg

from exai.db.driver.address import parse_address
from exai.db.driver.pool import Database, Record, connect
from exai.db.driver.statements import load_statements
from exai.encryption.codec import PLAIN, Codec, KeyedCodec
from exai.encryption.keyring import SETTING, Keyring, fingerprint, new_index_key, unwrap, wrap
from exai.errors import ConfigError, DatabaseError
from exai.models import Finding
from exai.program import program
from exai.settings.store import NamedKey, StoreSettings

KEYS_PART: Final = "encryption"


async def open_codec(database: Database, settings: StoreSettings) -> Codec:
    """Return the codec for the rows of a database: 1 round trip, the first time with a new key up to 3 more.

    Raises `ConfigError` if a key is missing or is another one, and `DatabaseError`.
    """
    keys = {key.name: key for key in settings.named_keys}
    stored = await _stored(database)
    check_keys(keys, stored)
    if not keys:
        return PLAIN
    newest = next(iter(keys.values())) if settings.is_writing else None
    if not stored:
        if newest is None:
            return PLAIN
        await _add(database, newest, new_index_key(), is_first=True)
        stored = await _stored(database)
        check_keys(keys, stored)
    index_key = next(unwrap(keys[name], row["wrapped"]) for name, row in stored.items())
    if newest is not None and newest.name not in stored:
        await _add(database, newest, index_key, is_first=False)
    keyring = Keyring(tuple(keys.values()), index_key)
    return KeyedCodec(keyring, newest.name if newest else None, hashes_words=settings.search == "words")


def check_keys(keys: Mapping[str, NamedKey], stored: Mapping[str, Record]) -> None:
    """Raise `ConfigError` unless every key in use is among `keys`."""
    missing = [name for name in stored if name not in keys]
    if missing:
        names = ", ".join(missing)
        raise ConfigError(
            SETTING,
            f"lacks keys with which content of this database is encrypted: {names}",
            f"Add them after the newest ({missing[0]}:KEY); `exai rekey` frees the database of an older key",
        )
    for name, row in stored.items():
        if fingerprint(keys[name]) != row["fingerprint"]:
            raise ConfigError(
                SETTING,
                f"the key {name} is not the one with that name that encrypted content of this database",
                "Set the right one, and give a new key a name of its own",
            )


async def diagnose_keys(settings: StoreSettings, url: str, *, timeout_s: float) -> list[Finding]:
    """Return a finding about keys if the database or the settings have one; nothing is changed.

    None if the database cannot be asked, which is a finding of `exai.db.diagnose`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            stored = await _ask(url, timeout_s)
    except (TimeoutError, DatabaseError):
        return []
    keys = {key.name: key for key in settings.named_keys}
    if not keys and not stored:
        return []
    try:
        check_keys(keys, stored)
        for name, row in stored.items():
            unwrap(keys[name], row["wrapped"])
    except ConfigError as error:
        return [Finding(KEYS_PART, "fail", f"{error.setting}: {error.problem}", error.cure)]
    newest = next(iter(keys)) if settings.is_writing else None
    form = f"new content is encrypted with the key {newest}" if newest else "new content is stored as plain text"
    others = [name for name in stored if name != newest]
    older = f"; older content may need {', '.join(others)} until `{program()} rekey` has ended" if others else ""
    return [Finding(KEYS_PART, "ok", form + older)]


async def _ask(url: str, timeout_s: float) -> dict[str, Record]:
    connection = await connect(parse_address(url), timeout_s=timeout_s)
    try:
        rows = await connection.fetch(load_statements()["encryption_keys"].text)
    except asyncpg.UndefinedTableError:
        rows = []
    finally:
        # Closing would wait for a server that may have stopped answering.
        connection.terminate()
    return {row["name"]: row for row in rows}


async def _stored(database: Database) -> dict[str, Record]:
    return {row["name"]: row for row in await database.fetch("encryption_keys")}


async def _add(database: Database, key: NamedKey, index_key: bytes, *, is_first: bool) -> None:
    await database.fetch("add_encryption_key", key.name, fingerprint(key), wrap(key, index_key), is_first)
