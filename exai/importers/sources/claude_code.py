"""Sessions of Claude Code: one file of JSON Lines for each session, and one for each of its subagents.

Lines are taken in the order of the file, because a `parentUuid` may name a line that was never written. Only a prompt
that was later replaced by another one under the same parent begins a fork.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

from exai.importers.reading.bundles import ReadMeter
from exai.importers.reading.contents import read_content, readable
from exai.importers.reading.documents import JsonRecord, SourceDocument, records_of_lines, text_of
from exai.importers.reading.lines import JsonLine
from exai.importers.reading.naming import key_of, key_of_record, name_of_conversation, name_of_fork, short_digest
from exai.importers.reading.threads import REPEATED
from exai.importers.reading.times import time_of
from exai.importers.records import (
    ForkPoint,
    PassedOver,
    SourceAttachment,
    SourceConversation,
    SourceItem,
    SourceMessage,
)
from exai.models import Role

KIND: Final = "claude-code"
PROGRESS: Final = re.compile(rb'^\s*\{[^{}\[\]]*"type"\s*:\s*"(progress|file-history-snapshot|queue-operation)"')
TITLES: Final = {"summary": "summary", "custom-title": "customTitle", "ai-title": "aiTitle"}
SUBAGENTS: Final = "subagents"
SIDE_FILE: Final = re.compile(r"tool-results/([\w.-]{1,200})")
MAX_KIND_CHARS: Final = 100


@dataclass(slots=True)
class _ClaudeSession:
    """What is known of a session: from a first reading the replaced prompts and the title, then what was read.

    `digests` has the ids of all messages, `elsewhere` the conversations of lines that are not in the main one, and
    `tips` the last key of each conversation.
    """

    name: str
    replaced: set[str]
    title: str | None
    cwd: str | None
    is_subagent: bool
    digests: dict[int, int] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    tips: dict[str, str] = field(default_factory=dict)
    current: str = ""

    def knows(self, name: str, digest: int) -> bool:
        """Return whether a message with this id and content was read."""
        return self.digests.get(place_of(name)) == digest


def read(document: SourceDocument) -> Iterator[SourceItem]:
    """Yield the session of one file, with its forks and the subagents whose lines are in it."""
    session = _survey(document)
    side_files = _side_files(document)
    for record in records_of_lines(document, _skipped):
        if not isinstance(record, JsonRecord):
            yield record
            continue
        kind = str(record.facts.get("type"))
        if kind not in ("user", "assistant", "system") or not _has_content(record.facts):
            yield PassedOver(f"lines of type {kind[:40]}")
            continue
        yield from _message(session, record, side_files)


def _skipped(line: JsonLine) -> str | None:
    found = PROGRESS.match(line.head)
    return f"lines of type {found[1].decode()}" if found else None


def _survey(document: SourceDocument) -> _ClaudeSession:
    """Read the file once for its name, its title and the prompts that were replaced."""
    stem = PurePosixPath(document.name).name.partition(".")[0]
    session_id, title, cwd = None, None, None
    prompts: dict[str, str] = {}
    replaced: set[str] = set()
    for record in records_of_lines(SourceDocument(document.bundle, document.name, ReadMeter()), _skipped):
        if not isinstance(record, JsonRecord):
            continue
        facts = record.facts
        session_id = session_id or text_of(facts.get("sessionId"))
        cwd = cwd or text_of(facts.get("cwd"))
        title = text_of(facts.get(TITLES.get(str(facts.get("type")), ""))) or title
        parent, name = facts.get("parentUuid"), facts.get("uuid")
        if isinstance(parent, str) and isinstance(name, str) and _is_prompt(facts):
            before = prompts.get(parent)
            if before is not None and before != name:
                replaced.add(before)
            prompts[parent] = name
    parts = PurePosixPath(document.name).parts
    is_subagent = SUBAGENTS in parts[:-1] or stem.startswith("agent-")
    if SUBAGENTS in parts[:-1]:
        place = parts.index(SUBAGENTS)
        parent_name = session_id or (parts[place - 1] if place else stem)
        name = name_of_conversation(parent_name, SUBAGENTS, stem)
    else:
        name = name_of_conversation(session_id or stem, *((SUBAGENTS, stem) if is_subagent else ()))
    return _ClaudeSession(name, replaced, title, cwd, is_subagent, current=name)


def _is_prompt(facts: Mapping[str, Any]) -> bool:
    """Return whether a line is what a person wrote: no output of a tool, and nothing that Claude Code adds."""
    flags = ("isMeta", "isSidechain", "isCompactSummary", "isVisibleInTranscriptOnly")
    return facts.get("type") == "user" and not any(facts.get(each) for each in flags) and not _is_output(facts)


def _is_output(facts: Mapping[str, Any]) -> bool:
    message = facts.get("message")
    content = message.get("content") if isinstance(message, Mapping) else None
    return isinstance(content, list) and any(
        isinstance(part, Mapping) and part.get("type") == "tool_result" for part in content
    )


def _has_content(facts: Mapping[str, Any]) -> bool:
    return isinstance(facts.get("message"), Mapping) or bool(text_of(facts.get("content")))


def _message(
    session: _ClaudeSession, record: JsonRecord, side_files: Mapping[str, SourceAttachment]
) -> Iterator[SourceItem]:
    facts = record.facts
    name = text_of(facts.get("uuid")) or key_of_record(record.raw)
    digest = short_digest(
        readable([facts.get("type"), facts.get("message"), facts.get("content")]).encode("utf-8", "replace")
    )
    if session.knows(name, digest):
        yield PassedOver(REPEATED)
        return
    if session.digests.get(place_of(name)) is not None:
        # The same id with another content, as hooks and resumed sessions write it.
        name = f"{name}:{digest:016x}"
        if session.knows(name, digest):
            yield PassedOver(REPEATED)
            return
    session.digests[place_of(name)] = digest
    key, time = key_of(name), time_of(facts.get("timestamp"))
    conversation, fork = _conversation_of(session, facts, name, key)
    if conversation not in session.tips:
        yield _described(session, conversation, fork, facts, record.where)
    session.tips[conversation] = key
    content = read_content(_content(facts))
    files = [side_files[found] for found in dict.fromkeys(SIDE_FILE.findall(content.text)) if found in side_files]
    role, kind = _role_and_kind(facts)
    yield SourceMessage(
        conversation,
        key,
        role,
        content.text,
        time,
        record.text,
        kind,
        (*content.files, *files),
        record.where,
    )


def place_of(name: str) -> int:
    """Return a number that stands for an id and takes little memory."""
    return short_digest(name.encode("utf-8", "replace"))


def _content(facts: Mapping[str, Any]) -> Any:
    message = facts.get("message")
    return message.get("content") if isinstance(message, Mapping) else facts.get("content")


def _role_and_kind(facts: Mapping[str, Any]) -> tuple[Role, str]:
    kind = facts.get("type")
    if kind == "assistant":
        return "assistant", "message"
    if kind == "system":
        return "system", (text_of(facts.get("subtype")) or "message")[:MAX_KIND_CHARS]
    if _is_output(facts):
        return "tool", "tool_result"
    return "user", "summary" if facts.get("isCompactSummary") else "meta" if facts.get("isMeta") else "message"


def _conversation_of(
    session: _ClaudeSession, facts: Mapping[str, Any], name: str, key: str
) -> tuple[str, ForkPoint | None]:
    """Return the conversation of a line, and where it begins if the line begins a fork."""
    parent = text_of(facts.get("parentUuid"))
    if facts.get("isSidechain") is True and not session.is_subagent:
        agent = text_of(facts.get("agentId"))
        known = session.elsewhere.get(parent or "")
        found = name_of_conversation(session.name, SUBAGENTS, f"agent-{agent}") if agent else known
        found = found or name_of_conversation(session.name, SUBAGENTS, name)
        session.elsewhere[name] = found
        return found, None
    if parent is not None and parent in session.elsewhere:
        found = session.elsewhere[parent]
    elif parent is not None and place_of(parent) in session.digests:
        found = session.name
    else:
        found = session.current
    fork = None
    if name in session.replaced and parent is not None:
        # The prompt that replaces this one belongs to the same conversation as this one's parent.
        session.elsewhere.setdefault(parent, found)
        tip = session.tips.get(found)
        fork = ForkPoint(found, tip) if tip is not None else None
        found = name_of_fork(found, key)
    if found != session.name:
        session.elsewhere[name] = found
    session.current = found
    return found, fork


def _described(
    session: _ClaudeSession,
    name: str,
    fork: ForkPoint | None,
    facts: Mapping[str, Any],
    where: str,
) -> SourceConversation:
    metadata: dict[str, Any] = {"imported_from": KIND}
    if session.cwd is not None:
        metadata["cwd"] = session.cwd
    for member, value in (("branch", facts.get("gitBranch")), ("version", facts.get("version"))):
        if (text := text_of(value)) is not None:
            metadata[member] = text
    parent = name.partition(f"/{SUBAGENTS}/")[0]
    if parent != name:
        metadata["subagent_of"] = parent
    elif name != session.name:
        metadata["branch_of"] = session.name
    title = session.title if parent == name else None
    tags = (KIND, "subagent") if parent != name else (KIND,)
    return SourceConversation(name, title, tags, time_of(facts.get("timestamp")), None, metadata, fork, where)


def _side_files(document: SourceDocument) -> dict[str, SourceAttachment]:
    """Return the outputs of tools that Claude Code stored beside the session, by name."""
    path = PurePosixPath(document.name)
    stem = path.name.partition(".")[0]
    beside = f"{path.parent / stem}/tool-results/".removeprefix("./")
    names = [name for name in document.bundle.names() if name.startswith(beside)] if len(path.parts) else []
    return {name.removeprefix(beside): document.file(name, name.rpartition("/")[2], "text/plain") for name in names}
