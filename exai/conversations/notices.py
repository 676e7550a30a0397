"""Who wants to hear that a conversation changed, in this process.

The invariant is that a notice follows the commit it tells of, names an owner, and holds nothing of what was written.
Changes made by other daemons are not heard: whoever needs them reads again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from exai.models import ContinuationId, Owner


@dataclass(frozen=True, slots=True)
class Notice:
    """A conversation changed. `is_listed` when the list of conversations changed: one is new, gone or renamed."""

    owner: Owner
    continuation_id: ContinuationId
    is_listed: bool


Listener = Callable[[Notice], None]
"""Must neither wait nor raise."""


class Notices:
    """Tells every listener of every change."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call `listener` from now on."""
        self._listeners.append(listener)

    def tell(
        self, owner: Owner, continuation_id: ContinuationId, base_revision: int, revision: int, *, listed: bool = False
    ) -> None:
        """Tell of a committed change from one revision to another; a repetition changed nothing and is not told."""
        if revision == base_revision:
            return
        notice = Notice(owner, continuation_id, listed or base_revision == 0)
        for listener in self._listeners:
            listener(notice)
