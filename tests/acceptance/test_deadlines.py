"""A chat that outlasts its client: it is answered at the client's deadline, and its answer is read later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, start_daemon
from tests.support.provider_server import ProviderServer, kimi_answer, stream
from tests.support.stateless import Stateless, stateless

LIMIT_S = 20.0


@pytest.fixture
def daemon(provider: ProviderServer, postgres_url: str, redis_url: str, tmp_path: Path) -> Iterator[Daemon]:
    settings = {
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "KIMI_API_KEY": "sk-test",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
        "EXAI_PROVIDERS__MAX_ATTEMPTS": "1",
        "EXAI_SERVER__CALL_DEADLINES": '{"*": 0.5}',
    }
    with start_daemon(settings) as running:
        yield running


async def newest(client: Stateless, name: str, count: int) -> dict[str, Any]:
    """The newest message of a conversation once it has so many."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            found = (await client.call("conversation_get", continuation_id=name))["structuredContent"]
            if len(found["messages"]) >= count:
                message = found["messages"][-1]
                assert isinstance(message, dict)
                return message
            await asyncio.sleep(0.02)


async def test_an_answer_after_the_clients_deadline_is_stored_and_read_later(
    provider: ProviderServer, daemon: Daemon
) -> None:
    """The call ends in time with the handle for the next one; the model is asked once."""
    provider.script(stream("gate", *kimi_answer("Four.").steps))
    async with stateless(f"http://127.0.0.1:{daemon.port}", capabilities={}) as client:
        found = await client.call("chat", prompt="Two and two?")
        early = found["structuredContent"]
        assert (early["complete"], found["isError"]) == (False, False)
        name, key = early["continuation_id"], early["idempotency_key"]
        text = found["content"][0]["text"]
        assert text.startswith(f"continuation_id: {name}")
        assert "complete: false" in text
        assert name in early["next"]
        assert key in early["next"]
        waiting = await client.call("chat", prompt="Two and two?", idempotency_key=key)
        assert waiting["structuredContent"]["complete"] is False
        assert waiting["structuredContent"]["continuation_id"] == name
        provider.gate.set()
        assert (await newest(client, name, 2))["content"] == "Four."
        again = (await client.call("chat", prompt="Two and two?", idempotency_key=key))["structuredContent"]
        assert (again["content"], again["duplicate"]) == ("Four.", True)
    assert sum(each.path.endswith("/chat/completions") for each in provider.received) == 1


async def test_a_failure_after_the_clients_deadline_is_found_in_the_conversation(
    provider: ProviderServer, daemon: Daemon
) -> None:
    """A client that waits for the answer receives an error with the reason."""
    provider.script(stream("gate", "rst"))
    async with stateless(f"http://127.0.0.1:{daemon.port}", capabilities={}) as client:
        early = (await client.call("chat", prompt="Two and two?"))["structuredContent"]
        assert early["complete"] is False
        provider.gate.set()
        assert (await newest(client, early["continuation_id"], 2))["kind"] == "failed"


async def test_a_consensus_after_the_clients_deadline_is_stored_and_read_later(
    provider: ProviderServer, daemon: Daemon
) -> None:
    """The number of missing answers in the reply is correct while only one member has answered."""
    for number in (1, 2):
        provider.script(stream("gate", *kimi_answer(f"Opinion {number}.").steps))
    provider.script(kimi_answer("The synthesis."))
    asked = {"prompt": "Postgres or SQLite?", "models": ["kimi-k3", "kimi-k3"]}
    async with stateless(f"http://127.0.0.1:{daemon.port}", capabilities={}) as client:
        found = await client.call("consensus", **asked)
        early = found["structuredContent"]
        assert (early["complete"], found["isError"]) == (False, False)
        assert "message of kind answer will be the synthesis" in early["next"]
        repeated = await client.call("consensus", **asked, idempotency_key=early["idempotency_key"])
        waiting = repeated["structuredContent"]
        assert (waiting["complete"], repeated["isError"]) == (False, False)
        assert waiting["continuation_id"] == early["continuation_id"]
        provider.gate.set()
        read = await newest(client, early["continuation_id"], 4)
        assert (read["kind"], read["content"]) == ("answer", "The synthesis.")
        again = await client.call("consensus", **asked, idempotency_key=early["idempotency_key"])
        whole = again["structuredContent"]
        assert (whole["complete"], whole["duplicate"], whole["seq"]) == (True, True, 4)
        assert (whole["content"], [each["state"] for each in whole["answers"]]) == ("The synthesis.", ["answered"] * 2)
    assert len(provider.chats) == 3
