"""Erases an owner, or a conversation: rows, bytes of files, entries of caches and kept answers.

Invariant: an erasure that fails or is broken off is repeated with the same result; bytes are removed before the rows
that name them are gone for good, and caches drop their entries after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from exai.blobs.base import Blobs
from exai.cache.conversations import ConversationCache
from exai.db.erasure import ErasedContent, ErasedRows, ErasureRepository, Rehearsed
from exai.errors import CacheError, InvalidArgument, NotFound
from exai.models import ContinuationId, FileId, Owner, StoredFile
from exai.validation import check_owner

NAMED = 5
"""Maximum number of forks that an error names."""


@dataclass(frozen=True, slots=True)
class Erased:
    """What was erased, or would be. `elsewhere` counts contents whose bytes this machine does not have.

    `cache_problem` is set if Redis could not be asked; daemons drop its entries when it is back.
    """

    rows: ErasedRows
    elsewhere: int = 0
    cache_problem: str | None = None


class Erasure:
    """Erases what is stored of an owner or of a conversation."""

    def __init__(self, repository: ErasureRepository, blobs: Blobs, cache: ConversationCache) -> None:
        self._repository, self._blobs, self._cache = repository, blobs, cache

    async def erase(
        self,
        owner: Owner,
        name: ContinuationId | None = None,
        *,
        with_forks: bool = False,
        is_rehearsal: bool = False,
    ) -> Erased:
        """Erase a conversation, or with None everything of the owner. A rehearsal undoes it again.

        Raises `NotFound`, `InvalidArgument` for a conversation with forks, a `DatabaseError` or a `BlobError`.
        """
        check_owner(owner)
        elsewhere, rows = 0, ErasedRows()
        try:
            async with self._repository.erasing(owner, name) as rows:
                _check(rows, name, with_forks=with_forks)
                if is_rehearsal:
                    raise Rehearsed
                elsewhere = await self._remove_bytes(owner, rows.contents)
        except Rehearsed:
            return Erased(rows)
        if name is None:
            await self._repository.erase_history(owner)
        problem = await self._forget(owner, rows, None if name is None else [key[1] for key in rows.conversations])
        return Erased(rows, elsewhere, problem)

    async def _remove_bytes(self, owner: Owner, contents: Sequence[ErasedContent]) -> int:
        """Remove the bytes of contents; return how many are not here."""
        elsewhere, at = 0, datetime.now(UTC)
        for content in contents:
            file = StoredFile(FileId(""), content.sha256, content.size_bytes, "", "", at, store=content.store)
            file = replace(file, storage_path=content.storage_path)
            elsewhere += not await self._blobs.of(file).remove(owner, file)
        return elsewhere

    async def _forget(self, owner: Owner, rows: ErasedRows, names: Sequence[ContinuationId] | None) -> str | None:
        """Empty the cache of what is gone; return why that was not possible."""
        if not self._cache.erasure.is_on:
            return "no cache is configured for this command"
        try:
            await self._cache.erasure.erase(owner, [*rows.conversations, *rows.threads])
        except CacheError as error:
            return str(error)
        await self._repository.forget(owner, names)
        return None


def _check(rows: ErasedRows, name: ContinuationId | None, *, with_forks: bool) -> None:
    if name is None:
        return
    if not rows.conversations:
        raise NotFound("conversation", name, "Give the continuation_id of a conversation of this owner")
    own = {name, *rows.former}
    forks = [key.continuation_id for key in rows.conversations if key.continuation_id not in own]
    if forks and not with_forks:
        more = f" and {len(forks) - NAMED:,} more" if len(forks) > NAMED else ""
        problem = f"has forks, which show its messages: {', '.join(forks[:NAMED])}{more}"
        raise InvalidArgument("ID", problem, "Give --forks to erase them too")
