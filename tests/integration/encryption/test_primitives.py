"""Rewinds, names used again, keys and items with encryption: what is moved or renamed can still be decrypted."""

from __future__ import annotations

from exai.conversations import AppendRequest
from exai.errors import Conflict
from exai.items import dump_item
from exai.models import LOCAL_OWNER, ContinuationId, Message, NewMessage
from tests.integration.conversations.conftest import Rig

NAME, FORK = ContinuationId("session"), ContinuationId("fork")


async def append(rig: Rig, letters: str, name: ContinuationId = NAME) -> None:
    messages = [
        NewMessage("user", each, metadata={"of": each}, key=each, item=dump_item(f"{each}\0")) for each in letters
    ]
    request = AppendRequest(LOCAL_OWNER, messages, continuation_id=name, create=True, title="Title", metadata={"a": 1})
    await rig.app.conversations.append(request)


def text_of(messages: tuple[Message, ...]) -> str:
    """The letters of messages that are whole."""
    assert [(each.item, each.metadata["of"]) for each in messages] == [(dump_item(f"{m[2]}\0"), m[2]) for m in messages]
    return "".join(message.content for message in messages)


async def shown(rig: Rig, name: ContinuationId = NAME) -> str:
    for _ in range(2):
        page = await rig.app.conversations.read(LOCAL_OWNER, name)
        assert (page.conversation.title, page.conversation.metadata) == ("Title", {"a": 1})
    return text_of(page.messages)


async def test_cut_messages_are_decrypted_in_the_result_and_when_restored(rig: Rig) -> None:
    """Also those of a fork, below the message at which it was forked, and after several rewinds."""
    await append(rig, "abcde")
    await rig.app.conversations.fork(LOCAL_OWNER, NAME, at_seq=3, name=FORK)
    await append(rig, "xyz", FORK)
    for name, whole, steps in ((NAME, "abcde", (3, 1)), (FORK, "abcxyz", (4, 2)), (FORK, "ab12", (0,))):
        end = len(whole)
        for to in steps:
            rewound = await rig.app.conversations.rewind(LOCAL_OWNER, name, to_seq=to)
            assert text_of(rewound.cut) == whole[to:end]
            end = to
        assert await shown(rig, name) == whole[:end]
        assert rewound.cut_id is not None
        await rig.app.conversations.restore(LOCAL_OWNER, rewound.cut_id)
        assert await shown(rig, rewound.cut_id) == whole
        await append(rig, "12", name)
        assert await shown(rig, name) == whole[:end] + "12"


async def test_a_renamed_conversation_is_decrypted(rig: Rig) -> None:
    """Its title and metadata were encrypted under its former name."""
    await append(rig, "old")
    await rig.app.conversations.delete(LOCAL_OWNER, NAME)
    await append(rig, "new")
    assert await shown(rig) == "new"
    try:
        await rig.app.conversations.restore(LOCAL_OWNER, NAME)
    except Conflict as error:
        name = ContinuationId(error.facts["continuation_id"])
    await rig.app.conversations.restore(LOCAL_OWNER, name)
    assert await shown(rig, name) == "old"


async def test_messages_are_found_by_their_keys_and_skipped(rig: Rig) -> None:
    """Keys are compared in the database."""
    await append(rig, "abc")
    await append(rig, "cd")
    found = await rig.app.conversations.find(LOCAL_OWNER, ["d", "a"])
    assert text_of(tuple(each.message for each in found)) == "da"
    assert await shown(rig) == "abcd"
