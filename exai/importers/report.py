"""What an import found and stored, for people and programs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from exai.importers.records import DamagedRecord, PassedOver, SourceConversation, SourceMessage

OTHERS: Final = "further records"
MAX_SHOWN: Final = 100
"""Maximum number of findings that a report shows; all are counted."""


@dataclass(slots=True)
class ImportReport:
    """Counts of an import. `stored` counts messages that are new; `problems` are places and reasons."""

    conversations: int = 0
    forks: int = 0
    messages: int = 0
    stored: int = 0
    files: int = 0
    damaged: int = 0
    read_bytes: int = 0
    total_bytes: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_rehearsal: bool = False

    def count(self, item: SourceConversation | SourceMessage | DamagedRecord | PassedOver) -> None:
        """Count a record that was read."""
        if isinstance(item, SourceMessage):
            self.messages += 1
            self.files += len(item.files)
        elif isinstance(item, DamagedRecord):
            self.report(item)
        elif isinstance(item, PassedOver):
            is_known = item.reason in self.left_out or len(self.left_out) < MAX_SHOWN
            self.left_out[item.reason if is_known else OTHERS] += item.count

    def report(self, damage: DamagedRecord) -> None:
        """Count a record that could not be imported."""
        self.damaged += 1
        if len(self.problems) < MAX_SHOWN:
            self.problems.append(f"{damage.where}: {damage.reason}")

    def note(self, text: str) -> None:
        """Add a sentence, of the first ones."""
        if len(self.notes) < MAX_SHOWN:
            self.notes.append(text)

    def summary(self) -> str:
        """Return the result in one sentence."""
        forks = f" and {_number(self.forks, 'fork')}" if self.forks else ""
        found = f"{_number(self.conversations, 'conversation')}{forks} with {_number(self.messages, 'message')}"
        if self.is_rehearsal:
            return f"{found} and {_number(self.files, 'file')} can be imported; nothing was stored"
        known = "" if self.stored == self.messages else "; the others were there already"
        return f"{found}: {_number(self.stored, 'message')} stored{known}"

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        found = [f"{kind}: {_number(number, 'file')} read" for kind, number in sorted(self.sources.items())]
        found.append(self.summary())
        found += [f"left out: {number:,} {reason}" for reason, number in sorted(self.left_out.items())]
        if self.damaged:
            found.append(f"{_number(self.damaged, 'record')} could not be imported:")
            found += [f"  {each}" for each in self.problems]
            if self.damaged > len(self.problems):
                found.append(f"  and {self.damaged - len(self.problems):,} more")
        return found + self.notes

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "summary": self.summary(),
            "conversations": self.conversations,
            "forks": self.forks,
            "messages": self.messages,
            "stored": self.stored,
            "files": self.files,
            "damaged": self.damaged,
            "sources": dict(self.sources),
            "left_out": dict(self.left_out),
            "problems": self.problems,
            "notes": self.notes,
        }


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
