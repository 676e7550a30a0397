"""Turn the contents of messages, in the forms that models' interfaces have, into text and files.

Each list of parts is read in order, without recursion. What has no text of its own is shown in brackets.
"""

from __future__ import annotations

import base64
import binascii
import json
import mimetypes
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from exai.blobs.base import digest
from exai.importers.records import SourceAttachment

TEXT_FIELDS: Final = ("text", "thinking", "refusal", "reasoning", "thought", "think")
LISTS: Final = ("content", "parts", "summary", "output", "result")
CALLS: Final = ("tool_use", "tool_call", "functionCall", "function", "server_tool_use", "mcp_tool_use")
"""Types of parts that are calls of tools, and members that hold a call."""

DATA_URL: Final = re.compile(r"data:([\w.+-]{1,100}/[\w.+-]{1,100})?((?:;[^,;\s]{0,100}){0,8}),", re.ASCII)
MAX_PARTS: Final = 100_000
DIGEST_CHARS: Final = 16
MEDIA_SIGNS: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"ID3", "audio/mpeg"),
)


@dataclass(frozen=True, slots=True)
class Content:
    """The text of a message and its files."""

    text: str
    files: tuple[SourceAttachment, ...] = ()


def read_content(value: Any) -> Content:
    """Return what a value shows: a text, a part, or a list of parts, which may have lists of parts themselves."""
    texts: list[str] = []
    files: list[SourceAttachment] = []
    # The parts still to be read, the next one last.
    waiting: list[Any] = [value]
    for _ in range(MAX_PARTS):
        if not waiting:
            break
        part = waiting.pop()
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, list):
            waiting.extend(reversed(part))
        elif isinstance(part, Mapping):
            file = inline_file(part)
            if file is not None:
                files.append(file)
                texts.append(f"[{kind_of(file)}: {file.name}]")
            else:
                waiting.extend(reversed(list(_shown(part))))
    return Content("\n\n".join(each for each in texts if each.strip()), tuple(files))


def _shown(part: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the texts and parts that show a part."""
    kind = str(part.get("type") or "")
    call = next((part[each] for each in CALLS if isinstance(part.get(each), Mapping)), None)
    response = part.get("functionResponse")
    if call is not None:
        yield call_text(call)
        yield call.get("output")
    elif kind in CALLS or kind.endswith("_call"):
        yield call_text(part)
    elif isinstance(response, Mapping):
        yield f"[result of {response.get('name') or 'a tool'}]"
        yield readable(response.get("response"))
    else:
        yield _plain(part, kind)


def _plain(part: Mapping[str, Any], kind: str) -> Any:
    """Return the text or the parts of a part that is no call."""
    for name in TEXT_FIELDS:
        text = part.get(name)
        text = text.get("value") if isinstance(text, Mapping) else text
        if isinstance(text, str):
            return text
    found = next((part[name] for name in LISTS if part.get(name)), None)
    if isinstance(found, Mapping):
        return readable(found)
    return found if isinstance(found, str | list) else f"[{kind}]" if kind else ""


def call_text(call: Mapping[str, Any]) -> str:
    """Return one call of a tool as a line and its arguments."""
    name = call.get("name") or call.get("tool_name") or call.get("type") or "tool"
    given = next((call[each] for each in ("input", "arguments", "args", "action") if call.get(each)), None)
    return f"[call of {name}]" + (f"\n{readable(given)}" if given is not None else "")


def readable(value: Any) -> str:
    """Return a value as a text: texts as they are, others as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    try:
        return json.dumps(value, ensure_ascii=False, indent=1)
    except RecursionError:
        return "[a deeply nested value]"


def inline_file(part: Mapping[str, Any]) -> SourceAttachment | None:
    """Return the file that a part contains as base64 or as a `data:` URL, None if it contains none."""
    name = part.get("title") or part.get("filename") or part.get("name")
    for data, media_type in _encoded(part):
        if isinstance(data, str):
            return file_of_base64(data, media_type, name)
    for member in ("image_url", "file_data", "url", "audio_url"):
        value = part.get(member)
        url = value.get("url") if isinstance(value, Mapping) else value
        if isinstance(url, str) and url.startswith("data:"):
            return file_of_url(url, name)
    return None


def _encoded(part: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield what may be base64 in a part, with its media type."""
    source, audio = part.get("source"), part.get("input_audio")
    inline = part.get("inlineData") or part.get("inline_data")
    if isinstance(source, Mapping) and source.get("type") in ("base64", None):
        yield source.get("data"), source.get("media_type")
    if isinstance(inline, Mapping):
        yield inline.get("data"), inline.get("mimeType") or inline.get("mime_type")
    if isinstance(audio, Mapping):
        yield audio.get("data"), f"audio/{audio.get('format') or 'wav'}"
    if isinstance(part.get("mimeType"), str):
        yield part.get("data"), part["mimeType"]
    if part.get("type") == "image_generation_call":
        yield part.get("result"), None


def file_of_url(url: str, name: Any = None) -> SourceAttachment | None:
    """Return the file in a base64 `data:` URL."""
    start = DATA_URL.match(url)
    if start is None or ";base64" not in start[2].lower():
        return None
    return file_of_base64(url[start.end() :], start[1], name)


def file_of_base64(text: str, media_type: Any, name: Any) -> SourceAttachment | None:
    """Return a file from base64, None if it is damaged."""
    try:
        data = base64.b64decode(text.translate(STANDARD), validate=False)
    except (binascii.Error, ValueError):
        return None
    if not data:
        return None
    kind = media_type if isinstance(media_type, str) and "/" in media_type else media_type_of(data)
    shown = name if isinstance(name, str) and name else name_of(data, kind)
    return SourceAttachment(shown, kind, len(data), partial(bytes, data))


STANDARD: Final = str.maketrans("-_", "+/")


def media_type_of(data: bytes) -> str:
    """Return the media type that the first bytes of a file show."""
    if data.startswith(b"RIFF") and data[8:12] in (b"WEBP", b"WAVE"):
        return "image/webp" if data[8:12] == b"WEBP" else "audio/wav"
    return next((kind for sign, kind in MEDIA_SIGNS if data.startswith(sign)), "application/octet-stream")


def name_of(data: bytes, media_type: str) -> str:
    """Return a name for a file without one; it depends on the content only."""
    kind = media_type.partition("/")[0]
    kind = kind if kind in ("image", "audio", "video", "text") else "file"
    return f"{kind}-{digest(data)[:DIGEST_CHARS]}{mimetypes.guess_extension(media_type) or '.bin'}"


def kind_of(file: SourceAttachment) -> str:
    """Return the word for a file in a text."""
    kind = (file.media_type or "").partition("/")[0]
    return kind if kind in ("image", "audio", "video") else "file"
