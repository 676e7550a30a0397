"""Compare the files of a turn with those on disk while the model answers.

Invariant: a turn neither fails nor waits longer than `PATIENCE_S` because of the file system.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from exai.conversations.requests import ChatRequest
from exai.conversations.turns.prompt import Asked
from exai.errors import ExaiError
from exai.files.sources import ChangedFile, SourceReader

PATIENCE_S: Final = 1.0
"""How long a comparison may go on after the answer is there."""

MAX_SAID: Final = 20
NOT_COMPARED: Final = "the files of the conversation were not compared with those on disk: {reason}"
SLOW: Final = "the file system did not answer in time"

Conclude = Callable[[Asked], Awaitable[Asked]]


class DiskComparison:
    """Compares the files that turns show to models; reads nothing that was not read from a disk of this machine."""

    def __init__(self, sources: SourceReader) -> None:
        self._sources = sources

    @asynccontextmanager
    async def beside(self, request: ChatRequest, asked: Asked) -> AsyncIterator[Conclude]:
        """Compare while the block runs; it yields what adds the result to `Asked`. Files just read are not compared."""
        if all(file.source is None for file in asked.files):
            yield _as_it_is
            return
        work = self._sources.compare(request.owner, asked.files, fresh=request.sources)
        task = asyncio.create_task(work, name="disk-comparison")

        async def conclude(to: Asked) -> Asked:
            await asyncio.wait({task}, timeout=PATIENCE_S)
            if not task.done():
                return _noted(to, NOT_COMPARED.format(reason=SLOW))
            try:
                changed = task.result()
            except ExaiError as error:
                return _noted(to, NOT_COMPARED.format(reason=error))
            return _noted(to, *_sentences(changed))._replace(changed=changed)

        try:
            yield conclude
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _as_it_is(asked: Asked) -> Asked:
    return asked


def _noted(asked: Asked, *notes: str) -> Asked:
    return asked._replace(notes=(*asked.notes, *notes))


def _sentences(changed: tuple[ChangedFile, ...]) -> list[str]:
    said = list(dict.fromkeys(each.sentence for each in changed))
    more = [f"{len(said) - MAX_SAID:,} more files differ from those on disk"] if len(said) > MAX_SAID else []
    return said[:MAX_SAID] + more
