"""Write and read conversations as JSON Lines and as Markdown; both are read back without loss.

JSON Lines: one object for the conversation, then one for each file or part of one, then one for each message. Markdown:
the same objects in comments, each content under a heading. A comment says how many characters of content follow, so
that content which looks like a heading or a comment of ours is still content.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any, Literal

from exai.errors import InvalidArgument, shown
from exai.items import ITEM
from exai.models import Conversation, Message, NewMessage, StoredFile
from exai.validation import MAX_NUMBER, ROLES, check_list, check_text, check_time

Format = Literal["jsonl", "markdown"]

FORMAT = "exai-conversation"
VERSION = 1
COMMENT = re.compile(r"<!-- exai (conversation|file|message) (\{.*?\}) -->\n", re.DOTALL)
SHA256 = re.compile(r"[0-9a-f]{64}")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NUMBER = re.compile(r"-?\d{9,}(\.\d+)?")
OFFSET_APART = re.compile(r"\s+(?=[+-]\d\d(:?\d\d)?$)")
UTC_NAMES = re.compile(r"\s*(UTC|GMT)$", re.IGNORECASE)
MAX_TIME_CHARS = 100
UNITS = ((10**17, 1_000), (10**14, 1), (10**11, 1 / 1_000), (0, 1 / 1_000_000))
"""From which number on a time counts nanoseconds, microseconds, milliseconds or seconds; how many are a microsecond."""


@dataclass(frozen=True, slots=True)
class ConversationText:
    """The properties of a conversation that a text states; `where` names their place for errors."""

    continuation_id: str
    title: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    created_at: datetime | None = None
    updated_at: datetime | None = None
    where: str = field(default="line 1", compare=False)


@dataclass(frozen=True, slots=True)
class MessageText:
    """One message of a text; `where` names its place for errors."""

    seq: int
    message: NewMessage
    created_at: datetime | None
    where: str


@dataclass(frozen=True, slots=True)
class FileText:
    """A file of a text, or the part of it that begins at `offset`. Without `data` it is only named."""

    file_id: str
    name: str
    media_type: str
    sha256: str
    size_bytes: int
    offset: int
    data: bytes | None
    where: str


ExportItem = ConversationText | FileText | MessageText


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
        "metadata": {name: value for name, value in message.metadata.items() if name != ITEM},
    }
    facts |= {name: value for name, value in (("key", message.key), ("item", message.item)) if value is not None}
    if kind == "jsonl":
        return _line({**facts, "content": message.content})
    facts["characters"] = len(message.content)
    time = message.created_at.isoformat(sep=" ", timespec="seconds")
    return f"\n<!-- exai message {_comment(facts)} -->\n## {message.role}, {time}\n\n{message.content}\n"


def write_file(file: StoredFile, offset: int, data: bytes | None, kind: Format) -> str:
    """Return a file, or the part of it that begins at `offset`; without `data` only what it is called."""
    facts: dict[str, Any] = {
        "file_id": file.id,
        "name": file.name,
        "media_type": file.media_type,
        "size_bytes": file.size_bytes,
        "sha256": file.sha256,
        "offset": offset,
    }
    form, content = _encoded(file, data)
    if kind == "jsonl":
        return _line({**facts, form: content} if form else facts)
    facts |= {"form": form, "characters": len(content)} if form else {}
    return f"\n<!-- exai file {_comment(facts)} -->\n## file, {file.name}\n\n{content}\n"


def _encoded(file: StoredFile, data: bytes | None) -> tuple[Literal["text", "base64"] | None, str]:
    """Return bytes as the text that they are if nothing in between can change it, else in base64."""
    if data is None:
        return None, ""
    if len(data) == file.size_bytes and b"\r" not in data and b"\0" not in data:
        try:
            return "text", data.decode()
        except UnicodeDecodeError:
            pass
    return "base64", base64.b64encode(data).decode()


def read_lines(lines: Iterable[str], first: int = 1) -> Iterator[ExportItem]:
    """Read JSON Lines, line by line, the first with number `first`. Raises `InvalidArgument` naming the line."""
    begun = False
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        where = f"line {number}"
        facts = _object(line, where)
        if not begun:
            begun = True
            yield _conversation(facts, where)
        elif "role" not in facts and "sha256" in facts:
            form = "text" if "text" in facts else "base64" if "base64" in facts else None
            yield _file(facts, form, facts.get(form) if form else None, where)
        else:
            yield _message(facts, facts.get("content"), where)


def read_markdown(text: str) -> Iterator[ExportItem]:
    """Read Markdown as this module writes it, also with the line ends of Windows. Raises `InvalidArgument`."""
    if "\r\n" in text and text.index("\r\n") < text.index("\n"):
        text = text.replace("\r\n", "\n")
    position = counted = 0
    line = 1
    while position < len(text):
        line += text.count("\n", counted, position)
        counted = position
        where = f"line {line}"
        found = COMMENT.match(text, position)
        if found is None:
            raise InvalidArgument(
                where,
                "is not the beginning of an exported conversation, message or file",
                "Check the format (jsonl or markdown), or export again",
            )
        facts = _object(found.group(2), where)
        if found.group(1) == "conversation":
            yield _conversation(facts, where)
            position = _after(text, "\n", found.end())
        else:
            begin, characters = _after(text, "\n\n", found.end()), facts.get("characters", 0)
            if not isinstance(characters, int) or not 0 <= characters <= len(text) - begin:
                raise InvalidArgument(where, "the content is not as long as its comment says", "Export it again")
            content = text[begin : begin + characters]
            is_file = found.group(1) == "file"
            yield _file(facts, facts.get("form"), content, where) if is_file else _message(facts, content, where)
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
    tags = facts.get("tags") or []
    if not isinstance(continuation_id, str) or not continuation_id:
        raise InvalidArgument(f"{where}, continuation_id", "is missing", "Export it again")
    if title is not None:
        check_text(f"{where}, title", title, MAX_NUMBER)
    check_list(f"{where}, tags", tags, MAX_NUMBER)
    for position, tag in enumerate(tags):
        check_text(f"{where}, tags[{position}]", tag, MAX_NUMBER)
    return ConversationText(
        continuation_id,
        title,
        _metadata(facts, where),
        tuple(tags),
        _time(facts, "created_at", where),
        _time(facts, "updated_at", where),
        where,
    )


def _metadata(facts: Mapping[str, Any], where: str) -> dict[str, Any]:
    metadata = facts.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InvalidArgument(f"{where}, metadata", "is not an object", "Give an object or leave it out")
    return metadata


def _file(facts: Mapping[str, Any], form: Any, content: Any, where: str) -> FileText:
    texts = [facts.get(name) for name in ("file_id", "name", "media_type", "sha256")]
    numbers = [facts.get("size_bytes"), facts.get("offset", 0)]
    if not all(isinstance(each, str) for each in texts) or not all(type(each) is int and each >= 0 for each in numbers):
        raise InvalidArgument(where, "does not say which file it is", "Export it again")
    data = None
    try:
        if form == "text":
            data = str(content).encode()
        elif form == "base64":
            data = base64.b64decode(str(content), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument(where, "the file's content is damaged", "Export it again") from None
    file_id, name, media_type, sha256 = map(str, texts)
    size_bytes, offset = (int(each or 0) for each in numbers)
    if not SHA256.fullmatch(sha256):
        raise InvalidArgument(f"{where}, sha256", "is not a SHA-256 digest in hexadecimal digits", "Export it again")
    if size_bytes > MAX_NUMBER:
        raise InvalidArgument(f"{where}, size_bytes", f"is {shown(size_bytes)}", f"Use 0 to {MAX_NUMBER}")
    return FileText(file_id, name, media_type, sha256, size_bytes, offset, data, where)


def _message(facts: Mapping[str, Any], content: Any, where: str) -> MessageText:
    seq, role, kind = facts.get("seq"), facts.get("role"), facts.get("kind", "message")
    if isinstance(seq, float) and seq.is_integer():
        seq = int(seq)
    if type(seq) is not int or seq < 1:
        raise InvalidArgument(f"{where}, seq", "is not a number from 1 on", "Number the messages 1, 2, 3")
    known_role = next((each for each in ROLES if each == role), None)
    if known_role is None:
        raise InvalidArgument(f"{where}, role", f"is {shown(role)}", f"Use one of {', '.join(ROLES)}")
    check_text(f"{where}, content", content, MAX_NUMBER)
    check_text(f"{where}, kind", kind, MAX_NUMBER)
    key, item = (_optional_text(facts, name, where) for name in ("key", "item"))
    message = NewMessage(known_role, content, kind, _metadata(facts, where), key=key, item=item)
    return MessageText(seq, message, _time(facts, "created_at", where), where)


def _optional_text(facts: Mapping[str, Any], name: str, where: str) -> str | None:
    text = facts.get(name)
    if text is not None:
        check_text(f"{where}, {name}", text, MAX_NUMBER)
    return text


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidArgument(where, "is not JSON", "Export it again, or correct the line") from None
    if not isinstance(facts, dict):
        raise InvalidArgument(where, "is not a JSON object", "Export it again, or correct the line")
    return facts


def _time(facts: Mapping[str, Any], name: str, where: str) -> datetime | None:
    given = facts.get(name)
    if given is None:
        return None
    try:
        time = moment(given)
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgument(f"{where}, {name}", "is not a time", "Write it like 2026-01-02T03:04:05+00:00") from None
    check_time(f"{where}, {name}", time)
    return time


def moment(given: Any) -> datetime:
    """Read a time as it is written elsewhere: in ISO 8601, with a space, or as a number since 1970."""
    if isinstance(given, str):
        text = given.strip()
        if len(text) > MAX_TIME_CHARS:
            raise ValueError("longer than any time")
        if not NUMBER.fullmatch(text):
            return datetime.fromisoformat(OFFSET_APART.sub("", UTC_NAMES.sub("+00:00", text)))
        given = float(text) if "." in text else int(text)
    if isinstance(given, bool) or not isinstance(given, int | float) or not isfinite(given):
        raise TypeError("neither a text nor a number")
    per_microsecond = next(each for least, each in UNITS if abs(given) >= least)
    return EPOCH + timedelta(microseconds=round(given / per_microsecond))


def _line(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":")) + "\n"


def _comment(facts: Mapping[str, Any]) -> str:
    """Return JSON that cannot end a comment: two hyphens in a row are written as escapes."""
    return json.dumps(facts, ensure_ascii=False).replace("--", "\\u002d\\u002d").replace("->", "\\u002d>")
