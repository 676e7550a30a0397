"""Encrypts what is stored and decrypts what is read: the one place between rows, or cached pages, and their meaning.

Invariant: what cannot be decrypted is never shown as if it were content. A message becomes one of kind `unreadable`,
whose text names the field, the reason and the cure, so that it does not hide the others; code that builds on its
content calls `require_readable` first.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import orjson

from exai.encryption.envelope import (
    AMBIGUOUS,
    ESCAPE,
    MARK,
    MARKS,
    MEMBER,
    PLACE_BYTES,
    SECRET_BYTES,
    UNPLACED,
    Sealed,
    encode,
    escaped,
    is_sealed_object,
    parse,
    placed,
    write,
)
from exai.encryption.keyring import NONCE_BYTES, SETTING, Keyring
from exai.encryption.reasons import CHANGED, CUT, MOVED, missing
from exai.encryption.words import HashedWords
from exai.errors import ContentUnreadable, InvalidArgument
from exai.models import Conversation, Message, NewMessage

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

UNREADABLE: Final = "unreadable"
"""Kind of a message that could not be decrypted."""

_LENGTH_BYTES: Final = 4
_NO_MESSAGE: Final = "no message"


Names: TypeAlias = tuple[str, ...]


class Unseen(dict[str, Any]):
    """Metadata in place of those that could not be decrypted, with the others; `why` is the reason."""

    def __init__(self, why: ContentUnreadable, others: Mapping[str, Any] | None = None) -> None:
        super().__init__({**(others or {}), UNREADABLE: why.details()})
        self.why = why


class Home(NamedTuple):
    """The conversation in which messages are read; those up to `shared_to` may belong to its ancestors.

    `others` are conversations from which its own messages may have been moved.
    """

    owner: str
    conversation_id: str
    shared_to: int = 0
    others: Sequence[str] = ()


def home_of(conversation: Conversation) -> Home:
    """Return the home of a conversation's messages."""
    return Home(conversation.owner, conversation.id, conversation.parent_seq or 0, conversation.cut_from)


class Codec:
    """Stores everything as it is; of what was encrypted it says which key is missing."""

    is_on: bool = False
    """Whether what is stored from now on is encrypted."""

    words: HashedWords | None = None
    """Hashes the words of encrypted messages; None if none are encrypted, or none may be found."""

    @property
    def beginning(self) -> str | None:
        """Return how each text begins that is stored from now on, None if it is not encrypted."""
        return None

    def columns(self, owner: str, messages: Sequence[NewMessage]) -> tuple[list[str], list[str | None]]:
        """Return the contents and the metadata of messages as statements take them."""
        del owner
        return (
            [escaped(message.content) for message in messages],
            [orjson.dumps(message.metadata).decode() if message.metadata else None for message in messages],
        )

    def opened(self, home: Home, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Return stored messages as they were given."""
        return tuple(
            [
                self._meant(home, message) if message[2] is not None and message[2].startswith(MARKS) else message
                for message in messages
            ]
        )

    def cached(self, conversation: Conversation, messages: Sequence[Message]) -> Sequence[Message]:
        """Return messages of a conversation in the form in which a cached page holds them."""
        del conversation
        if not any(each.content.startswith(AMBIGUOUS) for each in messages):
            return messages
        return [each._replace(content=escaped(each.content)) for each in messages]

    def cached_header(self, conversation: Conversation) -> Conversation:
        """Return a conversation in the form in which the cache holds it."""
        title = conversation.title
        if title is None or not title.startswith(AMBIGUOUS):
            return conversation
        return replace(conversation, title=escaped(title))

    def title(self, owner: str, name: str, title: str | None) -> str | None:
        """Return the stored form of the title of the conversation `name`."""
        del owner, name
        return title if title is None else escaped(title)

    def document(self, owner: str, name: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the stored form of a JSON object that belongs to `name`."""
        del owner, name
        return document

    def opened_title(self, owner: str, names: Names | None, title: str | None, field: str = "title") -> str | None:
        """Return a title of a conversation with one of these names.

        None stands for one that is or was a fork, was renamed, or was cut from another: it may have another's title.

        Raises `ContentUnreadable`.
        """
        if title is None or not title.startswith(MARKS):
            return title
        if title.startswith(ESCAPE):
            return title.removeprefix(ESCAPE)
        return self._text(owner, names, field, title).decode()

    def opened_document(self, owner: str, names: Names | None, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a JSON object as it was given; members added since are kept."""
        if not is_sealed_object(document):
            return document
        others = {key: value for key, value in document.items() if key != MEMBER}
        try:
            inner: dict[str, Any] = orjson.loads(self._text(owner, names, "metadata", document[MEMBER]))
        except ContentUnreadable as error:
            return Unseen(error, others)
        return others | inner

    def opened_conversation(self, conversation: Conversation) -> Conversation:
        """Return a conversation with its title and metadata as they were given."""
        title, metadata = conversation.title, conversation.metadata
        if (title is None or not title.startswith(MARKS)) and MEMBER not in metadata:
            return conversation
        is_own = conversation.parent_id is None and conversation.former_name is None
        names = (conversation.continuation_id,) if is_own else None
        facts = self.opened_document(conversation.owner, names, metadata)
        try:
            title = self.opened_title(conversation.owner, names, title)
        except ContentUnreadable as error:
            title, facts = f"[{error}]", Unseen(error, facts)
        return replace(conversation, title=title, metadata=facts)

    def text(self, owner: str, name: str, field: str, text: str) -> str:
        """Return the stored form of a text, the `field` of `name`."""
        del owner, name, field
        return text

    def opened_text(self, owner: str, name: str, field: str, text: str) -> str:
        """Return a text as it was given. Raises `ContentUnreadable`."""
        return self._text(owner, (name,), field, text).decode() if text.startswith(MARK) else text

    def entry(self, owner: str, name: str, data: bytes) -> bytes:
        """Return the form in which the cache holds `data` under a name."""
        del owner, name
        return data

    def opened_entry(self, owner: str, name: str, data: bytes) -> bytes | None:
        """Return the data of an entry of the cache, None if it cannot be decrypted."""
        del owner, name
        return None if data.startswith(MARK.encode()) else data

    def blind(self, owner: str, digest: str) -> str:
        """Return what is stored in place of the digest of a content."""
        del owner
        return digest

    def stored_bytes(self, size_bytes: int) -> int:
        """Return the largest size in which contents of together `size_bytes` are stored."""
        return size_bytes

    def check_filter(self, field: str, *, is_given: bool) -> None:
        """Raise `InvalidArgument` for a filter by a field that is encrypted."""

    def _meant(self, home: Home, message: Message) -> Message:
        if message.content.startswith(ESCAPE):
            return message._replace(content=message.content.removeprefix(ESCAPE))
        return self._opened(home, message)

    def _opened(self, home: Home, message: Message) -> Message:
        return _unreadable(message, home, missing(message[2].split("$")[2]))

    def _text(self, owner: str, names: Names | None, field: str, text: str) -> bytes:
        del owner, names
        raise ContentUnreadable(field, *missing(text.split("$")[2]))


PLAIN: Final = Codec()


class KeyedCodec(Codec):
    """Encrypts with one key and decrypts with all; without a key to encrypt it only decrypts."""

    def __init__(self, keyring: Keyring, newest: str | None, *, hashes_words: bool = True) -> None:
        self.keyring, self._newest = keyring, newest
        self.is_on = newest is not None
        self.words = HashedWords(keyring) if hashes_words else None

    @property
    def beginning(self) -> str | None:
        """Return how each text begins that is encrypted from now on."""
        return None if self._newest is None else f"{MARK}{self._newest}$"

    def columns(self, owner: str, messages: Sequence[NewMessage]) -> tuple[list[str], list[str | None]]:
        """Return the contents of messages, which include their metadata, for `exai.place_v1`."""
        if self._newest is None:
            return super().columns(owner, messages)
        contents = []
        for message in messages:
            secret, body = self._message(owner, message.role, message.kind, message.content, message.metadata)
            contents.append(UNPLACED + write(self._newest, body, encode(secret)))
        return contents, [None] * len(contents)

    def cached(self, conversation: Conversation, messages: Sequence[Message]) -> Sequence[Message]:
        """Return messages encrypted and placed."""
        if self._newest is None:
            return super().cached(conversation, messages)
        sealed = []
        for each in messages:
            secret, body = self._message(conversation.owner, each.role, each.kind, each.content, each.metadata)
            text = write(self._newest, body, conversation.id, placed(secret, conversation.id, each.seq))
            sealed.append(each._replace(content=text, metadata={}))
        return sealed

    def cached_header(self, conversation: Conversation) -> Conversation:
        """Return a conversation with title and metadata encrypted."""
        owner, name = conversation.owner, conversation.continuation_id
        title, metadata = self.title(owner, name, conversation.title), conversation.metadata
        return replace(conversation, title=title, metadata=self.document(owner, name, metadata))

    def title(self, owner: str, name: str, title: str | None) -> str | None:
        """Return the title encrypted, an equal one of the same conversation to an equal text."""
        if title is None or self._newest is None:
            return super().title(owner, name, title)
        return self.text(owner, name, "title", title)

    def document(self, owner: str, name: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return an object with one member, the others encrypted; an empty one as it is."""
        if self._newest is None or not document:
            return document
        text = orjson.dumps(document, option=orjson.OPT_SORT_KEYS).decode()
        return {MEMBER: self.text(owner, name, "metadata", text)}

    def text(self, owner: str, name: str, field: str, text: str) -> str:
        """Return a text encrypted, an equal one of the same name to an equal text, so that no change is found."""
        if self._newest is None:
            return text
        bound, data = self.place_of(owner, name), text.encode()
        aad = _aad(field, owner, bound)
        nonce = self.keyring.hashed(owner, f"nonce {self._newest}", aad + b"\0" + data)[:NONCE_BYTES]
        return write(self._newest, nonce + self._cipher(self._newest, owner).encrypt(nonce, data, aad), bound)

    def entry(self, owner: str, name: str, data: bytes) -> bytes:
        """Return `data` encrypted."""
        return data if self._newest is None else self.text(owner, name, "entry", data.decode()).encode()

    def opened_entry(self, owner: str, name: str, data: bytes) -> bytes | None:
        """Return the data of an entry, None if it cannot be decrypted."""
        try:
            return self.opened_text(owner, name, "entry", data.decode()).encode()
        except (ContentUnreadable, ValueError):
            return None

    def blind(self, owner: str, digest: str) -> str:
        """Return a keyed hash of a digest, by which no content can be guessed."""
        return self.keyring.hashed(owner, "digest", digest.encode()).hex() if self.is_on else digest

    def stored_bytes(self, size_bytes: int) -> int:
        """Return half as much again: base64, and what is added to each message."""
        return size_bytes * 3 // 2 if self.is_on else size_bytes

    def check_filter(self, field: str, *, is_given: bool) -> None:
        """Refuse a filter by what the database cannot read."""
        if is_given and self.is_on:
            raise InvalidArgument(field, f"cannot be searched, because it is encrypted ({SETTING})", "Use tags")

    def _message(
        self, owner: str, role: str, kind: str, content: str, metadata: Mapping[str, Any]
    ) -> tuple[bytes, bytes]:
        """Return the secret of a message and its encrypted form."""
        if self._newest is None:
            raise AssertionError("there is no key to encrypt with")
        entropy = os.urandom(NONCE_BYTES + SECRET_BYTES)
        nonce, secret = entropy[:NONCE_BYTES], entropy[NONCE_BYTES:]
        facts = orjson.dumps(metadata) if metadata else b""
        data = b"".join((secret, len(facts).to_bytes(_LENGTH_BYTES, "big"), facts, content.encode()))
        return secret, nonce + self._cipher(self._newest, owner).encrypt(
            nonce, data, _aad("message", owner, role, kind)
        )

    def _opened(self, home: Home, message: Message) -> Message:
        sealed = parse(message.content)
        if sealed is None or len(sealed.bound) != 2:
            return _unreadable(message, home, CUT)
        try:
            data = self._decrypted(home.owner, sealed, "content", "message", message.role, message.kind)
        except ContentUnreadable as error:
            return _unreadable(message, home, (error.reason, error.cure))
        secret, (conversation_id, place) = data[:SECRET_BYTES], sealed.bound
        is_here = message.seq <= home.shared_to or conversation_id in (home.conversation_id, *home.others)
        if not is_here or not _is_placed(secret, conversation_id, message.seq, place):
            return _unreadable(message, home, MOVED)
        start = SECRET_BYTES + _LENGTH_BYTES
        end = start + int.from_bytes(data[SECRET_BYTES:start], "big")
        facts = orjson.loads(data[start:end]) if end > start else {}
        return message._replace(content=data[end:].decode(), metadata=facts)

    def _text(self, owner: str, names: Names | None, field: str, text: str) -> bytes:
        sealed = parse(text)
        if sealed is None or len(sealed.bound) != 1:
            raise ContentUnreadable(field, *CUT)
        [bound] = sealed.bound
        if names is not None and bound not in [self.place_of(owner, name) for name in names]:
            raise ContentUnreadable(field, *MOVED)
        return self._decrypted(owner, sealed, field, field, bound)

    def _decrypted(self, owner: str, sealed: Sealed, field: str, *bound: str) -> bytes:
        from cryptography.exceptions import InvalidTag

        cipher = self.keyring.cipher(sealed.key, owner)
        if cipher is None:
            raise ContentUnreadable(field, *missing(sealed.key))
        kind, *rest = bound
        try:
            return cipher.decrypt(sealed.body[:NONCE_BYTES], sealed.body[NONCE_BYTES:], _aad(kind, owner, *rest))
        except (InvalidTag, ValueError):
            raise ContentUnreadable(field, *CHANGED) from None

    def _cipher(self, name: str, owner: str) -> AESGCM:
        cipher = self.keyring.cipher(name, owner)
        if cipher is None:
            raise AssertionError("the newest key is in the keyring")
        return cipher

    @staticmethod
    def place_of(owner: str, name: str) -> str:
        """Return what a text of `name` is bound to."""
        return encode(hashlib.sha256(_aad("name", owner, name)).digest()[:PLACE_BYTES])


def is_unreadable(message: Message) -> bool:
    """Return whether a message stands in the place of one that could not be decrypted."""
    return type(message.metadata) is Unseen


def require_readable(messages: Sequence[Message]) -> None:
    """Raise `ContentUnreadable` for the first message that could not be decrypted."""
    for message in messages:
        if isinstance(message.metadata, Unseen):
            raise message.metadata.why


def _unreadable(message: Message, home: Home, why: tuple[str, str]) -> Message:
    error = ContentUnreadable(
        "content", *why, where=f"message {message.seq} of the conversation {home.conversation_id}"
    )
    return message._replace(content=f"[{error}]", kind=UNREADABLE, metadata=Unseen(error))


def _is_placed(secret: bytes, conversation_id: str, seq: int, place: str) -> bool:
    try:
        return hmac.compare_digest(placed(secret, conversation_id, seq).encode(), place.encode())
    except (ValueError, OverflowError):
        return False


def _aad(field: str, owner: str, *rest: str) -> bytes:
    return "\0".join((field, owner, *rest)).encode("utf-8", "surrogatepass")
