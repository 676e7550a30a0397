"""Exports of Claude.ai: a list of conversations with their messages in order, or with their parents.

Messages of the export by the page's interface name their parents, and include branches that were left.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from exai.importers.reading.contents import read_content
from exai.importers.reading.conversations import Facts, JsonLayout, read_conversations
from exai.importers.reading.documents import JsonRecord, SourceDocument, mapping_of, text_of
from exai.importers.reading.naming import key_of_record, name_of_conversation
from exai.importers.reading.threads import Thread
from exai.importers.reading.times import first_time, time_of
from exai.importers.reading.walking import Shape
from exai.importers.records import SourceAttachment, SourceConversation, SourceItem, SourceMessage

KIND: Final = "claude-ai"
MESSAGES: Final = Shape("messages", "[")
CONVERSATION: Final = Shape("conversation", members={"chat_messages": MESSAGES})
LIST: Final = Shape("list", "[", items=CONVERSATION)
MEMBERS: Final = frozenset(
    (
        "uuid",
        "name",
        "summary",
        "model",
        "created_at",
        "updated_at",
        "is_starred",
        "project",
        "current_leaf_message_uuid",
    )
)
NAMED_FILES: Final = ("files", "files_v2")


def read(document: SourceDocument) -> Iterator[SourceItem]:
    """Yield the conversations of one file."""
    return read_conversations(
        document,
        JsonLayout(
            shapes=(LIST, CONVERSATION),
            conversation=CONVERSATION,
            messages=MESSAGES,
            members=MEMBERS,
            add=_add,
            describe=_describe,
            active=lambda facts, thread: facts.get("current_leaf_message_uuid") or thread.last,
            show=_show,
        ),
    )


def _add(thread: Thread, _: str | int, record: JsonRecord) -> Iterator[SourceItem]:
    name = text_of(record.facts.get("uuid")) or key_of_record(record.raw)
    parent = text_of(record.facts.get("parent_message_uuid")) or thread.last
    left_out = thread.add(name, parent, record, time=time_of(record.facts.get("created_at")))
    if left_out is not None:
        yield left_out


def _describe(facts: Facts) -> SourceConversation:
    name = text_of(facts.get("uuid")) or f"{KIND}-{key_of_record(str(facts.get('created_at')).encode())}"
    metadata: dict[str, Any] = {"imported_from": KIND}
    for member in ("model", "summary"):
        if (text := text_of(facts.get(member))) is not None:
            metadata[member] = text
    if (project := text_of(mapping_of(facts.get("project")).get("name"))) is not None:
        metadata["project"] = project
    tags = (KIND, "starred") if facts.get("is_starred") else (KIND,)
    return SourceConversation(
        name_of_conversation(name),
        text_of(facts.get("name")),
        tags,
        time_of(facts.get("created_at")),
        time_of(facts.get("updated_at")),
        metadata,
    )


def _show(record: JsonRecord, conversation: str, key: str) -> SourceMessage:
    facts = record.facts
    content = read_content(facts.get("content"))
    texts = [content.text if content.text.strip() else facts.get("text") or ""]
    files = list(content.files)
    attachments = facts.get("attachments")
    for each in attachments if isinstance(attachments, list) else ():
        attachment = mapping_of(each)
        extracted = attachment.get("extracted_content")
        name = text_of(attachment.get("file_name")) or "pasted.txt"
        if isinstance(extracted, str) and extracted:
            data = extracted.encode("utf-8", "replace")
            files.append(SourceAttachment(name, "text/plain", len(data), partial(bytes, data)))
        texts.append(f"[file: {name}]")
    named = (each for member in NAMED_FILES for each in _list(facts.get(member)))
    names = dict.fromkeys(str(mapping_of(each).get("file_name") or mapping_of(each).get("file_uuid")) for each in named)
    texts += [f"[file: {name}, not in the export]" for name in names]
    return SourceMessage(
        conversation,
        key,
        "user" if facts.get("sender") in ("human", "user") else "assistant",
        "\n\n".join(each for each in texts if each.strip()),
        first_time(facts.get("created_at"), facts.get("updated_at")),
        record.text,
        files=tuple(files),
        where=record.where,
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
