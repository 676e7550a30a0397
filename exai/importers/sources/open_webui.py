"""Exports of Open WebUI: a list of chats whose messages are a tree in `history`, or one such chat.

A message's `childrenIds` count where its children name no parent that exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from exai.importers.reading.contents import read_content
from exai.importers.reading.conversations import Facts, JsonLayout, read_conversations
from exai.importers.reading.documents import JsonRecord, SourceDocument, mapping_of, text_of
from exai.importers.reading.naming import key_of_record, name_of_conversation
from exai.importers.reading.threads import Thread
from exai.importers.reading.times import first_time, time_of
from exai.importers.reading.walking import Shape
from exai.importers.records import SourceAttachment, SourceConversation, SourceItem, SourceMessage
from exai.models import Role

KIND: Final = "open-webui"
MESSAGES: Final = Shape("messages")
HISTORY: Final = Shape("history", members={"messages": MESSAGES})
CHAT: Final = Shape("chat", members={"history": HISTORY})
CONVERSATION: Final = Shape("conversation", members={"chat": CHAT, "history": HISTORY})
LIST: Final = Shape("list", "[", items=CONVERSATION)
MEMBERS: Final = frozenset(
    (
        "id", "title", "created_at", "updated_at", "timestamp", "archived", "pinned", "meta", "models",
        "history.currentId", "chat.id", "chat.title", "chat.models", "chat.tags", "chat.timestamp",
        "chat.history.currentId",
    )
)  # fmt: skip
ROLES: Final[Mapping[str, Role]] = {"user": "user", "assistant": "assistant", "system": "system", "tool": "tool"}


def read(document: SourceDocument) -> Iterator[SourceItem]:
    """Yield the chats of one file."""
    return read_conversations(
        document,
        JsonLayout(
            shapes=(LIST, CONVERSATION),
            conversation=CONVERSATION,
            messages=MESSAGES,
            members=MEMBERS,
            add=_add,
            describe=_describe,
            active=lambda facts, _: facts.get("chat.history.currentId") or facts.get("history.currentId"),
            show=_show,
        ),
    )


def _add(thread: Thread, name: str | int, record: JsonRecord) -> Iterator[SourceItem]:
    facts = record.facts
    thread.claim(str(name), facts.get("childrenIds"))
    left_out = thread.add(str(name), text_of(facts.get("parentId")), record, time=time_of(facts.get("timestamp")))
    if left_out is not None:
        yield left_out


def _describe(facts: Facts) -> SourceConversation:
    name = text_of(facts.get("id")) or text_of(facts.get("chat.id"))
    if name is None:
        name = f"{KIND}-{key_of_record(str([facts.get('title'), facts.get('timestamp')]).encode())}"
    given = mapping_of(facts.get("meta")).get("tags") or facts.get("chat.tags")
    tags = [str(each.get("name") if isinstance(each, Mapping) else each) for each in _list(given)]
    tags = [KIND, *tags, *(tag for tag in ("archived", "pinned") if facts.get(tag))]
    models = [each for each in _list(facts.get("chat.models") or facts.get("models")) if isinstance(each, str)]
    return SourceConversation(
        name_of_conversation(name),
        text_of(facts.get("title")) or text_of(facts.get("chat.title")),
        tuple(dict.fromkeys(tags)),
        first_time(facts.get("created_at"), facts.get("timestamp"), facts.get("chat.timestamp")),
        time_of(facts.get("updated_at")),
        {"imported_from": KIND, **({"models": models} if models else {})},
    )


def _show(record: JsonRecord, conversation: str, key: str) -> SourceMessage:
    facts = record.facts
    content = read_content(facts.get("content"))
    if not content.text.strip():
        content = read_content(facts.get("output"))
    texts, files = [content.text], list(content.files)
    for each in _list(facts.get("files")):
        file = mapping_of(each)
        found = read_content({"type": "file", "url": file.get("url")}).files if isinstance(file.get("url"), str) else ()
        files += found
        inner = mapping_of(file.get("file"))
        name = text_of(file.get("name")) or text_of(inner.get("filename")) or text_of(file.get("type")) or "file"
        shown = found[0].name if found else f"{name}, not in the export"
        extracted = mapping_of(inner.get("data")).get("content")
        if isinstance(extracted, str) and extracted:
            data = extracted.encode("utf-8", "replace")
            files.append(SourceAttachment(name, "text/plain", len(data), data.__bytes__))
            shown = name
        texts.append(f"[file: {shown}]")
    role = str(facts.get("role"))
    return SourceMessage(
        conversation,
        key,
        ROLES.get(role, "assistant"),
        "\n\n".join(each for each in texts if each.strip()),
        time_of(facts.get("timestamp")),
        record.text,
        files=tuple(files),
        where=record.where,
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
