"""Who wants to hear that a conversation changed, and how they hear of changes by other daemons.

The invariant is that a notice follows the commit it tells of, names an owner, and holds nothing of what was written.
A change made here is told at once and one made elsewhere when the next look finds it; the same change is told twice at
most when it is heard of in both ways at the same moment.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from exai.db.conversations import ConversationRepository
from exai.errors import ExaiError
from exai.models import ContinuationId, Owner, Recorder

WATCH_S = 2.0
"""Between two looks at what other daemons changed, while anybody listens."""

UNWANTED_WATCH_S = 60.0
"""And while nobody does, so that whoever begins to listen is told of what has just changed and misses nothing."""

LOST_XIDS = 1_000_000
"""Transaction ids that a recovery may give out again: more than a server uses before it writes its log to the disk."""

FIRST_XID = 3

MAX_REMEMBERED = 10_000
"""Conversations whose latest notice is remembered, so that it is not told again."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A conversation changed. `is_listed` when the list of conversations changed: one is new, gone or renamed."""

    owner: Owner
    continuation_id: ContinuationId
    is_listed: bool


Listener = Callable[[Notice], None]
"""Must neither wait nor raise."""


class Notices:
    """Tells every listener of every change. `have_changed` says that something was, until one clears it."""

    def __init__(self) -> None:
        self._listeners: list[tuple[Listener, Callable[[], bool]]] = []
        self._latest: OrderedDict[tuple[Owner, ContinuationId], tuple[int, bool]] = OrderedDict()
        self.have_listeners = asyncio.Event()
        self.have_changed = asyncio.Event()

    @property
    def are_wanted(self) -> bool:
        """Whether somebody wants to hear of changes now."""
        return any(is_wanting() for _, is_wanting in self._listeners)

    def listen(self, listener: Listener, is_wanting: Callable[[], bool]) -> None:
        """Call `listener` from now on, also with what others changed as long as it `is_wanting`."""
        self._listeners.append((listener, is_wanting))
        self.have_listeners.set()

    def tell(
        self, owner: Owner, continuation_id: ContinuationId, base_revision: int, revision: int, *, listed: bool = False
    ) -> None:
        """Tell of a committed change from one revision to another; a repetition changed nothing and is not told."""
        if revision != base_revision:
            self.have_changed.set()
            self.hear(owner, continuation_id, revision, listed=listed or base_revision == 0)

    def hear(self, owner: Owner, continuation_id: ContinuationId, revision: int, *, listed: bool) -> None:
        """Tell of a revision unless it was told already."""
        told, told_listed = self._latest.get((owner, continuation_id), (-1, False))
        if revision < told or (revision == told and (told_listed or not listed)):
            return
        self._latest[owner, continuation_id] = (revision, listed)
        self._latest.move_to_end((owner, continuation_id))
        if len(self._latest) > MAX_REMEMBERED:
            self._latest.popitem(last=False)
        notice = Notice(owner, continuation_id, listed)
        for listener, _ in self._listeners:
            listener(notice)


class ChangePoller:
    """Looks for what other daemons changed."""

    def __init__(self, repository: ConversationRepository, notices: Notices, recorder: Recorder) -> None:
        self._repository, self._notices, self._recorder = repository, notices, recorder
        self._since: str | None = None
        self._inc: str | None = None
        self._looked_at = -math.inf

    async def keep(self) -> None:
        """Look from the first listener on until cancelled; while the database is away nothing is missed, only late."""
        await self._notices.have_listeners.wait()
        while True:
            try:
                await self.look()
            except ExaiError:
                self._recorder.count("news_failed_total")
            await asyncio.sleep(WATCH_S)

    async def look(self) -> None:
        """Tell what has changed since the last look: 1 database round trip, and mostly none while nobody listens.

        2 after a recovery of the database, which gives out transaction ids again.
        """
        now = asyncio.get_running_loop().time()
        is_wanted = self._notices.are_wanted
        if not is_wanted and now - self._looked_at < UNWANTED_WATCH_S:
            return
        news = await self._repository.news(self._since)
        if self._since is not None and news.inc != self._inc:
            news = await self._repository.news(str(max(FIRST_XID, int(self._since) - LOST_XIDS)))
        self._since, self._inc, self._looked_at = news.xmin, news.inc, now
        for each in news.changed if is_wanted else ():
            self._notices.hear(each.owner, each.continuation_id, each.revision, listed=each.is_listed)
