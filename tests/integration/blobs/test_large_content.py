"""Messages with large content on every store: one statement where nothing has to be uploaded."""

from __future__ import annotations

import base64
import uuid

import pytest

from exai.conversations.large import LargeContent, pieces_in, stored_form
from exai.db.conversations import ConversationRepository
from exai.db.records import AppendResult, AppendStart, FilesAlong
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER, ConversationId, NewMessage, TurnId
from exai.settings.load import LimitSettings
from tests.integration.blobs.conftest import Stored, service
from tests.support.database import opened
from tests.support.pg_proxy import PgProxy

URLS = ["data:image/png;base64," + base64.b64encode(bytes([n]) * (50_000 + n * 900_000)).decode() for n in range(3)]
ALONG = frozenset({"postgres", "directory"})
"""Stores that need no question whether a content is known."""


async def append(large: LargeContent, repository: ConversationRepository) -> AppendResult:
    given = [NewMessage("user", url) for url in URLS]
    taken = await large.take_all(LOCAL_OWNER, given)
    pieces, name = pieces_in(taken), str(uuid.uuid4())

    async def send(along: FilesAlong | None) -> AppendResult:
        messages = [stored_form(message, each) for message, each in zip(given, taken, strict=True)]
        ids = [piece.id for piece in pieces]
        start = AppendStart(
            LOCAL_OWNER,
            None,
            ConversationId(name),
            TurnId(name),
            name,
            "hash",
            "test",
            messages,
            file_ids=ids,
            along=along,
        )
        return await repository.append(start)

    return await large.send(LOCAL_OWNER, pieces, send)


@pytest.mark.direct
async def test_large_content_is_uploaded_once_and_linked_by_one_statement(stored: Stored) -> None:
    """The second time nothing is uploaded, in every store; the bytes come back from it."""
    async with PgProxy(stored.url) as proxy, opened(proxy.url) as database:
        files = service(database, stored.stores, stored.store.name)
        large, repository = LargeContent(files, LimitSettings()), ConversationRepository(database)
        await files.list(LOCAL_OWNER)
        costs = []
        for _ in range(2):
            proxy.reset()
            result = await append(large, repository)
            costs.append(proxy.round_trips)
            assert result.commit is not None
            assert result.commit.added is not None
            assert [each.content for each in await large.whole(LOCAL_OWNER, result.commit.added)] == URLS
        # Asked first, then stored, then sent again: where the bytes are to be uploaded elsewhere, before any row.
        assert costs == ([1, 1] if stored.store.name in ALONG else [4, 1])


@pytest.mark.direct
async def test_eight_files_given_again_cost_one_statement_on_every_store(stored: Stored) -> None:
    """And no byte: what is stored keeps its place."""
    contents = [FileContent(f"{n}.txt", b"%d" % n * 100_000) for n in range(8)]
    async with PgProxy(stored.url) as proxy, opened(proxy.url) as database:
        files = service(database, stored.stores, stored.store.name)
        first = await files.put(LOCAL_OWNER, contents)
        proxy.reset()
        again = await files.put(LOCAL_OWNER, contents)
        assert proxy.round_trips == 1
        assert [(file.id, file.storage_path) for file in again] == [(file.id, file.storage_path) for file in first]
