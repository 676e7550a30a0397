"""Conversations as text: JSON Lines for programs, Markdown for people; both are read back exactly.

JSON Lines: one object for the conversation, then one for each message. Markdown: the same objects in comments, each
message's content under a heading. A comment says how many characters of content follow, so that content which looks
like a heading or a comment of ours is still content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from exai.db.rows import check_time
from exai.errors import InvalidArgument, shown
from exai.models import Conversation, Message, NewMessage, Role

Format = Literal["jsonl", "markdown"]

FORMAT = "exai-conversation"
VERSION = 1
COMMENT = re.compile(r"<!-- exai (conversation|message) (\{.*?\}) -->\n", re.DOTALL)
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class ConversationText:
    """What a text says about its conversation."""

    continuation_id: str
    title: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    created_at: datetime | None = None
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class MessageText:
    """One message of a text; `where` names its place for errors."""

    seq: int
    message: NewMessage
    created_at: datetime | None
    where: str


def write_header(conversation: Conversation, kind: Format) -> str:
    """Return the beginning of a text."""
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "continuation_id": conversation.continuation_id,
        "title": conversation.title,
        "metadata": conversation.metadata,
        "tags": list(conversation.tags),
        "created_at": conversation.created_at.isoformat(),
        "updated_at": conversation.updated_at.isoformat(),
    }
    if kind == "jsonl":
        return _line(facts)
    title = (conversation.title or conversation.continuation_id).replace("\n", " ")
    return f"<!-- exai conversation {_comment(facts)} -->\n# {title}\n"


def write_message(message: Message, kind: Format) -> str:
    """Return one message of a text."""
    facts: dict[str, Any] = {
        "seq": message.seq,
        "role": message.role,
        "kind": message.kind,
        "created_at": message.created_at.isoformat(),
        "metadata": message.metadata,
    }
    if kind == "jsonl":
        return _line({**facts, "content": message.content})
    facts["characters"] = len(message.content)
    time = message.created_at.isoformat(sep=" ", timespec="seconds")
    return f"\n<!-- exai message {_comment(facts)} -->\n## {message.role}, {time}\n\n{message.content}\n"


def read_lines(lines: Iterable[str]) -> Iterator[ConversationText | MessageText]:
    """Read JSON Lines, line by line. Raises `InvalidArgument` naming the line."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number}"
        facts = _object(line, where)
        yield _conversation(facts, where) if number == 1 else _message(facts, facts.get("content"), where)


def read_markdown(text: str) -> Iterator[ConversationText | MessageText]:
    """Read Markdown as `write_header` and `write_message` make it. Raises `InvalidArgument` naming the place."""
    position = counted = 0
    line = 1
    while position < len(text):
        line += text.count("\n", counted, position)
        counted = position
        where = f"line {line}"
        found = COMMENT.match(text, position)
        if found is None:
            raise InvalidArgument(where, "is not where a message of an export begins", "Export it again")
        facts = _object(found.group(2), where)
        if found.group(1) == "conversation":
            yield _conversation(facts, where)
            position = _after(text, "\n", found.end())
        else:
            begin, characters = _after(text, "\n\n", found.end()), facts.get("characters")
            if not isinstance(characters, int) or begin + characters > len(text):
                raise InvalidArgument(where, "the content is not as long as its comment says", "Export it again")
            yield _message(facts, text[begin : begin + characters], where)
            position = begin + characters + 1
        while position < len(text) and text[position] == "\n":
            position += 1


def _after(text: str, mark: str, position: int) -> int:
    found = text.find(mark, position)
    return len(text) if found < 0 else found + len(mark)


def _conversation(facts: Mapping[str, Any], where: str) -> ConversationText:
    if facts.get("format") != FORMAT or facts.get("version") != VERSION:
        raise InvalidArgument(where, "is not the beginning of an exported conversation", "Export it with EXAI")
    continuation_id, title = facts.get("continuation_id"), facts.get("title")
    metadata, tags = facts.get("metadata") or {}, facts.get("tags") or []
    if not isinstance(continuation_id, str) or not continuation_id:
        raise InvalidArgument(f"{where}, continuation_id", "is missing", "Export it again")
    if not isinstance(metadata, dict) or not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise InvalidArgument(where, "metadata must be an object and tags a list of texts", "Correct it")
    return ConversationText(
        continuation_id,
        title if isinstance(title, str) else None,
        metadata,
        tuple(tags),
        _time(facts, "created_at", where),
        _time(facts, "updated_at", where),
    )


def _message(facts: Mapping[str, Any], content: Any, where: str) -> MessageText:
    seq, role, kind, metadata = facts.get("seq"), facts.get("role"), facts.get("kind", "message"), facts.get("metadata")
    if not isinstance(seq, int) or seq < 1:
        raise InvalidArgument(f"{where}, seq", "is not a number from 1 on", "Number the messages 1, 2, 3")
    known_role = next((each for each in ROLES if each == role), None)
    if known_role is None:
        raise InvalidArgument(f"{where}, role", f"is {shown(role)}", f"Use one of {', '.join(ROLES)}")
    if not isinstance(content, str) or not isinstance(kind, str):
        raise InvalidArgument(f"{where}, content", "is not text", "Give it as a text")
    if not isinstance(metadata or {}, dict):
        raise InvalidArgument(f"{where}, metadata", "is not an object", "Give an object or leave it out")
    message = NewMessage(known_role, content, kind, metadata or {})
    return MessageText(seq, message, _time(facts, "created_at", where), where)


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidArgument(where, "is not JSON", "Export it again, or correct the line") from None
    if not isinstance(facts, dict):
        raise InvalidArgument(where, "is not a JSON object", "Export it again, or correct the line")
    return facts


def _time(facts: Mapping[str, Any], name: str, where: str) -> datetime | None:
    text = facts.get(name)
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{where}, {name}", "is not a time", "Write it like 2026-01-02T03:04:05+00:00") from None
    check_time(f"{where}, {name}", time)
    return time


def _line(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":")) + "\n"


def _comment(facts: Mapping[str, Any]) -> str:
    """Return JSON that cannot end a comment: two hyphens in a row are written as escapes."""
    return json.dumps(facts, ensure_ascii=False).replace("--", "\\u002d\\u002d").replace("->", "\\u002d>")
