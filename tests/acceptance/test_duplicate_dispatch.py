"""A client that sends a chat again while it runs, end to end: one turn, one model call."""

from __future__ import annotations

import asyncio

from tests.support.client import call, connect
from tests.support.daemon import Daemon
from tests.support.provider_server import ProviderServer, kimi_answer, stream


async def test_a_chat_sent_twice_is_one_turn_and_one_model_call(daemon: Daemon, provider: ProviderServer) -> None:
    """The client repeats the call without an idempotency key."""
    provider.script(stream("gate", *kimi_answer("Four.").steps))
    async with connect(daemon.url) as session:
        first = asyncio.create_task(call(session, "chat", prompt="Two and two?"))
        await provider.arrived(1)
        second = asyncio.create_task(call(session, "chat", prompt="Two and two?"))
        # Messages of one connection are taken in order, so this answer says that the second has been.
        await call(session, "version")
        provider.gate.set()
        answers = [await first, await second]
        listed = await call(session, "conversation_list")
    assert answers[0] == answers[1]
    assert len(provider.chats) == 1
    assert [each["messages"] for each in listed["conversations"]] == [2]
