"""Brings everything stored to the newest key, or to plain text, while daemons serve.

Passes over all rows are repeated until one finds nothing to do, since daemons store rows meanwhile. A pass that is
interrupted is simply begun again. Entries of the cache are removed, so that they do not keep an older form.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, TypeAlias

from exai.cache.erasing import CacheErasure
from exai.conversations.maintenance import Maintenance
from exai.db.driver.pool import Database
from exai.db.rekey import FIRST, RekeyBatch, RekeyRepository, RowKey
from exai.db.rekey_checkpoints import CheckpointRekeyRepository
from exai.db.rekey_contents import FIRST_CONTENT, FIRST_FILE, FIRST_LINK, ContentRekeyRepository
from exai.errors import CacheError
from exai.files.rekeying import ContentRekeying
from exai.files.service import FileService
from exai.models import ConversationKey

MOST_PASSES: Final = 5
MOST_NAMED: Final = 20

OnBatch = Callable[["Rekeyed"], None]
_RekeyWork: TypeAlias = tuple[Callable[..., Awaitable[RekeyBatch]], RowKey]


@dataclass(slots=True)
class Rekeyed:
    """What a rekeying has done so far. `left` counts rows of the last pass that are not stored as wanted.

    `contents` and `content_bytes` count the contents of files whose bytes were stored in the other form, or would be.
    `unreadable` names some of those that cannot be decrypted, `cache_problem` why the cache still has older entries.
    """

    replaced: int = 0
    left: int = 0
    unread: int = 0
    passes: int = 0
    contents: int = 0
    content_bytes: int = 0
    unreadable: list[str] = field(default_factory=list)
    cache_problem: str | None = None

    @property
    def is_complete(self) -> bool:
        """Return whether every row is stored as wanted."""
        return self.left == 0


class Rekeying:
    """Rekeys all owners' rows."""

    def __init__(self, database: Database, files: FileService, erasure: CacheErasure, maintenance: Maintenance) -> None:
        self._repository, self._erasure, self._maintenance = RekeyRepository(database), erasure, maintenance
        rows, texts = self._repository, ContentRekeyRepository(database)
        contents = (ContentRekeying(files, texts).contents, FIRST_CONTENT), (texts.seals, FIRST_CONTENT)
        documents: _RekeyWork = (texts.texts, FIRST_CONTENT)
        self._works: Sequence[_RekeyWork] = (
            (rows.messages, (FIRST, 0)),
            (rows.conversations, (FIRST, 0)),
            (rows.turns, (FIRST, 0)),
            # A text is bound to the digest of the stored form, so it moves to another one as plain text.
            *((*contents, documents) if database.codec.is_on else (documents, *contents)),
            (texts.names, FIRST_FILE),
            (texts.sources, FIRST_LINK),
            *CheckpointRekeyRepository(database).works,
        )

    async def run(self, newest: str | None, on_batch: OnBatch, *, is_rehearsal: bool = False) -> Rekeyed:
        """Rekey until nothing is left; then only the name of the `newest` key is kept. Raises a `DatabaseError`."""
        done = Rekeyed()
        while done.passes < MOST_PASSES:
            done.passes, done.left, done.unread, done.unreadable = done.passes + 1, 0, 0, []
            before = done.replaced
            for work, first in self._works:
                await self._pass(work, first, done, on_batch, is_rehearsal=is_rehearsal)
            if is_rehearsal or done.left == done.unread or done.replaced == before:
                break
        if is_rehearsal:
            return done
        if done.is_complete:
            await self._repository.keep_keys([newest] if newest else [])
        await self._maintenance.index_words()
        return done

    async def index_again(self) -> None:
        """Index the words of everything again."""
        place: str | None = FIRST
        while place is not None:
            place = await self._repository.queue_words(place)
        await self._maintenance.index_words()

    async def _pass(
        self,
        work: Callable[..., Awaitable[RekeyBatch]],
        first: RowKey,
        done: Rekeyed,
        on_batch: OnBatch,
        *,
        is_rehearsal: bool,
    ) -> None:
        place: RowKey | None = first
        while place is not None:
            batch = await work(place, is_rehearsal=is_rehearsal)
            place = batch.place
            done.replaced += batch.replaced
            done.left += batch.found - batch.replaced
            done.contents += batch.contents
            done.content_bytes += batch.content_bytes
            done.unread += len(batch.unreadable)
            done.unreadable += batch.unreadable[: MOST_NAMED - len(done.unreadable)]
            if batch.replaced:
                await self._forget(batch.conversations, done)
            on_batch(done)

    async def _forget(self, conversations: set[ConversationKey], done: Rekeyed) -> None:
        """Remove what the cache holds of conversations, in the form before."""
        if not self._erasure.is_on:
            return
        try:
            for owner, keys in groupby(sorted(conversations), key=lambda key: key.owner):
                await self._erasure.erase(owner, list(keys))
        except CacheError as error:
            done.cache_problem = str(error)
