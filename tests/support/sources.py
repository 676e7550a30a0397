"""Sources of other programs in miniature, for the tests of importers."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from exai.importers.reading.bundles import open_bundle
from exai.importers.reading.documents import SourceDocument
from exai.importers.recognition import RecognisedFile, recognised
from exai.importers.records import DamagedRecord, PassedOver, SourceConversation, SourceItem, SourceMessage
from exai.importers.sources import READERS

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def node(
    name: str, parent: str | None, text: str | None, role: str = "user", time: Any = None, **more: Any
) -> dict[str, Any]:
    """Return a node of ChatGPT's mapping; without text it has no message."""
    message = None
    if text is not None:
        message = {
            "id": name,
            "author": {"role": role},
            "create_time": time,
            "content": {"content_type": "text", "parts": [text]},
            **more,
        }
    return {"id": name, "parent": parent, "children": [], "message": message}


def chatgpt(name: str, nodes: Sequence[Mapping[str, Any]], current: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a conversation of ChatGPT."""
    mapping = {each["id"]: each for each in nodes}
    facts = {"conversation_id": name, "title": name, "create_time": 1_700_000_000.25, "mapping": mapping}
    return {**facts, "current_node": current, **more}


def chain(texts: Sequence[str], start: str | None = None) -> list[dict[str, Any]]:
    """Return nodes n0, n1, ... that follow each other."""
    parents = [start, *(f"n{place}" for place in range(len(texts) - 1))]
    return [
        node(f"n{place}", parents[place], text, "assistant" if place % 2 else "user", 1_700_000_000 + place)
        for place, text in enumerate(texts)
    ]


def claude_line(name: str, parent: str | None, content: Any, kind: str = "user", **more: Any) -> dict[str, Any]:
    """Return a line of Claude Code."""
    return {
        "parentUuid": parent,
        "isSidechain": False,
        "sessionId": "session-1",
        "cwd": "/work",
        "type": kind,
        "uuid": name,
        "timestamp": "2026-01-02T03:04:05.678Z",
        "message": {"role": kind, "content": content},
        **more,
    }


def codex_line(kind: str, payload: Mapping[str, Any], second: int = 0) -> dict[str, Any]:
    """Return a line of Codex."""
    return {"timestamp": f"2026-01-02T03:04:{second:02}.000Z", "type": kind, "payload": payload}


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")
    return path


def write_lines(path: Path, lines: Sequence[Any]) -> Path:
    """Write JSON Lines; a text is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [each if isinstance(each, str) else json.dumps(each) for each in lines]
    path.write_text("".join(f"{each}\n" for each in texts), "utf-8")
    return path


def write_agents(path: Path, rows: Sequence[tuple[str, Any]]) -> Path:
    """Write a database of the OpenAI Agents SDK, with rows of sessions and items or texts."""
    with sqlite3.connect(path) as database:
        database.executescript(
            "create table agent_sessions (session_id text primary key, created_at timestamp default current_timestamp,"
            " updated_at timestamp default current_timestamp);"
            "create table agent_messages (id integer primary key autoincrement, session_id text, message_data text,"
            " created_at timestamp default '2026-01-02 03:04:05');"
        )
        for session, item in rows:
            database.execute("insert or ignore into agent_sessions (session_id) values (?)", (session,))
            data = item if isinstance(item, str) else json.dumps(item)
            database.execute("insert into agent_messages (session_id, message_data) values (?, ?)", (session, data))
    database.close()
    return path


def read_source(path: Path, kind: Any = None) -> list[SourceItem]:
    """Return all records of a source."""
    return list(_items(path, kind))


def _items(path: Path, kind: Any) -> Iterator[SourceItem]:
    with open_bundle(path) as bundle:
        for found in recognised(bundle, kind):
            if isinstance(found, RecognisedFile):
                yield from map(_loaded, READERS[found.kind](SourceDocument(bundle, found.name)))
            else:
                yield DamagedRecord(found, "is not recognised")


def _loaded(item: SourceItem) -> SourceItem:
    """Return a record whose files are read while their archive is open."""
    if not isinstance(item, SourceMessage):
        return item
    return replace(item, files=tuple(replace(each, load=partial(bytes, each.load())) for each in item.files))


def conversations_of(items: Sequence[SourceItem]) -> dict[str, list[str]]:
    """Return the texts of each conversation, without what a fork inherits."""
    found: dict[str, list[str]] = {each.name: [] for each in items if isinstance(each, SourceConversation)}
    for each in items:
        if isinstance(each, SourceMessage):
            found[each.conversation].append(each.text)
    return found


def whole_conversations(items: Sequence[SourceItem]) -> dict[str, list[str]]:
    """Return the texts of each conversation, with what a fork inherits."""
    keys: dict[str, list[tuple[str, str]]] = {}
    for each in items:
        if isinstance(each, SourceConversation) and each.name not in keys:
            start = keys[each.fork.name] if each.fork else []
            place = next((n for n, (key, _) in enumerate(start, 1) if each.fork and key == each.fork.key), 0)
            keys[each.name] = start[:place]
        elif isinstance(each, SourceMessage):
            keys[each.conversation].append((each.key, each.text))
    return {name: [text for _, text in pairs] for name, pairs in keys.items()}


def damage_in(items: Sequence[SourceItem]) -> list[DamagedRecord]:
    """Return what was damaged."""
    return [each for each in items if isinstance(each, DamagedRecord)]


def left_out_in(items: Sequence[SourceItem]) -> dict[str, int]:
    """Return how many records were left out for each reason."""
    counts: dict[str, int] = {}
    for each in items:
        if isinstance(each, PassedOver):
            counts[each.reason] = counts.get(each.reason, 0) + each.count
    return counts
