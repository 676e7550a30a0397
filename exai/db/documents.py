"""The texts of documents, by content, and the copies of documents at providers that have to be deleted there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from exai.db.driver.pool import Database, Record
from exai.errors import ContentUnreadable
from exai.models import Owner

TextSource = Literal["local", "provider"]

FAILURE_VALID_S: Final = 3_600.0
"""How long a failed attempt at a text is not repeated."""

CLAIM_S: Final = 180.0
"""Age from which a copy is deleted by any daemon; the upload and the reading of its text take less."""

KEEP_REMOTE_S: Final = 30 * 86_400.0
"""How long a copy that cannot be deleted is remembered."""


@dataclass(frozen=True, slots=True)
class StoredText:
    """The text of a content, None if there is none; `note` describes it, or states why there is none."""

    source: TextSource
    text: str | None
    note: str


class DocumentRepository:
    """Texts of documents, in Postgres; each method is one statement. Methods with an owner access only its rows."""

    def __init__(self, database: Database) -> None:
        self._database, self._codec = database, database.codec

    async def texts(self, owner: Owner, digests: Sequence[str]) -> Mapping[str, StoredText]:
        """Return the known texts and recent failures by SHA-256. Raises `DatabaseError`."""
        rows = await self._database.fetch("read_texts", owner, list(digests), FAILURE_VALID_S)
        return {row["sha256"]: found for row in rows if (found := self._opened(owner, row)) is not None}

    def _opened(self, owner: Owner, row: Record) -> StoredText | None:
        """Return a text, None if it cannot be decrypted, so that it is made again."""
        open_text, sha256 = self._codec.opened_text, row["sha256"]
        try:
            text = None if row["text"] is None else open_text(owner, sha256, "text", row["text"])
            return StoredText(row["source"], text, open_text(owner, sha256, "note", row["note"]))
        except ContentUnreadable:
            return None

    async def keep(self, owner: Owner, sha256: str, found: StoredText) -> None:
        """Store the text of a content, or a failed attempt; a text is never replaced by a failure."""
        seal = self._codec.text
        text = None if found.text is None else seal(owner, sha256, "text", found.text)
        note = seal(owner, sha256, "note", found.note)
        await self._database.fetch("put_text", owner, sha256, found.source, text, note)

    async def remember(self, key_id: str, file_id: str) -> None:
        """Remember a copy at a provider."""
        await self._database.fetch("remember_remote", key_id, file_id)

    async def forget(self, key_id: str, file_id: str) -> None:
        """Forget a copy that is deleted."""
        await self._database.fetch("forget_remote", key_id, file_id)

    async def claim(self, key_id: str, limit: int) -> list[str]:
        """Return old copies, which no other daemon tries to delete for a while."""
        rows = await self._database.fetch("claim_remote", key_id, CLAIM_S, limit, KEEP_REMOTE_S)
        return [row["file_id"] for row in rows]
