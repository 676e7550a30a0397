"""The branches of a conversation whose messages name their parents, without recursion.

The active branch is the conversation. Every other leaf is a fork, which begins at the last message that it shares with
a branch before it, and is named after its first own message, so that its name stays when it grows.

Invariant: every node is in exactly one branch, also if parents are missing, cyclic or given twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Generic, TypeVar

T = TypeVar("T")

EARLIEST: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Branch(Generic[T]):
    """A line of nodes. `start` is the shown node behind which it begins, with the number of that node's branch."""

    nodes: Sequence[T]
    start: tuple[int, T] | None


@dataclass(slots=True)
class _Node(Generic[T]):
    value: T
    parent: str | None
    time: datetime | None
    is_shown: bool
    children: int = 0


class BranchTree(Generic[T]):
    """The nodes of one conversation in the order in which the source has them."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node[T]] = {}
        self._claimed: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def add(
        self, name: str, parent: str | None, value: T, *, time: datetime | None = None, is_shown: bool = True
    ) -> None:
        """Add a node; `is_shown` is false for one that only connects others. A name that is known is left as it is."""
        self._nodes.setdefault(name, _Node(value, parent, time, is_shown))

    def claim(self, parent: str, children: object) -> None:
        """Note which children a node lists; that counts for a child that names no parent that exists."""
        for child in children if isinstance(children, list) else ():
            if isinstance(child, str) and child != parent:
                self._claimed.setdefault(child, parent)

    def branches(self, active: object = None) -> Iterator[Branch[T]]:
        """Yield the branch of the node `active`, or else of the newest leaf, and then those of all other leaves."""
        self._connect()
        leaves = [name for name, node in self._nodes.items() if node.children == 0]
        if not leaves:
            return
        first = self._first(active, leaves)
        tips: dict[str, tuple[int, T] | None] = {}
        number = 0
        for leaf in (first, *(each for each in leaves if each != first)):
            path, junction = self._path(leaf, tips)
            start = tips[junction] if junction is not None else None
            shown = [self._nodes[each] for each in path if self._nodes[each].is_shown]
            tip = start
            for each in path:
                node = self._nodes[each]
                tip = (number, node.value) if node.is_shown else tip
                tips[each] = tip
            if shown:
                yield Branch([node.value for node in shown], start)
                number += 1

    def _connect(self) -> None:
        """Take claimed parents where there are no others, cut cycles, and count children."""
        place = {name: place for place, name in enumerate(self._nodes)}
        for name, node in self._nodes.items():
            if node.parent not in self._nodes or node.parent == name:
                node.parent = self._claimed.get(name)
            if node.parent not in self._nodes:
                node.parent = None
        settled: set[str] = set()
        for name in self._nodes:
            path: dict[str, None] = {}
            each: str | None = name
            while each is not None and each not in settled and each not in path:
                path[each] = None
                each = self._nodes[each].parent
            if each is not None and each in path:
                # A cycle is cut before the node of it that the source has first.
                names = list(path)
                self._nodes[min(names[names.index(each) :], key=place.__getitem__)].parent = None
            settled.update(path)
        for node in self._nodes.values():
            if node.parent is not None:
                self._nodes[node.parent].children += 1

    def _first(self, active: object, leaves: Sequence[str]) -> str:
        """Return the last node of the active branch."""
        is_known = isinstance(active, str) and active in self._nodes
        if is_known and any(self._nodes[each].is_shown for each in self._path(str(active), {})[0]):
            return str(active)
        ranked = {name: place for place, name in enumerate(leaves) if self._nodes[name].is_shown}
        newest = max(ranked, key=lambda name: (self._nodes[name].time or EARLIEST, ranked[name]), default=None)
        return newest if newest is not None else leaves[-1]

    def _path(self, leaf: str, known: dict[str, tuple[int, T] | None]) -> tuple[list[str], str | None]:
        """Return the nodes to a leaf that are in no branch yet, and the node before them."""
        path: list[str] = []
        each: str | None = leaf
        while each is not None and each not in known:
            path.append(each)
            each = self._nodes[each].parent
        path.reverse()
        return path, each
