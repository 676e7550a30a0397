"""Patches of metadata with an append: all together or not at all, in one round trip; with keys, by revision."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from exai.conversations import AppendRequest, MetadataPatch, RecordPatch
from exai.errors import Conflict, InvalidArgument, NotFound
from exai.models import LOCAL_OWNER, ContinuationId, Conversation, NewMessage, Owner
from tests.integration.conversations.conftest import Rig, open_rig
from tests.integration.encryption.conftest import store_of

SESSION, USER, APP = (ContinuationId(name) for name in ("app/anna/1", "user:app/anna", "app:app"))


@pytest.fixture(params=[(), ("k1",)], ids=["plain", "encrypted"])
async def rig(postgres_url: str, redis_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """Directly on the database, without and with encryption."""
    async with open_rig(postgres_url, redis_url, tmp_path, store=store_of(*request.param)) as opened:
        yield opened


def patched(*messages: str, also: dict[ContinuationId, dict[str, Any]] | None = None, **values: Any) -> AppendRequest:
    records = [RecordPatch(name, MetadataPatch(each)) for name, each in (also or {}).items()]
    return AppendRequest(
        LOCAL_OWNER,
        [NewMessage("user", text) for text in messages],
        continuation_id=SESSION,
        create=True,
        patch=MetadataPatch(values) if values else None,
        also=records,
    )


async def conversation_of(rig: Rig, name: ContinuationId = SESSION) -> Conversation:
    """Read from the database, and twice through the cache; all agree."""
    pages = [await rig.app.conversations.read(LOCAL_OWNER, name, limit=limit) for limit in (500, 50, 50)]
    first, *others = (page.conversation for page in pages)
    assert all((each.metadata, each.revision) == (first.metadata, first.revision) for each in others)
    return first


def is_encrypted(rig: Rig) -> bool:
    return rig.app.database.codec.is_on


async def test_messages_and_metadata_change_in_one_statement(rig: Rig) -> None:
    """Also those of other conversations, which are made; with encryption one more reads them."""
    await rig.app.conversations.append(patched("warm", also={ContinuationId("x"): {"a": 1}}, a=1))
    rig.reset()
    request = patched(
        "one", "two", also={USER: {"name": "Anna"}, APP: {"mode": "x", "n": None}}, count=1, kept={"deep": [1]}
    )
    appended = await rig.app.conversations.append(request)
    assert rig.database.round_trips == (2 if is_encrypted(rig) else 1)
    assert rig.cache.round_trips == 1
    assert appended.conversation is not None
    assert appended.conversation.metadata == {"a": 1, "count": 1, "kept": {"deep": [1]}}
    assert [(each.continuation_id, each.metadata) for each in appended.records] == [
        (USER, {"name": "Anna"}),
        (APP, {"mode": "x", "n": None}),
    ]
    again = await rig.app.conversations.append(patched("three", also={APP: {"n": 2}}, kept=None))
    assert again.records[0].metadata == {"mode": "x", "n": 2}
    assert (await conversation_of(rig)).metadata == {"a": 1, "count": 1, "kept": None}
    assert (await conversation_of(rig, APP)).metadata == {"mode": "x", "n": 2}
    page = await rig.app.conversations.read(LOCAL_OWNER, SESSION)
    assert [message.content for message in page.messages] == ["warm", "one", "two", "three"]


async def test_fields_are_removed_before_values_are_set(rig: Rig) -> None:
    """A patch needs no message, and it changes what was cached."""
    await rig.app.conversations.append(patched(a=1, b=2, c=3))
    await conversation_of(rig)
    request = AppendRequest(
        LOCAL_OWNER, [], continuation_id=SESSION, patch=MetadataPatch({"b": 9}, remove=["a", "b", "x"])
    )
    appended = await rig.app.conversations.append(request)
    assert (appended.seqs, appended.created) == ((), False)
    assert (await conversation_of(rig)).metadata == {"b": 9, "c": 3}
    with pytest.raises(NotFound):
        other = AppendRequest(LOCAL_OWNER, [], continuation_id=ContinuationId("no"), patch=MetadataPatch({"b": 9}))
        await rig.app.conversations.append(other)


async def test_concurrent_patches_lose_nothing(rig: Rig) -> None:
    """Of the conversation or of a record that many share; first writers race."""
    names = [ContinuationId(f"s{n % 3}") for n in range(12)]
    requests = [
        AppendRequest(
            LOCAL_OWNER,
            [NewMessage("user", str(number))],
            continuation_id=name,
            create=True,
            patch=MetadataPatch({f"k{number}": number}),
            also=[RecordPatch(USER, MetadataPatch({f"k{number}": number}))],
        )
        for number, name in enumerate(names)
    ]
    await asyncio.gather(*map(rig.app.conversations.append, requests))
    assert (await conversation_of(rig, USER)).metadata == {f"k{number}": number for number in range(12)}


@pytest.mark.parametrize("where", ["session", "record"])
async def test_a_stale_writer_changes_nothing(rig: Rig, where: str) -> None:
    """Neither messages nor any of the metadata; the error names the conversation that has moved on."""
    first = await rig.app.conversations.append(patched("one", also={USER: {"n": 1}, APP: {"n": 1}}, n=1))
    revision = first.records[0].revision
    await rig.app.conversations.append(patched("two", also={USER: {"n": 2}}, n=2))
    request = AppendRequest(
        LOCAL_OWNER,
        [NewMessage("user", "late")],
        continuation_id=SESSION,
        create=True,
        expected_revision=first.revision if where == "session" else None,
        patch=MetadataPatch({"n": 3}),
        also=[
            RecordPatch(APP, MetadataPatch({"n": 3})),
            RecordPatch(USER, MetadataPatch({"n": 3}), revision if where == "record" else None),
            RecordPatch(ContinuationId("new"), MetadataPatch({"n": 3})),
        ],
    )
    with pytest.raises(Conflict, match="moved on") as refused:
        await rig.app.conversations.append(request)
    assert refused.value.facts["continuation_id"] == (SESSION if where == "session" else USER)
    assert [(await conversation_of(rig, name)).metadata["n"] for name in (SESSION, USER, APP)] == [2, 2, 1]
    assert len((await rig.app.conversations.read(LOCAL_OWNER, SESSION)).messages) == 2
    with pytest.raises(NotFound):
        await rig.app.conversations.read(LOCAL_OWNER, ContinuationId("new"))


async def test_repeated_request_patches_once(rig: Rig) -> None:
    """A lost reply, or a client's retry, does not set a value again that was changed since."""
    request = patched("one", also={USER: {"n": 1}}, n=1)
    request = AppendRequest(
        **{name: getattr(request, name) for name in request.__dataclass_fields__} | {"idempotency_key": "k"}
    )
    rig.database.lose_reply_to("append_v1")
    first = await rig.app.conversations.append(request)
    assert (first.duplicate, first.records[0].metadata) == (False, {"n": 1})
    await rig.app.conversations.append(patched(also={USER: {"n": 2}}, n=2))
    again = await rig.app.conversations.append(request)
    assert again.duplicate
    assert [(await conversation_of(rig, name)).metadata for name in (SESSION, USER)] == [{"n": 2}, {"n": 2}]


async def test_records_belong_to_their_owner(rig: Rig) -> None:
    """A record of the same name of another owner is another one."""
    await rig.app.conversations.append(patched(also={APP: {"secret": 1}}))
    theirs = AppendRequest(
        Owner("other"), [], continuation_id=SESSION, create=True, also=[RecordPatch(APP, MetadataPatch({"mine": 2}))]
    )
    assert (await rig.app.conversations.append(theirs)).records[0].metadata == {"mine": 2}
    assert (await conversation_of(rig, APP)).metadata == {"secret": 1}


async def test_metadata_do_not_grow_beyond_their_limit(rig: Rig) -> None:
    """By many small patches; those that remove as much are possible."""
    most = rig.app.settings.limits.metadata_bytes
    half = "x" * (most // 2)
    await rig.app.conversations.append(patched(a=half, b="x" * (most * 4 // 10)))
    request = AppendRequest(LOCAL_OWNER, [], continuation_id=SESSION, patch=MetadataPatch({"c": 1}, remove=["b"]))
    await rig.app.conversations.append(request)
    with pytest.raises(InvalidArgument, match="larger than the limit"):
        await rig.app.conversations.append(patched("lost", b=half))
    with pytest.raises(InvalidArgument, match="larger than the limit"):
        await rig.app.conversations.append(
            AppendRequest(
                LOCAL_OWNER,
                [],
                continuation_id=ContinuationId("new"),
                create=True,
                also=[RecordPatch(SESSION, MetadataPatch({"b": half}))],
            )
        )
    request = AppendRequest(LOCAL_OWNER, [], continuation_id=SESSION, patch=MetadataPatch({"b": half}, remove=["a"]))
    await rig.app.conversations.append(request)
    assert (await conversation_of(rig)).last_seq == 0


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"continuation_id": None, "create": False, "patch": MetadataPatch({"a": 1})}, "patch"),
        ({"patch": MetadataPatch({"a": float("nan")})}, "patch.values"),
        ({"patch": MetadataPatch({}, remove=["a\0"])}, r"patch.remove\[0\]"),
        ({"also": [RecordPatch(SESSION, MetadataPatch({}))]}, r"also\[0\].continuation_id"),
        ({"also": [RecordPatch(ContinuationId(""), MetadataPatch({}))]}, r"also\[0\].continuation_id"),
        ({"also": [RecordPatch(ContinuationId(str(n)), MetadataPatch({})) for n in range(9)]}, "also"),
        ({"also": ["x"]}, r"also\[0\]"),
    ],
)
async def test_bad_patches_are_refused_by_their_field(rig: Rig, facts: dict[str, Any], field: str) -> None:
    rig.reset()
    with pytest.raises(InvalidArgument, match=field):
        await rig.app.conversations.append(
            AppendRequest(**{"owner": LOCAL_OWNER, "messages": [], "continuation_id": SESSION, "create": True} | facts)
        )
    assert rig.database.round_trips == 0
