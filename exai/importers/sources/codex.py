"""Sessions of Codex: `rollout-*.jsonl`. Lines have no ids, so the digest of a line is the key of its message.

Compacted lines repeat the history with all images in it, and events repeat the items; neither is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Final

from exai.importers.reading.documents import JsonRecord, SourceDocument, mapping_of, records_of_lines, text_of
from exai.importers.reading.lines import JsonLine
from exai.importers.reading.naming import key_of_record, name_of_conversation, short_digest
from exai.importers.reading.responses import item_content, role_and_kind
from exai.importers.reading.threads import REPEATED
from exai.importers.reading.times import time_of
from exai.importers.records import PassedOver, SourceConversation, SourceItem, SourceMessage

KIND: Final = "codex"
REPEATING: Final = re.compile(rb'^\s*\{[^{}\[\]]*"type"\s*:\s*"(compacted|event_msg)"')
NAMES: Final = re.compile(rb'"thread_name')
SESSION_ID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
ITEM_TYPES: Final = ("message", "reasoning", "compaction")


@dataclass(slots=True)
class _Rollout:
    """What was read of a session so far; `seen` has the digests of its lines."""

    name: str | None = None
    title: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    began: bool = False
    seen: dict[int, int] = field(default_factory=dict)


def read(document: SourceDocument) -> Iterator[SourceItem]:
    """Yield the session of one file."""
    session = _Rollout()
    for record in records_of_lines(document, _skipped):
        if isinstance(record, JsonRecord):
            yield from _line(document, session, record)
        else:
            yield record


def _skipped(line: JsonLine) -> str | None:
    """Return the type of a line that repeats what others say, by its beginning."""
    found = REPEATING.match(line.head)
    return f"lines of type {found[1].decode()}" if found and not NAMES.search(line.head) else None


def _line(document: SourceDocument, session: _Rollout, record: JsonRecord) -> Iterator[SourceItem]:
    facts = record.facts
    kind, payload = facts.get("type"), facts.get("payload")
    if isinstance(payload, Mapping) and kind == "session_meta":
        if not session.facts:
            session.facts = payload
        yield PassedOver("lines of type session_meta")
    elif isinstance(payload, Mapping) and kind == "response_item":
        yield from _message(document, session, record, payload)
    elif isinstance(payload, Mapping):
        title = text_of(payload.get("thread_name"))
        if title is not None:
            session.title = title
            if session.began:
                yield _conversation(document, session, record.where)
        yield PassedOver(f"lines of type {str(kind)[:40]}")
    elif kind in ITEM_TYPES or (isinstance(kind, str) and kind.endswith(("_call", "_output"))):
        # Sessions of 2025 have items without an envelope.
        yield from _message(document, session, record, facts)
    elif "instructions" in facts and "id" in facts and not session.facts:
        session.facts = facts
        yield PassedOver("lines of type session_meta")
    else:
        yield PassedOver(f"lines of type {str(kind)[:40]}")


def _message(
    document: SourceDocument, session: _Rollout, record: JsonRecord, item: Mapping[str, Any]
) -> Iterator[SourceItem]:
    if not session.began:
        session.began = True
        yield _conversation(document, session, record.where, time_of(record.facts.get("timestamp")))
    digest = short_digest(record.raw)
    number = session.seen.get(digest, 0)
    session.seen[digest] = number + 1
    time = time_of(record.facts.get("timestamp"))
    if number and time is not None:
        yield PassedOver(REPEATED)
        return
    role, kind = role_and_kind(item)
    content = item_content(item)
    yield SourceMessage(
        session.name or "",
        key_of_record(record.raw, number),
        role,
        content.text,
        time,
        record.text,
        kind,
        content.files,
        record.where,
    )


def _conversation(
    document: SourceDocument, session: _Rollout, where: str, first: datetime | None = None
) -> SourceConversation:
    facts = session.facts
    if session.name is None:
        stem = PurePosixPath(document.name).name.partition(".")[0]
        found = SESSION_ID.search(stem)
        session.name = name_of_conversation(text_of(facts.get("id")) or (found[0] if found else stem))
    metadata: dict[str, Any] = {"imported_from": KIND}
    git = mapping_of(facts.get("git"))
    members = [(each, facts.get(each)) for each in ("cwd", "cli_version", "forked_from_id", "parent_thread_id")]
    for member, value in (*members, ("branch", git.get("branch")), ("repository", git.get("repository_url"))):
        if (text := text_of(value)) is not None:
            metadata[member] = text
    created_at = time_of(facts.get("timestamp")) or first
    return SourceConversation(
        session.name, session.title, (KIND,), created_at, None, metadata, None, document.place("") or where
    )
