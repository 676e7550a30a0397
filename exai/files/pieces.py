"""Find large content in a text, take it out, and put it back. No I/O.

Large content is a base64 image or a `data:` URL of `LEAST_BYTES` and more, or the rest of a text beyond the limit of a
message. A reference takes its place, and the metadata of the message says where, so that no text of a caller can be
mistaken for one. The text is that of a message or of its item.

Invariant: what is put back is the text that was taken out, to the last character. A piece whose bytes cannot be written
again as the text that they were is kept as that text.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Final, NamedTuple, TypeAlias

from exai.blobs.base import digest
from exai.files.images import begins_image, image_type
from exai.files.names import DEFAULT_MEDIA_TYPE
from exai.items import ITEM, TAKEN_FROM_ITEM
from exai.models import FILE_IDS, FileId, Message, NewMessage, Owner
from exai.token_estimate import text_tokens
from exai.validation import is_uuid

TAKEN_OUT: Final = "exai_taken_out"
"""The field of a message's metadata that says what was taken out of its content, and where."""

LEAST_BYTES: Final = 32_000
KEPT_CHARS: Final = 8_000
"""The beginning of a text beyond the limit that stays in the message."""

SPACE: Final = uuid.UUID("6f1f1a53-5f0e-4f63-9a4e-0c6e4f3f2d10")
TEXT_TYPE: Final = "text/plain"
DIGEST_CHARS: Final = 12
MAX_LINE_CHARS: Final = 1_000
"""A longer run of base64 is not one line of several."""

MAX_PREFIX_CHARS: Final = 2_000
"""More than a `data:` URL that is taken out has before its bytes."""

MAX_WHOLE_CHARS: Final = 268_435_456
"""No message is longer as a whole: other clients may write references to one file many times."""

START: Final = re.compile(
    r"data:(?P<type>[\w.+-]{1,100}/[\w.+-]{1,100})?(?:;[^,;\s]{0,100}){0,8},\s?"
    r"|(?<![A-Za-z0-9+/_-])"
    r"(?:iVBORw0KGg|\\?/9j\\?/|R0lGOD|UklGR|SUkqA|TU0AK|AAAA[\w+/][GWm2]Z0eX|PHN2Z|PD94bW)",
    re.ASCII,
)
RUN: Final = re.compile(r"[A-Za-z0-9+/_-]*(?:\\/[A-Za-z0-9+/_-]*)*")
URL_REST: Final = re.compile(r"[^\s\"'<>()\[\]`]*")
LINE_END: Final = re.compile(r"\r\n|\n|\\r\\n|\\n")
LINE_ENDS: Final = ("\r\n", "\n", "\\r\\n", "\\n")
PADDING: Final = re.compile(r"={0,2}")


StoredAs: TypeAlias = Callable[[bytes], bytes]


class Keeper(NamedTuple):
    """The owner of pieces, and the form in which a content is stored, whose digest names it."""

    owner: Owner
    stored: StoredAs


@dataclass(frozen=True, slots=True)
class Piece:
    """Large content of a message as a file. `form` says how its bytes are written in the text."""

    id: FileId
    name: str
    media_type: str
    data: bytes
    sha256: str
    form: Mapping[str, Any]

    @property
    def reference(self) -> str:
        """Return what stands in the message instead."""
        kind = f'type="{escape(self.media_type)}" size="{len(self.data)}" sha256="{self.sha256}"'
        return f'<content name="{escape(self.name)}" {kind} id="{self.id}"/>'


@dataclass(frozen=True, slots=True)
class Taken:
    """A text without its large content. `places` are those of the references, with their lengths, in characters."""

    content: str
    places: tuple[tuple[int, int], ...]
    pieces: tuple[Piece, ...]

    @property
    def text_tokens(self) -> int:
        """Return about how many tokens the texts among the pieces have."""
        return sum(text_tokens(piece.data.decode()) for piece in self.pieces if not piece.form)

    @property
    def file_ids(self) -> tuple[FileId, ...]:
        """Return the ids of the pieces, each once."""
        return tuple(dict.fromkeys(piece.id for piece in self.pieces))

    @property
    def whole(self) -> str:
        """Return the text as it was given."""
        return _joined(self.content, self.facts, {piece.id: piece.data for piece in self.pieces}) or self.content

    @property
    def facts(self) -> dict[str, Any]:
        """Return what metadata says about the pieces."""
        return {
            "pieces": [
                {"at": at, "chars": chars, "id": piece.id, **({"form": dict(piece.form)} if piece.form else {})}
                for (at, chars), piece in zip(self.places, self.pieces, strict=True)
            ]
        }

    def applied(self, message: NewMessage) -> NewMessage:
        """Return a message with this content, whose metadata names the pieces among its files."""
        facts = self.facts
        metadata = {**message.metadata}
        given = metadata.get(FILE_IDS, [])
        if isinstance(given, list):
            if FILE_IDS in metadata:
                facts[FILE_IDS] = given
            metadata[FILE_IDS] = list(dict.fromkeys((*given, *self.file_ids))) if _are_texts(given) else given
        return replace(message, content=self.content, metadata={**metadata, TAKEN_OUT: facts})


def take_out(owner: Owner, text: object, limit_bytes: int, file_bytes: int, stored: StoredAs = bytes) -> Taken | None:
    """Return a text without its large content, or None if it has none. No piece is larger than `file_bytes`.

    `stored` returns the form in which a content is stored, whose digest names the piece.

    A text that cannot be stored at all (`exai.validation` says why) is left as it is.
    """
    if not isinstance(text, str) or len(text) < LEAST_BYTES or "\0" in text:
        return None
    try:
        size_bytes = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        return None
    keeper = Keeper(owner, stored)
    found = [(begin, end, piece) for begin, end, piece in _pieces(keeper, text) if len(piece.data) <= file_bytes]
    taken = _without(text, found)
    if size_bytes > limit_bytes and (taken is None or len(taken.content.encode()) > limit_bytes):
        # The limit may be smaller than the beginning that is usually kept.
        kept = min(KEPT_CHARS, limit_bytes // 8)
        rest = text[kept:].encode()
        piece = _piece(keeper, rest, TEXT_TYPE, {})
        taken = _without(text, [(kept, len(text), piece)]) if len(rest) <= file_bytes else None
    return taken


def pieces_of(message: Message | NewMessage) -> tuple[FileId, ...]:
    """Return the ids of the files that hold what was taken out of a message."""
    return tuple(dict.fromkeys(occurrences_of(message)))


def occurrences_of(message: Message | NewMessage) -> tuple[FileId, ...]:
    """Return the ids of the files that hold what was taken out of a message, as often as each is put back."""
    metadata = message.metadata
    if TAKEN_OUT not in metadata and TAKEN_FROM_ITEM not in metadata:  # A sixth of the time of reading a session.
        return ()
    entries = (each for text, facts in _texts(message) for each in _entries(text, facts))
    return tuple(FileId(each["id"]) for each in entries)


def put_back(message: Message, found: Mapping[FileId, bytes]) -> Message:
    """Return a message as it was given; its content or its item stays as it is if one of the pieces is not found."""
    (content, facts), (item, item_facts) = _texts(message)
    whole = _joined(content, facts, found) if facts is not None else None
    if whole is not None:
        message = message._replace(content=whole, metadata=_given_metadata(message))
    whole_item = _joined(item, item_facts, found) if item_facts is not None else None
    if whole_item is not None:
        metadata = {name: value for name, value in message.metadata.items() if name != TAKEN_FROM_ITEM}
        message = message._replace(metadata={**metadata, ITEM: whole_item})
    return message


def _joined(text: str, facts: object, found: Mapping[FileId, bytes]) -> str | None:
    """Return a text with its pieces, None if it has none or one of them is not found."""
    parts: list[str] = []
    position = chars = 0
    try:
        for entry in _entries(text, facts):
            at = entry["at"]
            if at < position:
                return None
            data, form = found[entry["id"]], entry.get("form") or {}
            chars += _chars_of(data, form)
            if chars > MAX_WHOLE_CHARS:
                return None
            parts += [text[position:at], _text_of(data, form)]
            position = at + entry["chars"]
    except (KeyError, TypeError, ValueError, AttributeError):
        # A file was deleted, or another client has written the metadata.
        return None
    return "".join(parts) + text[position:] if parts else None


def _given_metadata(message: Message) -> Mapping[str, Any]:
    """Return metadata without what `Taken.applied` has added."""
    facts = message.metadata[TAKEN_OUT]
    metadata = {name: value for name, value in message.metadata.items() if name != TAKEN_OUT}
    if FILE_IDS in facts:
        metadata[FILE_IDS] = facts[FILE_IDS]
    elif isinstance(metadata.get(FILE_IDS), list):
        del metadata[FILE_IDS]
    return metadata


def is_piece(owner: Owner, file_id: FileId, sha256: str, media_type: str) -> bool:
    """Return whether a file was taken out of a message."""
    return file_id == _id_of(owner, sha256, media_type)


def _texts(message: Message | NewMessage) -> tuple[tuple[str, object], tuple[str, object]]:
    """Return the content and the item of a message, each with what metadata says was taken out of it."""
    metadata = message.metadata
    item = metadata.get(ITEM)
    return (message.content, metadata.get(TAKEN_OUT)), (
        item if isinstance(item, str) else "",
        metadata.get(TAKEN_FROM_ITEM),
    )


def _entries(text: str, facts: object) -> Iterator[Mapping[str, Any]]:
    """Yield what metadata says was taken out of a text, as far as it confirms that: other clients may write both."""
    entries = facts.get("pieces") if isinstance(facts, dict) else None
    for each in entries if isinstance(entries, list) else ():
        if not isinstance(each, dict) or not all(type(each.get(name)) is int for name in ("at", "chars")):
            continue
        if not isinstance(each.get("id"), str) or not is_uuid(each["id"]) or not _is_form(each.get("form") or {}):
            continue
        at, chars = each["at"], each["chars"]
        reference = text[at : at + chars] if at >= 0 and chars > 0 else ""
        if reference.startswith("<content ") and reference.endswith(f' id="{each.get("id")}"/>'):
            yield each


def _is_form(form: object) -> bool:
    """Return whether a form is one that `_decoded` makes: others could make a text of any size of a few bytes."""
    if not isinstance(form, dict) or form.get("code", "base64") != "base64":
        return False
    if not form:
        return True
    line, prefix, padding = form.get("line"), form.get("prefix"), form.get("padding")
    return (
        (type(padding) is int and 0 <= padding <= 2)
        and isinstance(prefix, str)
        and len(prefix) <= MAX_PREFIX_CHARS
        and (line is None or (type(line) is int and line > 0 and form.get("end") in LINE_ENDS))
    )


def _chars_of(data: bytes, form: Mapping[str, Any]) -> int:
    """Return about how many characters `_text_of` returns, and not fewer."""
    if not form:
        return len(data)
    chars = (len(data) + 2) // 3 * 4
    lines = chars // form["line"] + 1 if form.get("line") else 0
    slashes = chars if form.get("slash") else 0
    return chars + slashes + lines * len(form.get("end") or "") + len(form["prefix"])


def _are_texts(ids: Sequence[object]) -> bool:
    return all(isinstance(each, str) for each in ids)


def _without(text: str, found: Sequence[tuple[int, int, Piece]]) -> Taken | None:
    if not found:
        return None
    parts: list[str] = []
    places: list[tuple[int, int]] = []
    position = length = 0
    for begin, end, piece in found:
        reference = piece.reference
        length += begin - position
        places.append((length, len(reference)))
        parts += [text[position:begin], reference]
        length += len(reference)
        position = end
    return Taken("".join(parts) + text[position:], tuple(places), tuple(piece for _, _, piece in found))


def _pieces(keeper: Keeper, text: str) -> Iterator[tuple[int, int, Piece]]:
    """Yield the large base64 images and `data:` URLs of a text, with their places."""
    position = 0
    while (start := START.search(text, position)) is not None:
        is_url = start[0].startswith("data:")
        is_base64 = not is_url or ";base64," in start[0].lower()
        if not is_base64 and start["type"] is None:
            position = start.end()
            continue
        body = start.end() if is_url else start.start()
        end = _base64_end(text, body) if is_base64 else _url_end(text, body)
        # A later beginning within this run ends where the run does, so that it is too short as well.
        position = max(end, start.end())
        if end - start.start() < LEAST_BYTES:
            continue
        given = text[start.start() : end]
        piece = _decoded(keeper, text[start.start() : body], text[body:end], start["type"]) if is_base64 else None
        if piece is None and (is_url or begins_image(given)):
            piece = _piece(keeper, given.encode(), TEXT_TYPE, {})
        if piece is not None:
            yield start.start(), end, piece


def _base64_end(text: str, begin: int) -> int:
    """Return the end of base64 that begins there: one run, or lines of the same length and then a shorter one."""
    end = _run_end(text, begin)
    width, separator = end - begin, LINE_END.match(text, end)
    if separator is not None and 0 < width <= MAX_LINE_CHARS:
        while text.startswith(separator[0], end):
            line = end + len(separator[0])
            chars = _run_end(text, line) - line
            if not 0 < chars <= width:
                break
            end = line + chars
            if chars < width:
                break
    padding = PADDING.match(text, end)
    return padding.end() if padding else end


def _run_end(text: str, begin: int) -> int:
    found = RUN.match(text, begin)
    return found.end() if found else begin


def _url_end(text: str, begin: int) -> int:
    found = URL_REST.match(text, begin)
    return found.end() if found else begin


def _decoded(keeper: Keeper, prefix: str, body: str, media_type: str | None) -> Piece | None:
    """Return base64 as a file, None if its bytes would not be written as this text again, or are no image."""
    form: dict[str, Any] = {"code": "base64", "prefix": prefix}
    separator = LINE_END.search(body, 0, MAX_LINE_CHARS + len("\\r\\n"))
    if separator is not None:
        form |= {"line": separator.start(), "end": separator[0]}
        body_run = body.replace(separator[0], "")
    else:
        body_run = body
    if "\\/" in body_run:
        form["slash"] = True
        body_run = body_run.replace("\\/", "/")
    if "-" in body_run or "_" in body_run:
        form["url"] = True
    bare = body_run.rstrip("=")
    form["padding"] = len(body_run) - len(bare)
    try:
        data = base64.b64decode(bare + "=" * (-len(bare) % 4), b"-_" if "url" in form else None, validate=True)
    except (binascii.Error, ValueError):
        return None
    if _text_of(data, form) != prefix + body:
        return None
    kind = media_type.lower() if media_type else image_type(data)
    return _piece(keeper, data, kind or DEFAULT_MEDIA_TYPE, form) if prefix or kind else None


def _text_of(data: bytes, form: Mapping[str, Any]) -> str:
    """Return the text that a piece was."""
    if form.get("code") != "base64":
        return data.decode()
    encoded = (base64.urlsafe_b64encode if form.get("url") else base64.b64encode)(data).decode().rstrip("=")
    encoded += "=" * form["padding"]
    if form.get("slash"):
        encoded = encoded.replace("/", "\\/")
    if width := form.get("line"):
        encoded = str(form["end"]).join(encoded[at : at + width] for at in range(0, len(encoded), width))
    return str(form["prefix"]) + encoded


def _piece(keeper: Keeper, data: bytes, media_type: str, form: Mapping[str, Any]) -> Piece:
    sha256 = digest(keeper.stored(data))
    kind = "image" if media_type.startswith("image/") else "text" if media_type == TEXT_TYPE else "content"
    name = f"{kind}-{sha256[:DIGEST_CHARS]}{mimetypes.guess_extension(media_type) or '.bin'}"
    return Piece(_id_of(keeper.owner, sha256, media_type), name, media_type, data, sha256, form)


def _id_of(owner: Owner, sha256: str, media_type: str) -> FileId:
    return FileId(str(uuid.uuid5(SPACE, f"{owner}\n{sha256}\n{media_type}")))
