"""Every provider fault is reported, the question and the failure are stored, and the conversation continues."""

from __future__ import annotations

import pytest

from tests.support.client import call, connect, refused
from tests.support.daemon import Daemon
from tests.support.migrations import session as database
from tests.support.provider_server import (
    ProviderServer,
    Reply,
    break_after_first_token,
    hang_after_first_token,
    hang_before_headers,
    kimi_answer,
    kimi_error,
)

TRACE = {"request_id": "trace-kimi-1"}
CHUNK = {"request_id": "chatcmpl-1"}

FAULTS: dict[str, tuple[list[Reply], str, str | None, dict[str, object]]] = {
    "a wrong key": (
        [kimi_error(401, "invalid_authentication_error")],
        "provider_auth_failed",
        None,
        {"status": 401, **TRACE},
    ),
    "a rate limit that outlasts the call": (
        [kimi_error(429, "rate_limit_reached_error", headers={"Retry-After": "120"})],
        "provider_limited",
        None,
        {"status": 429, "retry_after_s": 120, **TRACE},
    ),
    "an internal error": (
        [kimi_error(500, "server_error")] * 2,
        "provider_unavailable",
        None,
        {"status": 500, **TRACE},
    ),
    "a stream that breaks": ([break_after_first_token()], "provider_broken", "Hel", CHUNK),
    "a provider that never answers": ([hang_before_headers()], "provider_unavailable", None, {}),
    "a stream that hangs": ([hang_after_first_token()], "provider_broken", "Hel", CHUNK),
}
"""The fault, the code of the error, the partial answer that is kept, and the further fields of the error."""

OUTCOMES = "select state, error ->> 'code' as code from public.turns where tool = 'chat' order by started_at"


@pytest.mark.parametrize("fault", FAULTS)
async def test_failed_turn_is_reported_and_stored_and_the_conversation_continues(
    fault: str, daemon: Daemon, provider: ProviderServer, postgres_url: str
) -> None:
    """Invariant of a turn: its outcome is stored for every kind of end, and the question stays."""
    replies, code, partial, facts = FAULTS[fault]
    script = [*replies, kimi_answer("Better now.", reasoning="")]
    provider.script(kimi_answer("Hello.", reasoning=""), *script)
    async with connect(daemon.url) as session:
        first = await call(session, "chat", prompt="Hi")
        continued = first["continuation_id"]
        error = await refused(session, "chat", prompt="Does it work?", continuation_id=continued)
        assert error["code"] == code
        assert error["message"].startswith("kimi: ")
        assert {"provider": "kimi", **facts}.items() <= error.items()
        page = await call(session, "conversation_get", continuation_id=continued)
        stored = [(message["role"], message["content"], message["kind"]) for message in page["messages"]]
        assert stored[2] == ("user", "Does it work?", "message")
        assert stored[3:] == ([("assistant", partial, "partial")] if partial else [])

        third = await call(session, "chat", prompt="And now?", continuation_id=continued, model="glm-5.3")
    assert third["content"] == "Better now."
    assert [part["content"] for part in provider.chats[-1].body["messages"]] == [
        "Hi",
        "Hello.",
        "Does it work?",
        "And now?",
    ]
    async with database(postgres_url) as connection:
        outcomes = [(row["state"], row["code"]) for row in await connection.fetch(OUTCOMES)]
    assert outcomes == [("finished", None), ("failed", code), ("finished", None)]


async def test_failed_turn_can_be_run_again_with_its_key(daemon: Daemon, provider: ProviderServer) -> None:
    """The same key after a failure is the same turn: the question is not stored twice."""
    provider.script(kimi_error(400, "invalid_request_error"), kimi_answer("Second try.", reasoning=""))
    async with connect(daemon.url) as session:
        started = await call(session, "conversation_append", messages=[{"role": "user", "content": "Before"}])
        request = {"prompt": "Once", "continuation_id": started["continuation_id"], "idempotency_key": "key-1"}
        await refused(session, "chat", **request)
        answer = await call(session, "chat", **request)
        again = await call(session, "chat", **request)
        page = await call(session, "conversation_get", continuation_id=started["continuation_id"])
    assert [message["content"] for message in page["messages"]] == ["Before", "Once", "Second try."]
    assert (answer["duplicate"], again["duplicate"]) == (False, True)
    assert again["content"] == "Second try."
    assert again["seq"] == answer["seq"] == 3
    assert len(provider.chats) == 2


async def test_chat_without_a_provider_names_the_variables(postgres_url: str, redis_url: str) -> None:
    """Everything but chat works without any key."""
    from tests.support.daemon import start_daemon

    with start_daemon({"EXAI_DATABASE__URL": postgres_url, "EXAI_CACHE__URL": redis_url}) as daemon:
        async with connect(daemon.url) as session:
            error = await refused(session, "chat", prompt="Hi")
            stored = await call(session, "conversation_append", messages=[{"role": "user", "content": "kept"}])
            models = await call(session, "listmodels")
    assert error["code"] == "not_configured"
    assert "KIMI_API_KEY" in error["message"]
    assert "GLM_API_KEY" in error["message"]
    assert stored["last_seq"] == 1
    assert not any(model["configured"] for model in models["models"])
