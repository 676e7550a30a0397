"""Validate the values that callers give, before any I/O.

Each rule has one function and one wording, used by the services for every entrance: programs, MCP tools, the command
line and imports. Limits that an operator may set are those of `LimitSettings`; the others are named here.

Every function raises `InvalidArgument`, which names the field and the cure.

Invariant: Postgres stores every value that passes, and returns it unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Final, TypeGuard, get_args
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import orjson

from exai.encryption.envelope import MEMBER, is_sealed_object
from exai.errors import InvalidArgument, shown
from exai.items import UNSTORABLE
from exai.models import MAX_OWNER_CHARS, FileId, NewMessage, Owner, Role
from exai.settings.load import LimitSettings

MAX_KEY_CHARS: Final = 200
MAX_TITLE_CHARS: Final = 500
MAX_MESSAGE_KEY_CHARS: Final = 500
MAX_ALSO: Final = 8
"""Maximum number of other conversations whose metadata an append patches."""

MAX_KEYS: Final = 500
"""Maximum number of keys by which messages are found at once."""

MAX_CONTINUATION_CHARS: Final = 500
MAX_KIND_CHARS: Final = 100
"""Also of the name of a tool."""

MAX_MODEL_CHARS: Final = 1_000
MAX_CURSOR_CHARS: Final = 1_000
MAX_TAGS: Final = 64
MAX_TAG_CHARS: Final = 200
MAX_LIST: Final = 200
"""Maximum number of items in a page of any list."""

MAX_NUMBER: Final = 2**63 - 1
"""Maximum of Postgres's bigint, the type of sequence numbers and revisions."""

ROLES: Final = get_args(Role)
ZONE_NAME: Final = re.compile(r"[A-Za-z][\w+-]*(?:/[\w+-]+){0,2}", re.ASCII)
ESCAPED_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def check_text(field: str, value: object, limit_bytes: int) -> int:
    """Check a text of any length up to a limit, and return its size in bytes of UTF-8."""
    if not isinstance(value, str):
        raise InvalidArgument(field, f"is {_kind(value)}, not text", "Give a text")
    if "\0" in value:
        raise InvalidArgument(field, "holds a NUL character, which Postgres cannot store", "Remove U+0000")
    size_bytes = len(value) if value.isascii() else len(utf8_of(field, value))
    if size_bytes > limit_bytes:
        raise InvalidArgument(field, f"is {size_bytes:,} bytes; the limit is {limit_bytes:,}", "Split or shorten it")
    return size_bytes


def utf8_of(field: str, text: str) -> bytes:
    """Return a text in UTF-8, which has no form for half of a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        problem = f"holds a lone surrogate at character {error.start}"
        raise InvalidArgument(field, problem, "Send valid Unicode text") from None


def check_name(field: str, value: object, limit_chars: int) -> None:
    """Check a short text that must not be empty: a key, an id, a title, a tag."""
    if type(value) is str and 0 < len(value) <= limit_chars and value.isascii() and "\0" not in value:
        return  # nearly always: every request names an owner and a conversation
    check_text(field, value, MAX_NUMBER)
    if not value:
        raise InvalidArgument(field, "is empty", "Leave it out or give it a value")
    chars = len(str(value))
    if chars > limit_chars:
        raise InvalidArgument(field, f"has {chars:,} characters; the limit is {limit_chars:,}", "Shorten it")


def check_optional_name(field: str, value: object, limit_chars: int) -> None:
    """Check a short text that may be absent, but not empty."""
    if value is not None:
        check_name(field, value, limit_chars)


def check_not_blank(field: str, value: object, cure: str) -> None:
    """Check that a text is not blank."""
    check_text(field, value, MAX_NUMBER)
    if not str(value).strip():
        raise InvalidArgument(field, "is empty", cure)


def check_owner(owner: Owner) -> None:
    """Check the owner of a request."""
    check_name("owner", owner, MAX_OWNER_CHARS)


def check_conversation(owner: Owner, continuation_id: str) -> None:
    """Check the name of an existing conversation and its owner."""
    check_owner(owner)
    check_name("continuation_id", continuation_id, MAX_CONTINUATION_CHARS)


def check_change(owner: Owner, continuation_id: str, expected_revision: object, key: object) -> None:
    """Check what every change of an existing conversation names."""
    check_conversation(owner, continuation_id)
    check_optional_number("expected_revision", expected_revision)
    check_optional_name("idempotency_key", key, MAX_KEY_CHARS)


def check_number(field: str, value: object, least: int = 0, most: int = MAX_NUMBER) -> None:
    """Check a whole number, such as a sequence number, a revision, an offset or a limit."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument(field, f"is {_kind(value)}, not a whole number", f"Use {least} to {most}")
    if not least <= value <= most:
        raise InvalidArgument(field, f"is {shown(value)}", f"Use {least} to {most}")


def check_optional_number(field: str, value: object, least: int = 0, most: int = MAX_NUMBER) -> None:
    """Check a whole number that may be absent."""
    if value is not None:
        check_number(field, value, least, most)


def check_revision_of(continuation_id: str | None, expected_revision: object) -> None:
    """Check an expected revision: a whole number that may be absent, and 0 at most for a new conversation."""
    check_optional_number("expected_revision", expected_revision)
    if expected_revision and continuation_id is None:
        cure = "Give the continuation_id of the conversation that has this revision, or leave expected_revision out"
        raise InvalidArgument("expected_revision", f"is {expected_revision} without a continuation_id", cure)


def check_duration(field: str, value: object, most: float) -> None:
    """Check a length of time, of any unit, that is above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise InvalidArgument(field, f"is {shown(value)}", f"Use more than 0, and at most {most:g}")


def check_page(limit: object, cursor: object, most: int = MAX_LIST) -> None:
    """Check the size of a page of a list, and the cursor of the page before; an empty cursor is none."""
    check_number("limit", limit, 1, most)
    if cursor is not None:
        check_text("cursor", cursor, MAX_CURSOR_CHARS)


def check_flag(field: str, value: object) -> None:
    """Check a truth value."""
    if not isinstance(value, bool):
        raise InvalidArgument(field, f"is {_kind(value)}, neither true nor false", "Give true or false")


def check_choice(field: str, value: object, choices: Sequence[str]) -> None:
    """Check a value of a closed set."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidArgument(field, f"is {shown(value)}", f"Use one of {', '.join(choices)}")


def check_time(field: str, value: object) -> None:
    """Check an optional time: one with a time zone that can be compared with stored times."""
    if value is None:
        return
    cure = "Write it with an offset, like 2026-01-02T03:04:05Z"
    if not isinstance(value, datetime):
        raise InvalidArgument(field, f"is {_kind(value)}, not a time", cure)
    if value.tzinfo is None:
        raise InvalidArgument(field, "has no time zone", cure)
    try:
        value.astimezone(UTC)
    except OverflowError:
        raise InvalidArgument(field, "is outside the years 1 to 9999 in UTC", cure) from None


def read_time(field: str, text: object) -> datetime:
    """Return a time from its ISO 8601 form, with a time zone."""
    try:
        time = datetime.fromisoformat(text.strip()) if isinstance(text, str) else None
    except ValueError:
        time = None
    if time is None:
        raise InvalidArgument(field, f"is {shown(text)}, not a time", "Write it like 2026-01-02T03:04:05Z")
    check_time(field, time)
    return time


def check_zone(field: str, value: object) -> None:
    """Check the name of a time zone in the IANA database."""
    cure = "Give a name such as Europe/Berlin or UTC"
    if not isinstance(value, str) or not ZONE_NAME.fullmatch(value):
        raise InvalidArgument(field, f"is {shown(value)}, not the name of a time zone", cure)
    if value != "UTC":
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise InvalidArgument(field, f"is {shown(value)}, which this machine does not know", cure) from None


def check_list(field: str, value: object, limit: int, cure: str = "Give fewer") -> None:
    """Check that a value is a list of at most `limit` items; a text is none."""
    if isinstance(value, str | bytes | bytearray) or not isinstance(value, Sequence):
        raise InvalidArgument(field, f"is {_kind(value)}, not a list", "Give a list")
    if len(value) > limit:
        raise InvalidArgument(field, f"has {len(value):,} items; the limit is {limit:,}", cure)


def check_items(field: str, value: object, kind: type) -> None:
    """Check a list of values of a class."""
    check_list(field, value, MAX_NUMBER)
    for position, item in enumerate(value if isinstance(value, Sequence) else ()):
        if not isinstance(item, kind):
            raise InvalidArgument(f"{field}[{position}]", f"is {_kind(item)}", f"Give a {kind.__name__}")


def check_json(field: str, value: object, limit_bytes: int) -> bytes:
    """Check a JSON object that is stored as jsonb, and return it as JSON with sorted keys.

    orjson refuses surrogates, integers over 64 bits and more than 254 levels.
    """
    if not isinstance(value, dict):
        raise InvalidArgument(field, f"is {_kind(value)}, not an object", "Give an object of plain JSON values")
    if not value:
        return b"{}"
    if is_sealed_object(value):
        raise InvalidArgument(field, f"has the member {MEMBER} of encrypted objects", "Rename or remove it")
    try:
        encoded = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        _check_plain(value)
    except TypeError as error:
        raise InvalidArgument(field, f"cannot be stored as JSON: {error}", "Use plain JSON values") from None
    if ESCAPED_NUL.search(encoded):
        raise InvalidArgument(field, "holds a NUL character, which Postgres cannot store", "Remove U+0000")
    if len(encoded) > limit_bytes:
        raise InvalidArgument(field, f"is {len(encoded):,} bytes; the limit is {limit_bytes:,}", "Shorten it")
    return encoded


def _check_plain(value: object) -> None:
    """Raise `TypeError` for a value that orjson writes, but as another one: NaN as null, times and UUIDs as texts.

    The recursion is bounded, because orjson has refused deeper values.
    """
    if isinstance(value, dict):
        for item in value.values():
            _check_plain(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item)
    elif isinstance(value, float):
        if not isfinite(value):
            raise TypeError(f"{value} is not a JSON number")
    elif value is not None and not isinstance(value, str | int):
        raise TypeError(f"{type(value).__name__} is not a JSON type")


def check_tags(tags: Sequence[str], field: str = "tags") -> None:
    """Check the tags of a conversation, or those that a list is narrowed by."""
    check_list(field, tags, MAX_TAGS)
    for position, tag in enumerate(tags):
        check_name(f"{field}[{position}]", tag, MAX_TAG_CHARS)
        check_not_blank(f"{field}[{position}]", tag, "Leave it out or give it a value")


def check_message(field: str, message: object, limits: LimitSettings, separator: str = ".") -> int:
    """Check one message to store, and return its size in bytes. Its fields are named after `field`."""
    if not isinstance(message, NewMessage):
        raise InvalidArgument(field, f"is {_kind(message)}, not a message", "Give a NewMessage")
    check_choice(f"{field}{separator}role", message.role, ROLES)
    check_name(f"{field}{separator}kind", message.kind, MAX_KIND_CHARS)
    check_json(f"{field}{separator}metadata", message.metadata, limits.metadata_bytes)
    check_optional_name(f"{field}{separator}key", message.key, MAX_MESSAGE_KEY_CHARS)
    check_time(f"{field}{separator}created_at", message.created_at)
    size_bytes = check_text(f"{field}{separator}content", message.content, limits.message_bytes)
    return size_bytes if message.item is None else size_bytes + check_item(f"{field}{separator}item", message.item)


def check_item(field: str, item: object) -> int:
    """Check the text of an item without what was taken out of it, and return its size in bytes."""
    if isinstance(item, str) and UNSTORABLE.search(item):
        raise InvalidArgument(field, "holds a NUL character or a lone surrogate", "Write it with exai.items.dump_item")
    return check_text(field, item, MAX_NUMBER)


def check_messages(messages: Sequence[NewMessage], limits: LimitSettings, least: int = 1) -> None:
    """Check a whole append: the number of messages, each message, and their total size."""
    check_list("messages", messages, limits.append_messages, "Send it as several appends")
    if len(messages) < least:
        raise InvalidArgument("messages", "is empty", "Send at least one message")
    total_bytes = sum(check_message(f"messages[{place}]", message, limits) for place, message in enumerate(messages))
    if total_bytes > limits.append_bytes:
        problem = f"are {total_bytes:,} bytes together; the limit is {limits.append_bytes:,}"
        raise InvalidArgument("messages", problem, "Send them as several appends")


def check_keys(keys: Sequence[str]) -> None:
    """Check the keys of messages."""
    check_list("keys", keys, MAX_KEYS, "Ask for fewer at once")
    for place, key in enumerate(keys):
        check_name(f"keys[{place}]", key, MAX_MESSAGE_KEY_CHARS)


def check_file_ids(file_ids: Sequence[FileId], limits: LimitSettings, field: str = "files") -> None:
    """Check the ids of files in the form in which they are stored."""
    check_list(field, file_ids, limits.append_files, "Give them with several messages")
    for position, file_id in enumerate(file_ids):
        if not is_file_id(file_id):
            raise _no_file_id(f"{field}[{position}]")


def file_id_of(field: str, value: object) -> FileId:
    """Return the id of a file in the form in which it is stored, from any spelling of a UUID."""
    if not isinstance(value, str) or not is_uuid(value):
        raise _no_file_id(field)
    return FileId(str(UUID(value)))


def is_file_id(value: object) -> TypeGuard[FileId]:
    """Return whether a value can be the id of a stored file."""
    return is_canonical_uuid(value)


def is_canonical_uuid(value: object) -> bool:
    """Return whether a value is a UUID in the form in which Postgres writes it; no other text names a row."""
    return isinstance(value, str) and is_uuid(value) and str(UUID(value)) == value


def is_uuid(text: str) -> bool:
    """Return whether a text is a UUID in any spelling."""
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def check_offset(field: str, offset: int, size: int) -> None:
    """Check the place in a text of `size` characters from which it is read on."""
    if offset > size or (offset == size and offset > 0):
        raise InvalidArgument(field, f"is {offset}, the text has {size} characters", "Use the one that was given")


def _no_file_id(field: str) -> InvalidArgument:
    return InvalidArgument(field, "is not a file's id", "Use the id that file_put returned")


def _kind(value: object) -> str:
    """Return what a value of the wrong type is, in JSON's terms where it has one."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    names = {int: "a number", float: "a number", str: "text", bytes: "bytes", dict: "an object", list: "a list"}
    return names.get(type(value), f"a {type(value).__name__}")
