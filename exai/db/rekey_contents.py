"""Bring what belongs to files and their contents to the newest key, or to plain text.

Invariant: as in `exai.db.rekey`. The bytes of a content are in its store before its files refer to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson

from exai.db.driver.pool import Database, Record
from exai.db.files import NewFile, stored_file_of
from exai.db.rekey import FIRST, REPLACED_BYTES, SCANNED, RekeyBatch, RowKey, is_wanted_object, is_wanted_text
from exai.db.rows import json_of
from exai.encryption.contents import read_seal, write_seal
from exai.encryption.envelope import is_sealed_text
from exai.encryption.origins import open_name, open_source, seal_name, seal_source
from exai.errors import ContentUnreadable, DatabaseBusy
from exai.models import FileId, Owner, StoredFile

FIRST_CONTENT: Final = ("", "")
"""Before all contents, in the order of owner and digest."""

FIRST_FILE: Final = (FIRST,)
FIRST_LINK: Final = (FIRST, FIRST)

SCANNED_CONTENTS: Final = 200
"""Contents that one statement looks at; progress is shown after each."""


class ContentRekeyRepository:
    """Reads rows of contents of all owners and replaces their stored form."""

    def __init__(self, database: Database) -> None:
        self._database, self.codec = database, database.codec

    async def scan(self, place: RowKey) -> Sequence[tuple[Owner, StoredFile]]:
        """Return some contents after a place as they are stored, each with a file."""
        rows = await self._database.fetch("rekey_scan_contents", *place, SCANNED_CONTENTS)
        return [(Owner(row["owner"]), stored_file_of(row)) for row in rows]

    async def replace(self, owner: Owner, former: StoredFile, new: NewFile, store: str) -> bool:
        """Give files another stored form of their content, whose bytes are in `store`; return whether it was done.

        False if the bytes are not as they were stored, or another client has locked the rows.
        """
        blob_id = new.blob_id if new.storage_path is None else None
        facts = (owner, former.sha256, new.sha256, new.size_bytes, store, new.storage_path, blob_id, new.encoding)
        try:
            rows = await self._database.fetch("rekey_content", *facts)
        except DatabaseBusy:
            return False
        return rows[0]["replaced"] is not None

    async def seals(self, place: RowKey, *, is_rehearsal: bool) -> RekeyBatch:
        """Encrypt what is needed to read some contents with the newest key; their bytes stay as they are."""
        rows = await self._database.fetch("rekey_scan_seals", *place, SCANNED)
        batch = RekeyBatch(_last(rows[-1]) if len(rows) == SCANNED else None)
        columns = []
        for row in rows:
            owner, sha256, text = Owner(row["owner"]), row["sha256"], row["encoding"]
            # Plain contents are made of encrypted ones by `exai.files.rekeying`.
            if not self.codec.is_on or is_wanted_text(self.codec, text):
                continue
            batch.found += 1
            try:
                seal = read_seal(self.codec, owner, sha256, text)
            except ContentUnreadable as error:
                batch.unreadable.append(f"content {sha256} of {owner}: {error}")
                continue
            columns.append((owner, sha256, text, write_seal(self.codec, owner, sha256, seal)))
        await batch.replace(self._database, "rekey_seals", columns, is_rehearsal=is_rehearsal)
        return batch

    async def texts(self, place: RowKey, *, is_rehearsal: bool) -> RekeyBatch:
        """Replace some texts of documents after a place."""
        codec = self.codec
        rows = await self._database.fetch("rekey_scan_texts", *place, SCANNED, REPLACED_BYTES)
        batch = RekeyBatch(_last(rows[-1]) if rows else None)
        columns: list[tuple[Owner, str, str, str | None, str]] = []
        for row in rows:
            owner, sha256 = Owner(row["owner"]), row["sha256"]
            if is_wanted_text(codec, row["note"]) and is_wanted_text(codec, row["text"]):
                continue
            batch.found += 1
            try:
                note = codec.opened_text(owner, sha256, "note", row["note"])
                text = None if row["text"] is None else codec.opened_text(owner, sha256, "text", row["text"])
            except ContentUnreadable as error:
                batch.unreadable.append(f"text of the content {sha256} of {owner}: {error}")
                continue
            text = None if text is None else codec.text(owner, sha256, "text", text)
            columns.append((owner, sha256, row["version"], text, codec.text(owner, sha256, "note", note)))
        await batch.replace(self._database, "rekey_texts", columns, is_rehearsal=is_rehearsal)
        return batch

    async def names(self, place: RowKey, *, is_rehearsal: bool) -> RekeyBatch:
        """Replace names of some files after a place."""
        codec = self.codec
        rows = await self._database.fetch("rekey_scan_names", *place, SCANNED)
        batch = RekeyBatch((rows[-1]["id"],) if len(rows) == SCANNED else None)
        columns = []
        for row in rows:
            if is_wanted_text(codec, row["name"]):
                continue
            batch.found += 1
            owner, sha256 = Owner(row["owner"]), row["sha256"] or ""
            try:
                if is_sealed_text(row["encoding"]):
                    sha256 = read_seal(codec, owner, sha256, row["encoding"]).sha256
                name = open_name(codec, owner, sha256, row["name"])
            except ContentUnreadable as error:
                batch.unreadable.append(f"file {row['id']}: {error}")
                continue
            columns.append((row["id"], row["name"], seal_name(codec, owner, sha256, name)))
        await batch.replace(self._database, "rekey_names", columns, is_rehearsal=is_rehearsal)
        return batch

    async def sources(self, place: RowKey, *, is_rehearsal: bool) -> RekeyBatch:
        """Replace the places from which some files of conversations were read."""
        codec = self.codec
        rows = await self._database.fetch("rekey_scan_sources", *place, SCANNED)
        batch = RekeyBatch((rows[-1]["conversation_id"], rows[-1]["file_id"]) if len(rows) == SCANNED else None)
        columns = []
        for row in rows:
            stored = orjson.loads(row["source"] or "null")
            if not isinstance(stored, dict) or is_wanted_object(codec, stored):
                continue
            owner, file_id = Owner(row["owner"]), FileId(row["file_id"])
            try:
                source = open_source(codec, owner, file_id, stored)
            except ContentUnreadable as error:
                batch.found += 1
                batch.unreadable.append(f"source of the file {file_id} in {row['conversation_id']}: {error}")
                continue
            if source is None:
                # Another client has written it, so it has no form to bring it to.
                continue
            batch.found += 1
            new = json_of(seal_source(codec, owner, file_id, source))
            columns.append((row["conversation_id"], file_id, row["version"], new))
        await batch.replace(self._database, "rekey_sources", columns, is_rehearsal=is_rehearsal)
        return batch


def _last(row: Record) -> RowKey:
    return row["owner"], row["sha256"]
