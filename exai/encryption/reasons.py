"""Why an encrypted text cannot be read, each with its cure."""

from __future__ import annotations

from typing import Final

from exai.encryption.keyring import SETTING

CUT: Final = ("it is encrypted and not complete", "Restore it from a backup")
CHANGED: Final = (
    "it was changed after it was encrypted, or belongs to another owner or role",
    "Restore it from a backup",
)
MOVED: Final = ("it was encrypted for another place in the database", "Restore it from a backup")


def missing(key: str) -> tuple[str, str]:
    """Return why a text cannot be decrypted without a key."""
    return (
        f"it is encrypted with the key {key!r}, which {SETTING} does not have",
        f"Add that key to {SETTING}, after the newest, and restart",
    )
