"""Recognise which program wrote a file, by its content.

Invariant: at most the beginning of a file is read, and nothing is assumed from its name but a zip archive's parts.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, get_args

from exai.importers.reading.bundles import UNREADABLE, Bundle, ReadMeter
from exai.importers.reading.documents import SourceDocument, mapping_of, value_of
from exai.importers.reading.lines import read_json_lines
from exai.importers.reading.walking import Begun, Part, Shape, walk
from exai.importers.sources.langgraph import TABLES as GRAPH_TABLES
from exai.importers.sources.openai_agents import MESSAGES as AGENT_TABLE
from exai.importers.sources.openai_agents import tables_of

SourceKind = Literal[
    "chatgpt",
    "claude-ai",
    "claude-code",
    "codex",
    "gemini-cli",
    "openai-agents",
    "langgraph",
    "librechat",
    "open-webui",
    "exai",
]
SOURCE_KINDS: Final = get_args(SourceKind)
SQLITE: Final = b"SQLite format 3\0"
EXAI_FORMAT: Final = "exai-conversation"
EXAI_MARKDOWN: Final = b"<!-- exai conversation "
MAX_LINES: Final = 50
MAX_STEPS: Final = 2_000
MAX_HEAD_BYTES: Final = 4 * 1_048_576
HEAD_CHUNK_BYTES: Final = 262_144
MAX_MARK_BYTES: Final = 200
ENDINGS: Final = (".json", ".jsonl", ".ndjson", ".db", ".sqlite", ".sqlite3", ".md", ".markdown")
PACKED_ENDINGS: Final = (".gz", ".xz", ".zst")
NOT_SESSIONS: Final = ("tool-results/", "__MACOSX/")

# The members of an object of which any one of a set shows the kind.
CODEX_TYPES: Final = frozenset(("session_meta", "response_item", "event_msg", "turn_context", "compacted"))
CLAUDE_TYPES: Final = frozenset(("user", "assistant", "system", "progress", "summary", "file-history-snapshot"))

# Containers with messages are descended into, so that their names are seen although they may be of any size.
CONTAINERS: Final = {
    "mapping": Shape("object"),
    "history": Shape("object"),
    "chat_messages": Shape("list", "["),
    "messages": Shape("list", "["),
}
OBJECT: Final = Shape("object", members=CONTAINERS)
CHAT_OBJECT: Final = Shape("object", members={**CONTAINERS, "chat": OBJECT})
OBJECTS: Final = Shape("list", "[", items=CHAT_OBJECT)


@dataclass(frozen=True, slots=True)
class RecognisedFile:
    """A file and the program that wrote it."""

    kind: SourceKind
    name: str


def recognised(
    bundle: Bundle, kind: SourceKind | None = None, only: Container[str] | None = None
) -> Iterator[RecognisedFile | str]:
    """Yield the files of a bundle that have conversations, and the names of those that were not understood.

    With a kind, files of other kinds are left out without a word, unless there is one file only. `only` has the names
    of the files to look at.
    """
    names = [name for name in bundle.names() if may_be_source(name)] or list(bundle.names())[:1]
    for name in names:
        if only is not None and name not in only:
            continue
        found = kind_of_file(bundle, name)
        if kind is not None and (found == kind or (found is None and len(names) == 1)):
            yield RecognisedFile(kind, name)
        elif kind is None and found is not None:
            yield RecognisedFile(found, name)
        elif kind is None or len(names) == 1:
            yield name


def recognised_files(
    bundle: Bundle, kind: SourceKind | None = None, only: Container[str] | None = None
) -> list[RecognisedFile | str]:
    """Return what `recognised` yields; blocks."""
    return list(recognised(bundle, kind, only))


def kind_of_file(bundle: Bundle, name: str) -> SourceKind | None:
    """Return the program that wrote a file, None if it is not known."""
    try:
        with SourceDocument(bundle, name, ReadMeter()).open() as stream:
            head = _head(stream)
        if head.startswith(SQLITE):
            path = bundle.path(name)
            return "openai-agents" if path is None else _kind_of_tables(tables_of(path))
        if head[:MAX_MARK_BYTES].lstrip().startswith(EXAI_MARKDOWN):
            return "exai"
        return _kind_of_lines(head) or _kind_of_json(head)
    except (*UNREADABLE, ValueError):
        return None


def _kind_of_tables(tables: set[str]) -> SourceKind | None:
    """Recognise a database by its tables."""
    if AGENT_TABLE in tables:
        return "openai-agents"
    return "langgraph" if tables >= GRAPH_TABLES else None


def _head(stream: BinaryIO) -> bytes:
    """Return the beginning of a file, as far as it can be read."""
    head = b""
    with contextlib.suppress(*UNREADABLE):
        while len(head) < MAX_HEAD_BYTES and (chunk := stream.read(HEAD_CHUNK_BYTES)):
            head += chunk
    return head


def may_be_source(name: str) -> bool:
    """Return whether the ending of a file is one of sources."""
    path = Path(name.lower())
    ending = Path(path.stem).suffix if path.suffix in PACKED_ENDINGS else path.suffix
    return ending in ENDINGS and not any(each in name for each in NOT_SESSIONS)


def _kind_of_lines(head: bytes) -> SourceKind | None:
    """Recognise JSON Lines by the first lines that say what they are."""
    for line in islice(read_json_lines(io.BytesIO(head)), MAX_LINES):
        kind = _kind_of_line(mapping_of(value_of(line.raw)))
        if kind is not None:
            return kind
    return None


def _kind_of_line(facts: Mapping[str, Any]) -> SourceKind | None:
    kind = facts.get("type")
    if facts.get("format") == EXAI_FORMAT:
        return "exai"
    if isinstance(facts.get("payload"), Mapping) and kind in CODEX_TYPES:
        return "codex"
    if "instructions" in facts and "id" in facts and "timestamp" in facts:
        return "codex"
    if "$set" in facts or "$rewindTo" in facts or ("sessionId" in facts and "startTime" in facts):
        return "gemini-cli"
    if kind in CLAUDE_TYPES and ("sessionId" in facts or "leafUuid" in facts or "uuid" in facts):
        return "claude-code"
    return None


def _kind_of_json(head: bytes) -> SourceKind | None:
    """Recognise a JSON text by the members of its first object, or of the first in its list."""
    members: set[str] = set()
    for step in islice(walk(io.BytesIO(head), (OBJECTS, CHAT_OBJECT)), MAX_STEPS):
        if isinstance(step, Begun | Part):
            members.add(str(step.key))
        kind = _kind_of_members(members)
        if kind is not None:
            return kind
    return None


def _kind_of_members(members: set[str]) -> SourceKind | None:
    found: dict[SourceKind, bool] = {
        "chatgpt": "mapping" in members,
        "claude-ai": "chat_messages" in members,
        "open-webui": "history" in members,
        "librechat": {"conversationId", "messages"} <= members,
        "gemini-cli": {"sessionId", "messages"} <= members,
    }
    return next((kind for kind, is_it in found.items() if is_it), None)
