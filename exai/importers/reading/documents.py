"""One file of a source as its reader sees it, and the reading of its records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from exai.importers.reading.bundles import Bundle, ReadMeter, open_text, read_file
from exai.importers.reading.lines import JsonLine, read_json_lines
from exai.importers.reading.walking import parse
from exai.importers.records import DamagedRecord, PassedOver, SourceAttachment

MAX_FILE_BYTES: Final = 1_073_741_824
TOO_LARGE: Final = "is larger than the limit of a record"
NOT_JSON: Final = "is not a JSON object"


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """A file of a source, and the files beside it."""

    bundle: Bundle
    name: str
    meter: ReadMeter = field(default_factory=ReadMeter)

    def open(self) -> AbstractContextManager[BinaryIO]:
        """Open the file as UTF-8. Raises what `open_text` raises."""
        return open_text(self.bundle, self.name, self.meter)

    def place(self, where: str) -> str:
        """Return a place in this file, for a report."""
        label = self.bundle.label
        name = label if label == self.name or label.endswith(f"/{self.name}") else f"{label}: {self.name}"
        return f"{name}, {where}" if where else name

    def damaged(self, where: str, reason: str) -> DamagedRecord:
        """Return the report of a damaged record of this file."""
        return DamagedRecord(self.place(where), reason)

    def file(self, name: str, shown_name: str, media_type: str | None) -> SourceAttachment:
        """Return a file of the bundle as the file of a message."""
        size_bytes = self.bundle.size_bytes(name)

        def load() -> bytes:
            return read_file(self.bundle, name, MAX_FILE_BYTES)

        return SourceAttachment(shown_name, media_type, size_bytes, load)


@dataclass(frozen=True, slots=True)
class JsonRecord:
    """A JSON object of a source: its text, and its members."""

    raw: bytes
    facts: Mapping[str, Any]
    where: str

    @property
    def text(self) -> str:
        """Return the text exactly; a surrogate that UTF-8 cannot have is replaced."""
        return self.raw.decode("utf-8", "replace")


def record_of(document: SourceDocument, raw: bytes | None, where: str) -> JsonRecord | DamagedRecord:
    """Return a JSON object, or the report of its damage."""
    if raw is None:
        return document.damaged(where, TOO_LARGE)
    try:
        facts = parse(raw)
    except UnicodeDecodeError:
        return document.damaged(where, "is not UTF-8")
    except ValueError:
        return document.damaged(where, "is not JSON")
    if not isinstance(facts, dict):
        return document.damaged(where, NOT_JSON)
    return JsonRecord(raw, facts, document.place(where))


def value_of(raw: bytes | None) -> Any:
    """Return a value, None if it is damaged or too large."""
    try:
        return None if raw is None else parse(raw)
    except ValueError:
        return None


def text_of(value: Any) -> str | None:
    """Return a text that is not blank, else None."""
    return value if isinstance(value, str) and value.strip() else None


def mapping_of(value: Any) -> Mapping[str, Any]:
    """Return an object, or an empty one."""
    return value if isinstance(value, Mapping) else {}


def records_of_lines(
    document: SourceDocument, skipped: Callable[[JsonLine], str | None]
) -> Iterator[JsonRecord | DamagedRecord | PassedOver]:
    """Yield the objects of JSON Lines. A line for which `skipped` returns a reason is counted and not parsed."""
    with document.open() as stream:
        for line in read_json_lines(stream):
            reason = skipped(line)
            if reason is not None:
                yield PassedOver(reason)
                continue
            record = record_of(document, line.raw, line.where)
            if isinstance(record, DamagedRecord) and not line.has_end:
                record = DamagedRecord(
                    record.where, f"{record.reason}; the file ends in this line and may still be written"
                )
            yield record
