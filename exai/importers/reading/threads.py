"""Conversations with branches: their messages are collected, then yielded branch by branch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from exai.importers.reading.branches import BranchTree
from exai.importers.reading.documents import JsonRecord
from exai.importers.reading.naming import key_of, name_of_fork, short_digest
from exai.importers.reading.spool import Place, Spool
from exai.importers.reading.walking import parse
from exai.importers.records import DamagedRecord, ForkPoint, PassedOver, SourceConversation, SourceItem, SourceMessage

Show = Callable[[JsonRecord, str, str], SourceMessage]
"""Returns the message of a record, given the record, its conversation and its key."""

REPEATED: Final = "records that repeat another one"
EMPTY: Final = "conversations without messages"


@dataclass(frozen=True, slots=True)
class _Kept:
    key: str
    place: Place
    where: str


class Thread:
    """The messages of one conversation, with their parents; their records are kept in a spool."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._tree: BranchTree[_Kept] = BranchTree()
        self._digests: dict[str, int] = {}
        self.last: str | None = None

    def __len__(self) -> int:
        return len(self._tree)

    def add(
        self,
        name: str,
        parent: str | None,
        record: JsonRecord,
        *,
        time: datetime | None = None,
        is_shown: bool = True,
    ) -> PassedOver | None:
        """Add a message. The same name with another record is another message, behind the first one."""
        digest = short_digest(record.raw)
        known = self._digests.get(name)
        if known == digest:
            return PassedOver(REPEATED)
        if known is not None:
            name, parent = f"{name}:{digest:016x}", name
            if name in self._tree:
                return PassedOver(REPEATED)
        self._digests[name] = digest
        self.last = name
        kept = _Kept(key_of(name), self._spool.put(record.raw), record.where)
        self._tree.add(name, parent, kept, time=time, is_shown=is_shown)
        return None

    def claim(self, parent: str, children: object) -> None:
        """Note which children a message lists."""
        self._tree.claim(parent, children)

    def items(self, where: str, conversation: SourceConversation, active: object, show: Show) -> Iterator[SourceItem]:
        """Yield the conversation and its forks with their messages. `show` may raise `ValueError` for a damaged one."""
        names: list[str] = []
        for branch in self._tree.branches(active):
            if not names:
                names.append(conversation.name)
                yield replace(conversation, where=where)
            else:
                names.append(name_of_fork(conversation.name, branch.nodes[0].key))
                start = branch.start
                fork = ForkPoint(names[start[0]], start[1].key) if start else None
                yield SourceConversation(
                    names[-1],
                    conversation.title,
                    conversation.tags,
                    conversation.created_at,
                    conversation.updated_at,
                    {**conversation.metadata, "branch_of": conversation.name},
                    fork,
                    branch.nodes[0].where,
                )
            for kept in branch.nodes:
                yield self._message(kept, names[-1], show)
        if not names:
            yield PassedOver(EMPTY)

    def _message(self, kept: _Kept, conversation: str, show: Show) -> SourceItem:
        raw = self._spool.get(kept.place)
        try:
            return show(JsonRecord(raw, parse(raw), kept.where), conversation, kept.key)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return DamagedRecord(kept.where, f"cannot be understood ({error})")
