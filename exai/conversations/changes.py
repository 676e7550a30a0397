"""Notify listeners in this process of changed conversations, including changes by other daemons.

Listeners are notified of a change by this process at once, and of a change by another daemon when the next poll finds
it.

Invariant: a notice follows the commit of its change, names one owner and contains no stored data. A revision is
notified again only if the second report adds that the list of conversations changed, or if its conversation is no
longer among the `MAX_REMEMBERED` latest ones.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from exai.cache.conversations import NO_REVISION
from exai.cache.reconciliation import ChangedRevisions, ChangesSince
from exai.db.conversations import ConversationRepository
from exai.errors import ExaiError
from exai.models import Commit, ContinuationId, ConversationKey, Owner, Recorder

WATCH_S = 2.0
"""Interval between polls for changes by other daemons while there is a subscriber."""

UNWANTED_WATCH_S = 60.0
"""Interval without a subscriber. Polls continue, so that the first poll for a new subscriber starts at a recent
snapshot, before the subscription, and misses no change after it."""

LOST_XIDS = 1_000_000
"""Number of transaction ids that a recovery may assign again: more than a server uses between two writes of its WAL."""

FIRST_XID = 3

MAX_REMEMBERED = 10_000
"""Conversations whose last notified revision is remembered to suppress duplicates."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A conversation changed. `is_listed` when the list of conversations changed: one is new, gone or renamed."""

    owner: Owner
    continuation_id: ContinuationId
    is_listed: bool


Listener = Callable[[Notice], None]
"""Must neither wait nor raise."""


class Notices:
    """Calls every listener for every change. `have_changed` is set by a change here and cleared by its consumer."""

    def __init__(self) -> None:
        self._listeners: list[tuple[Listener, Callable[[], bool]]] = []
        self._latest: OrderedDict[ConversationKey, tuple[int, bool]] = OrderedDict()
        self.have_listeners = asyncio.Event()
        self.have_changed = asyncio.Event()

    @property
    def are_wanted(self) -> bool:
        """Whether any listener currently wants changes by other daemons."""
        return any(is_wanting() for _, is_wanting in self._listeners)

    def listen(self, listener: Listener, is_wanting: Callable[[], bool]) -> None:
        """Register `listener` for changes; those by other daemons are polled for while `is_wanting` returns True."""
        self._listeners.append((listener, is_wanting))
        self.have_listeners.set()

    def announce(self, commit: Commit) -> None:
        """Notify of a change committed by this process. A repeated request, which changed nothing, has no notice."""
        if commit.revision != commit.base_revision and not commit.is_repeated:
            self.have_changed.set()
            self.notify(commit.key, commit.revision, is_listed=commit.is_listed)

    def notify(self, key: ConversationKey, revision: int, *, is_listed: bool) -> None:
        """Notify of a revision unless listeners were already notified of it or a later one."""
        latest, was_listed = self._latest.get(key, (-1, False))
        if revision < latest or (revision == latest and (was_listed or not is_listed)):
            return
        self._latest[key] = (revision, is_listed)
        self._latest.move_to_end(key)
        if len(self._latest) > MAX_REMEMBERED:
            self._latest.popitem(last=False)
        notice = Notice(key.owner, key.continuation_id, is_listed)
        for listener, _ in self._listeners:
            listener(notice)


class ChangePoller:
    """Polls for changes by other daemons."""

    def __init__(self, repository: ConversationRepository, notices: Notices, recorder: Recorder) -> None:
        self._repository, self._notices, self._recorder = repository, notices, recorder
        self._since: str | None = None
        self._server_epoch: str | None = None
        self._looked_at = -math.inf

    async def run(self) -> None:
        """Poll from the first listener on until cancelled. While the database is away notices are delayed, not lost."""
        await self._notices.have_listeners.wait()
        while True:
            try:
                await self.look()
            except ExaiError:
                self._recorder.count("notifications_failed_total")
            await asyncio.sleep(WATCH_S)

    async def look(self) -> None:
        """Notify of changes since the last poll: 1 database round trip, 0 without a subscriber between intervals.

        2 round trips after a recovery of the database, which assigns transaction ids again.
        """
        now = asyncio.get_running_loop().time()
        is_wanted = self._notices.are_wanted
        if not is_wanted and now - self._looked_at < UNWANTED_WATCH_S:
            return
        changes = await self._repository.changes(self._since)
        # After a recovery, changes since the last poll may have ids below `_since`, so the range is read again from
        # further back. `notify` suppresses revisions that were already notified.
        if self._since is not None and changes.server_epoch != self._server_epoch:
            changes = await self._repository.changes(str(max(FIRST_XID, int(self._since) - LOST_XIDS)))
        self._since, self._server_epoch, self._looked_at = changes.xmin, changes.server_epoch, now
        for each in changes.changed if is_wanted else ():
            # A removed conversation was announced when it was marked as deleted.
            if each.revision is not None and not each.is_thread:
                key = ConversationKey(each.owner, each.continuation_id)
                self._notices.notify(key, each.revision, is_listed=each.is_listed)


def changes_of(repository: ConversationRepository) -> ChangesSince:
    """Return the query for changed conversations in the form that the cache's reconciliation needs."""

    async def changes(since_xmin: str | None) -> ChangedRevisions:
        found = await repository.changes(since_xmin)
        # A deleted conversation is newer than any entry of it.
        rows = [
            (each.owner, each.continuation_id, NO_REVISION if each.revision is None else each.revision)
            for each in found.changed
        ]
        return ChangedRevisions(found.xmin, found.server_epoch, rows, overflow=found.truncated)

    return changes
