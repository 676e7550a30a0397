"""Exports of ChatGPT: `conversations.json`, or `conversations-000.json` and so on, alone or with attachments beside it.

Attachments are found by the ids in their names; directories, endings and listings differ between exports.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from exai.importers.reading.bundles import UNREADABLE, Bundle, read_file
from exai.importers.reading.contents import read_content, readable
from exai.importers.reading.conversations import Facts, JsonLayout, read_conversations
from exai.importers.reading.documents import JsonRecord, SourceDocument, mapping_of, text_of, value_of
from exai.importers.reading.naming import key_of_record, name_of_conversation
from exai.importers.reading.threads import Thread
from exai.importers.reading.times import first_time, time_of
from exai.importers.reading.walking import Shape
from exai.importers.records import PassedOver, SourceAttachment, SourceConversation, SourceItem, SourceMessage
from exai.models import Role

KIND: Final = "chatgpt"
MEMBERS: Final = frozenset(
    (
        "conversation_id",
        "id",
        "title",
        "create_time",
        "update_time",
        "current_node",
        "default_model_slug",
        "is_archived",
        "is_starred",
    )
)
MAPPING: Final = Shape("mapping")
CONVERSATION: Final = Shape("conversation", members={"mapping": MAPPING})
LIST: Final = Shape("list", "[", items=CONVERSATION)

FILE_ID: Final = re.compile(r"file[-_][A-Za-z0-9]+")
ASSET_NAMES: Final = "conversation_asset_file_names.json"
MAX_ASSET_NAMES_BYTES: Final = 64 * 1_048_576
HIDDEN_TYPES: Final = ("user_editable_context", "model_editable_context")
ROLES: Final[Mapping[str, Role]] = {"user": "user", "assistant": "assistant", "system": "system", "tool": "tool"}
KINDS: Final = {
    "thoughts": "thinking",
    "reasoning_recap": "thinking",
    "code": "code",
    "execution_output": "output",
    "system_error": "error",
}
HIDDEN: Final = "hidden messages"


def read(document: SourceDocument) -> Iterator[SourceItem]:
    """Yield the conversations of one file."""
    assets = ChatAssets(document)
    return read_conversations(
        document,
        JsonLayout(
            shapes=(LIST, CONVERSATION),
            conversation=CONVERSATION,
            messages=MAPPING,
            members=MEMBERS,
            add=_add,
            describe=_describe,
            active=lambda facts, _: facts.get("current_node"),
            show=assets.show,
        ),
    )


def _describe(facts: Facts) -> SourceConversation:
    name = text_of(facts.get("conversation_id")) or text_of(facts.get("id"))
    if name is None:
        # An id of its own, which the next export has again.
        name = f"{KIND}-{key_of_record(readable([facts.get('title'), facts.get('create_time')]).encode())}"
    tags = [
        KIND,
        *(tag for tag, member in (("archived", "is_archived"), ("starred", "is_starred")) if facts.get(member)),
    ]
    model = text_of(facts.get("default_model_slug"))
    return SourceConversation(
        name_of_conversation(name),
        text_of(facts.get("title")),
        tuple(tags),
        time_of(facts.get("create_time")),
        time_of(facts.get("update_time")),
        {"imported_from": KIND, **({"model": model} if model else {})},
    )


def _add(thread: Thread, name: str | int, record: JsonRecord) -> Iterator[SourceItem]:
    facts, message = record.facts, mapping_of(record.facts.get("message"))
    thread.claim(str(name), facts.get("children"))
    is_shown = _is_shown(message)
    if message and not is_shown:
        yield PassedOver(HIDDEN)
    time = first_time(message.get("create_time"), message.get("update_time"))
    parent = text_of(facts.get("parent"))
    left_out = thread.add(str(name), parent, record, time=time, is_shown=is_shown)
    if left_out is not None:
        yield left_out


def _is_shown(message: Mapping[str, Any]) -> bool:
    if not message:
        return False
    metadata, content = mapping_of(message.get("metadata")), mapping_of(message.get("content"))
    if metadata.get("is_visually_hidden_from_conversation") or content.get("content_type") in HIDDEN_TYPES:
        return False
    return bool(_text(content).strip() or metadata.get("attachments") or list(_pointers(content)))


def _text(content: Mapping[str, Any]) -> str:
    """Return the text of a content of any type."""
    kind = content.get("content_type")
    if kind == "thoughts":
        thoughts = content.get("thoughts")
        lines = [
            "\n".join(filter(None, (text_of(each.get("summary")), text_of(each.get("content")))))
            for each in (thoughts if isinstance(thoughts, list) else ())
            if isinstance(each, Mapping)
        ]
        return "\n\n".join(filter(None, lines))
    if kind == "tether_quote":
        return "\n".join(filter(None, (text_of(content.get(each)) for each in ("title", "url", "text"))))
    if kind == "tether_browsing_display":
        return "\n".join(filter(None, (text_of(content.get(each)) for each in ("summary", "result"))))
    if kind == "system_error":
        return ": ".join(filter(None, (text_of(content.get(each)) for each in ("name", "text"))))
    parts = content.get("parts")
    if isinstance(parts, list):
        return "\n\n".join(filter(None, map(_part_text, parts)))
    plain = next((text for each in ("text", "content", "result") if (text := text_of(content.get(each)))), "")
    return plain or read_content({name: value for name, value in content.items() if name != "content_type"}).text


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or list(_pointers(part)):
        return ""
    return text_of(part.get("text")) or read_content(part).text


def _pointers(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the ids of the files that a content or one of its parts points to."""
    parts = content.get("parts")
    for part in (content, *(parts if isinstance(parts, list) else ())):
        if isinstance(part, Mapping):
            inner = [part, *(each for each in part.values() if isinstance(each, Mapping))]
            for each in inner:
                pointer = each.get("asset_pointer")
                found = FILE_ID.search(pointer.rpartition("//")[2]) if isinstance(pointer, str) else None
                if found:
                    yield found[0]


class ChatAssets:
    """The attachments of an export by their ids."""

    def __init__(self, document: SourceDocument) -> None:
        self._document = document
        self._names: dict[str, str] = {}
        listing = None
        for name in document.bundle.names():
            base = name.rpartition("/")[2]
            found = FILE_ID.match(base)
            if found:
                self._names.setdefault(found[0], name)
            elif base == ASSET_NAMES:
                listing = name
        self._given = _listed(document.bundle, listing) if listing else {}

    def find(self, file_id: str, name: str | None, media_type: str | None) -> SourceAttachment | None:
        """Return the attachment with this id, None if the export does not contain it."""
        stored = self._names.get(file_id)
        if stored is None:
            return None
        base = stored.rpartition("/")[2]
        shown = name or self._given.get(base) or base.removeprefix(file_id).lstrip("-_") or base
        return self._document.file(stored, shown.rpartition("/")[2] or base, media_type)

    def show(self, record: JsonRecord, conversation: str, key: str) -> SourceMessage:
        """Return the message of a node."""
        message = mapping_of(record.facts.get("message"))
        content, metadata = mapping_of(message.get("content")), mapping_of(message.get("metadata"))
        author, recipient = mapping_of(message.get("author")), message.get("recipient")
        texts = [_text(content)]
        if isinstance(recipient, str) and recipient not in ("all", ""):
            texts.insert(0, f"[call of {recipient}]")
        files: dict[str, SourceAttachment] = {}
        given = metadata.get("attachments")
        named = {
            str(found[0]): each
            for each in (given if isinstance(given, list) else ())
            if isinstance(each, Mapping) and (found := FILE_ID.search(str(each.get("id"))))
        }
        for file_id in dict.fromkeys((*_pointers(content), *named)):
            facts = mapping_of(named.get(file_id))
            name, kind = text_of(facts.get("name")), text_of(facts.get("mimeType")) or text_of(facts.get("mime_type"))
            file = self.find(file_id, name, kind)
            if file is not None:
                files[file_id] = file
            texts.append(f"[file: {file.name if file else name or file_id}{'' if file else ', not in the export'}]")
        return SourceMessage(
            conversation,
            key,
            ROLES.get(str(author.get("role")), "tool"),
            "\n\n".join(each for each in texts if each.strip()),
            first_time(message.get("create_time"), message.get("update_time")),
            record.text,
            KINDS.get(str(content.get("content_type")), "message"),
            tuple(files.values()),
            record.where,
        )


def _listed(bundle: Bundle, name: str) -> dict[str, str]:
    """Return the names of attachments that an export lists."""
    try:
        found = value_of(read_file(bundle, name, MAX_ASSET_NAMES_BYTES))
    except UNREADABLE:
        return {}
    return {key: value for key, value in mapping_of(found).items() if isinstance(value, str)}
