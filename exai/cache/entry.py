"""Encode one cached conversation: its Redis keys, its header and its page of messages.

The page is one field, encoded by `exai.pages`, which scripts extend and cut without decoding it. One field instead of
one per message halves the server's work for a hit (57 us against 122 us for 50 messages). Messages added since the page
was last rewritten are in a second field, the tail. Page and tail together may hold more than the newest page, and
readers take the newest messages.

Invariant: decoding returns the encoded values, including their types; a value for which this is impossible is not
cached.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, TypeAlias, TypeGuard
from urllib.parse import quote

import orjson

from exai.cache.records import Hit
from exai.cache.redis.connection import Argument, RedisReply
from exai.encryption.codec import PLAIN, Codec, Unseen, home_of, is_unreadable
from exai.encryption.envelope import MARK_BYTES
from exai.models import PAGE_MESSAGES, Conversation, ConversationId, ConversationKey, Message, PendingTurn
from exai.pages import Undecodable, Unencodable, decode_page, encode_json, encode_page

FORMAT: Final = 2
"""Part of every key. A release with another encoding uses other keys and so never reads entries of this one."""

MICROSECOND: Final = 1_000_000

MAX_CACHED_KEYS: Final = 4_096
"""Number of conversations whose key names are cached, because building them costs more than their use."""


@dataclass(frozen=True, slots=True)
class CacheKeys:
    """The keys of one conversation. All keys of a slot group share a hash tag, and therefore a server and its clock."""

    group: int
    entry: str
    lease: str
    watermark: str


@functools.lru_cache(maxsize=MAX_CACHED_KEYS)
def cache_keys(key: ConversationKey, groups: int) -> CacheKeys:
    """Return the keys of a conversation; the same for every process and release of this format."""
    name = f"{_quoted(key.owner)}:{_quoted(key.continuation_id)}"
    group = zlib.crc32(name.encode()) % groups if groups > 1 else 0
    stem = f"exai:{FORMAT}:{{g{group}}}:"
    return CacheKeys(group, f"{stem}{name}:e", f"{stem}{name}:z", f"{stem}watermark")


def watermark_key(group: int) -> str:
    """Return the key of a group's watermark."""
    return f"exai:{FORMAT}:{{g{group}}}:watermark"


def encode_header(conversation: Conversation) -> bytes:
    """Encode the fields of a conversation that its key and revision do not contain. Raises `Unencodable`."""
    return encode_json(
        (
            conversation.id,
            conversation.title,
            dict(conversation.metadata),
            conversation.tags,
            conversation.last_seq,
            conversation.created_at,
            conversation.updated_at,
            conversation.parent_id,
            conversation.parent_seq,
            [(each.tool, each.model, each.since) for each in conversation.pending],
            conversation.expires_at,
            conversation.former_name,
            conversation.cut_from,
        )
    )


def decode_header(blob: bytes, key: ConversationKey, revision: int) -> Conversation:
    """Return the encoded conversation. Raises `Undecodable`."""
    try:
        facts = orjson.loads(blob)
        id_, title, metadata, tags, last_seq, created_at, updated_at, parent_id, parent_seq, *rest = facts
        pending, expires_at, former_name, cut_from = rest
        texts, number = [id_, *tags, *cut_from], last_seq if parent_seq is None else parent_seq
        texts += [text for text in (title, parent_id, former_name) if text is not None]
        texts += [text for tool, model, _ in pending for text in (tool, model or "")]
        since = [each for *_, each in pending]
        times = [datetime.fromisoformat(at) for at in (created_at, updated_at, expires_at or updated_at, *since)]
        is_sound = (
            {*map(type, texts)} == {str}
            and type(last_seq) is type(number) is int
            and type(metadata) is dict
            and type(tags) is list
            and None not in [at.tzinfo for at in times]
        )
        if not is_sound:
            raise Undecodable("header")
        return Conversation(
            id=ConversationId(id_),
            continuation_id=key.continuation_id,
            owner=key.owner,
            title=title,
            metadata=metadata,
            last_seq=last_seq,
            revision=revision,
            created_at=times[0],
            updated_at=times[1],
            tags=tuple(tags),
            parent_id=None if parent_id is None else ConversationId(parent_id),
            parent_seq=parent_seq,
            pending=tuple(
                PendingTurn(tool, model, at) for (tool, model, _), at in zip(pending, times[3:], strict=True)
            ),
            expires_at=None if expires_at is None else times[2],
            former_name=former_name,
            cut_from=tuple(cut_from),
        )
    except (ValueError, TypeError) as error:
        raise Undecodable("header") from error


def decode_entry(key: ConversationKey, entry: list[RedisReply], codec: Codec) -> Hit:
    """Return an entry as the scripts return it. Raises `Undecodable`."""
    match entry:
        case [
            int() as revision,
            int() as age_us,
            bytes() as older,
            bytes() as header,
            bytes() as page,
            bytes() as tail,
        ]:
            conversation = codec.opened_conversation(decode_header(header, key, revision))
            messages = decode_page(page, tail)
            if MARK_BYTES in page or MARK_BYTES in tail:
                messages = codec.opened(home_of(conversation), messages)
            if has_unreadable(conversation, messages):
                # Written with a key that this process lacks, or has lacked since; the database decides.
                raise Undecodable("encrypted")
            # Page and tail together may hold more than the newest page. The surplus messages are older ones.
            complete = older == b"0" and len(messages) <= PAGE_MESSAGES
            return Hit(conversation, messages[-PAGE_MESSAGES:], complete, max(age_us, 0) / MICROSECOND)
        case _:
            raise Undecodable("entry")


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin of a page: generation and time of the READ that granted its lease, and the server epoch."""

    generation: bytes
    asof_us: int
    server_epoch: str


def encode_entry(
    conversation: Conversation,
    messages: tuple[Message, ...],
    complete: bool,
    origin: Origin,
    max_bytes: int,
    *,
    page: bytes | None = None,
    codec: Codec = PLAIN,
) -> tuple[Argument, ...] | None:
    """Return the field names and values of a complete entry, None if it is too large or cannot be encoded.

    `page` holds the messages in encoded form if they are available in it.
    """
    if len(messages) > PAGE_MESSAGES:
        messages, complete, page = messages[-PAGE_MESSAGES:], False, None
    try:
        header, page = encode_change(conversation, messages, codec, page=page)
    except Unencodable:
        return None
    if len(header) + len(page) > max_bytes:
        return None
    return (
        *("rev", conversation.revision, "gen", origin.generation, "asof", origin.asof_us, "epoch", origin.server_epoch),
        *("id", conversation.id, "older", int(not complete), "count", len(messages), "header", header),
        *("tail", b"", "page", page),
    )


def encode_change(
    conversation: Conversation, messages: tuple[Message, ...], codec: Codec, *, page: bytes | None = None
) -> tuple[bytes, bytes]:
    """Return a header and messages as an entry holds them; `page` are the messages if they are encoded.

    Raises `Unencodable`, also for what could not be decrypted.
    """
    if has_unreadable(conversation, messages):
        raise Unencodable("encrypted")
    header = encode_header(codec.cached_header(conversation))
    return header, encode_page(codec.cached(conversation, messages)) if page is None else page


def has_unreadable(conversation: Conversation, messages: tuple[Message, ...]) -> bool:
    """Return whether something could not be decrypted."""
    return isinstance(conversation.metadata, Unseen) or any(map(is_unreadable, messages))


Shown: TypeAlias = tuple[Conversation, tuple[Message, ...]]


def same_page(one: Shown, other: Shown) -> bool:
    """Return whether two pages of a revision are equal in the messages that both contain."""
    shared = min(len(one[1]), len(other[1]))
    tails = one[1][len(one[1]) - shared :], other[1][len(other[1]) - shared :]
    return (
        # A turn may have begun or ended between the two reads.
        replace(one[0], metadata={}, pending=()) == replace(other[0], metadata={}, pending=())
        and same_json(one[0].metadata, other[0].metadata)
        and all(
            ours[:6] == theirs[:6] and same_json(ours[6], theirs[6]) and ours[7:] == theirs[7:]
            for ours, theirs in zip(*tails, strict=True)
        )
    )


def same_json(one: object, other: object) -> bool:
    """Return whether two values are the same JSON; the database writes large floats, such as 1e16, as integers."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_json(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same_json(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, float) != isinstance(other, float) and _is_number(one) and _is_number(other):
        return float(one) == float(other)
    return type(one) is type(other) and one == other


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _quoted(name: str) -> str:
    return quote(name, safe="", errors="surrogatepass")
