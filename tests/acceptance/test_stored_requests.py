"""Requests that clients store in the database: daemons that no client can connect to answer them there."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from exai.db.driver.pool import OneTrip
from tests.support.daemon import Daemon, start_daemon
from tests.support.database import new_id
from tests.support.migrations import session
from tests.support.provider_server import ProviderServer, chunk, kimi_answer, stream

ANNA, BERT = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
LIMIT_S = 30.0

Start = Callable[..., Daemon]


@pytest.fixture
def settings(provider: ProviderServer, postgres_url: str, redis_url: str, tmp_path: Path) -> dict[str, str]:
    return {
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "KIMI_API_KEY": "sk-test",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
        "EXAI_PROVIDERS__MAX_ATTEMPTS": "1",
    }


@pytest.fixture
async def sql(postgres_url: str) -> AsyncIterator[OneTrip]:
    async with session(postgres_url) as connection:
        yield connection


async def ask(sql: OneTrip, owner: str, tool: str = "chat", left_s: float | None = None, **arguments: Any) -> str:
    """Store a request as a client's insert does."""
    request = new_id()
    await sql.execute(
        "insert into requests (id, owner, tool, arguments, deadline_at)"
        " values ($1::uuid, $2::text, $3::text, $4::jsonb, now() + make_interval(secs => $5::double precision))",
        request, owner, tool, json.dumps(arguments), left_s,
    )  # fmt: skip
    return request


async def row_of(sql: OneTrip, request: str) -> dict[str, Any]:
    row = await sql.fetchrow("select * from requests where id = $1::uuid", request)
    assert row is not None
    found = dict(row)
    for name in ("result", "error"):
        found[name] = json.loads(found[name]) if isinstance(found[name], str) else found[name]
    return found


async def until(sql: OneTrip, request: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait until the row of a request is as a client waits for it."""
    row: dict[str, Any] = {}
    try:
        async with asyncio.timeout(LIMIT_S):
            while not condition(row := await row_of(sql, request)):
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"the request is still {row}")
    return row


def is_done(row: dict[str, Any]) -> bool:
    return row["state"] in ("done", "failed")


def is_running(row: dict[str, Any]) -> bool:
    return row["state"] == "running"


async def ended(sql: OneTrip, request: str) -> dict[str, Any]:
    return await until(sql, request, is_done)


def metric(daemon: Daemon, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{daemon.port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"exai_{name}"))


async def test_a_stored_question_is_one_turn_of_its_owner(
    settings: dict[str, str], sql: OneTrip, provider: ProviderServer
) -> None:
    """The answer is in the row, and the conversation is that of every other client of the owner."""
    first = await ask(sql, ANNA, prompt="How are you?")
    with start_daemon(settings, ["--requests"]) as daemon:
        row = await ended(sql, first)
        assert (row["state"], row["error"], row["attempt"]) == ("done", None, 1)
        assert "How are you?" in row["answer"]
        assert row["continuation_id"] == row["result"]["continuation_id"]
        assert await sql.fetchval("select request_key from turns") == f"request:{first}"
        assert [tuple(each) for each in await sql.fetch("select owner, continuation_id from conversations")] == [
            (ANNA, row["continuation_id"])
        ]
        second = await ended(sql, await ask(sql, ANNA, prompt="And now?", continuation_id=row["continuation_id"]))
        assert second["state"] == "done"
        assert len(provider.chats) == 2
        theirs = await ended(sql, await ask(sql, BERT, "conversation_get", continuation_id=row["continuation_id"]))
        assert (theirs["state"], theirs["error"]["code"]) == ("failed", "not_found")
        listed = await ended(sql, await ask(sql, BERT, "conversation_list"))
        assert listed["result"]["conversations"] == []
        listed = await ended(sql, await ask(sql, ANNA, "conversation_list"))
        assert len(listed["result"]["conversations"]) == 1
        assert metric(daemon, 'requests_claimed_total{outcome="done"}') == 4
        assert metric(daemon, "requests_waiting") == 0


async def test_arguments_are_understood_and_errors_are_those_of_every_call(
    settings: dict[str, str], sql: OneTrip
) -> None:
    """The call passes through the same validation as one over a WebSocket."""
    with start_daemon(settings, ["--requests"]):
        text = await ended(sql, await ask(sql, ANNA, "conversation_list", limit="5"))
        assert text["state"] == "done"
        wrong = await ended(sql, await ask(sql, ANNA, "chat"))
        assert (wrong["state"], wrong["error"]["code"]) == ("failed", "invalid_argument")
        assert "prompt" in wrong["answer"]
        unknown = await ended(sql, await ask(sql, ANNA, "chatt", prompt="x"))
        assert "Did you mean chat" in unknown["error"]["message"]
        deep = new_id()
        await sql.execute(
            "insert into requests (id, owner, tool, arguments) values ($1::uuid, $2::text, 'version',"
            " ('{\"a\": ' || repeat('[', 2000) || repeat(']', 2000) || '}')::jsonb)",
            deep, ANNA,
        )  # fmt: skip
        assert (await ended(sql, deep))["state"] == "failed"


async def test_an_answer_grows_in_its_row(settings: dict[str, str], sql: OneTrip, provider: ProviderServer) -> None:
    """A client that reads the row again sees what there is so far, and how it goes on."""
    provider.script(
        stream(chunk({"content": "The first half"}), "gate", chunk({"content": ", the rest"}, finish="stop"))
    )
    with start_daemon(settings, ["--requests"]):
        request = await ask(sql, ANNA, prompt="Tell me")
        row = await until(sql, request, lambda row: bool(row["partial"]) and bool(row["progress"]))
        assert (row["state"], row["partial"]) == ("running", "The first half")
        assert "kimi" in row["progress"]
        provider.gate.set()
        row = await ended(sql, request)
        assert (row["partial"], row["progress"]) == (None, None)
        assert "The first half, the rest" in row["answer"]


async def test_a_cancelled_request_ends_its_call(
    settings: dict[str, str], sql: OneTrip, provider: ProviderServer
) -> None:
    """The model is no longer asked, and nothing overwrites the state."""
    provider.script(stream(chunk({"content": "Half"}), "hang"))
    with start_daemon(settings, ["--requests"]) as daemon:
        request = await ask(sql, ANNA, prompt="Tell me")
        received = await provider.arrived(1)
        await sql.execute("update requests set state = 'cancelled' where id = $1::uuid", request)
        async with asyncio.timeout(LIMIT_S):
            await received.gone.wait()
        waiting = await ask(sql, ANNA, prompt="Next")
        assert (await ended(sql, waiting))["state"] == "done"
        assert (await row_of(sql, request))["state"] == "cancelled"
        assert (
            await sql.fetchval("select state from turns where request_key = $1::text", f"request:{request}") == "failed"
        )
        assert metric(daemon, 'requests_claimed_total{outcome="cancelled"}') == 1


async def test_a_deadline_ends_a_request_that_waits_or_runs(
    settings: dict[str, str], sql: OneTrip, provider: ProviderServer
) -> None:
    """Its client no longer wants the answer then."""
    provider.script(stream(chunk({"content": "Half"}), "hang"))
    late = await ask(sql, ANNA, left_s=-1.0, prompt="Too late")
    with start_daemon(settings, ["--requests"]):
        row = await ended(sql, late)
        assert (row["state"], row["error"]["code"]) == ("failed", "deadline_exceeded")
        assert provider.chats == []
        row = await ended(sql, await ask(sql, ANNA, left_s=2.0, prompt="Hurry"))
        assert (row["state"], row["error"]["code"]) == ("failed", "deadline_exceeded")


async def test_two_daemons_answer_each_request_once(
    settings: dict[str, str], sql: OneTrip, provider: ProviderServer
) -> None:
    """Both claim from the same queue at the same time."""
    questions = [f"question {number}" for number in range(30)]
    requests = [await ask(sql, (ANNA, BERT)[index % 2], prompt=each) for index, each in enumerate(questions)]
    with start_daemon(settings, ["--requests"]), start_daemon(settings, ["--requests"]):
        rows = [await ended(sql, each) for each in requests]
    assert {row["state"] for row in rows} == {"done"}
    assert {row["attempt"] for row in rows} == {1}
    asked = [each.body["messages"][-1]["content"] for each in provider.chats]
    assert sorted(asked) == sorted(questions)


async def test_a_request_of_a_killed_daemon_is_the_same_turn_of_the_next_one(
    settings: dict[str, str], sql: OneTrip, provider: ProviderServer
) -> None:
    """Claimed, its turn begun and its model asked when the daemon dies: nothing is stored twice."""
    provider.script(stream(chunk({"content": "Half"}), "hang"), kimi_answer("Whole"))
    request = await ask(sql, ANNA, prompt="Tell me")
    with start_daemon(settings, ["--requests"]) as daemon:
        await provider.arrived(1)
        daemon.kill()
    assert (await row_of(sql, request))["state"] == "running"
    # As after the leases' time.
    await sql.execute("update requests set lease_until = now()")
    await sql.execute("update turns set lease_until = now()")
    with start_daemon(settings, ["--requests"]):
        row = await ended(sql, request)
    assert (row["state"], row["attempt"]) == ("done", 2)
    assert "Whole" in row["answer"]
    assert [tuple(each) for each in await sql.fetch("select state, attempt from turns")] == [("finished", 2)]
    assert [each[0] for each in await sql.fetch("select role from messages order by seq")] == ["user", "assistant"]


async def test_a_request_whose_outcome_was_lost_costs_no_second_call(
    settings: dict[str, str], sql: OneTrip, provider: ProviderServer
) -> None:
    """The daemon died between the end of the turn and the end of the request."""
    request = await ask(sql, ANNA, prompt="Tell me")
    with start_daemon(settings, ["--requests"]) as daemon:
        before = await ended(sql, request)
        daemon.kill()
    await sql.execute(
        "update requests set state = 'running', finished_at = null, answer = null, result = null,"
        " claimed_by = gen_random_uuid(), lease_until = now()"
    )
    with start_daemon(settings, ["--requests"]):
        after = await ended(sql, request)
    assert (after["state"], after["attempt"], after["continuation_id"]) == ("done", 2, before["continuation_id"])
    assert len(provider.chats) == 1
    assert await sql.fetchval("select count(*) from turns") == 1


async def test_a_stopping_daemon_gives_its_requests_back(
    settings: dict[str, str], sql: OneTrip, provider: ProviderServer
) -> None:
    """Another one may claim them at once, as the first attempt."""
    provider.script(stream(chunk({"content": "Half"}), "hang"))
    request = await ask(sql, ANNA, prompt="Tell me")
    with start_daemon({**settings, "EXAI_SERVER__SHUTDOWN_GRACE_S": "0"}, ["--requests"]) as daemon:
        await provider.arrived(1)
        assert daemon.stop() == 0
    row = await row_of(sql, request)
    assert (row["state"], row["attempt"], row["claimed_by"]) == ("queued", 0, None)


async def test_a_passing_failure_is_retried_and_a_third_one_is_the_outcome(
    settings: dict[str, str], sql: OneTrip, provider: ProviderServer
) -> None:
    """With a pause between the attempts, which the row shows."""
    provider.script(stream(chunk({"content": "Half"}), "rst"))
    with start_daemon(settings, ["--requests"]):
        request = await ask(sql, ANNA, prompt="Tell me")
        row = await until(sql, request, lambda row: row["state"] == "queued" and row["not_before"] is not None)
        assert row["attempt"] == 1
        await sql.execute("update requests set not_before = now()")
        row = await ended(sql, request)
        assert (row["state"], row["attempt"]) == ("done", 2)
        await sql.execute("insert into requests (owner, tool, attempt) values ($1::text, 'version', 3)", ANNA)
        worn_out = await sql.fetchval("select id::text from requests where tool = 'version'")
        assert (await ended(sql, worn_out))["error"]["code"] == "attempts"


async def test_without_the_setting_nothing_is_claimed(settings: dict[str, str], sql: OneTrip) -> None:
    """A daemon that is reachable must not be asked through the database by accident."""
    request = await ask(sql, ANNA, "version")
    with start_daemon(settings):
        assert (await row_of(sql, request))["state"] == "queued"
    with start_daemon({**settings, "EXAI_REQUESTS__ENABLED": "true"}):
        assert (await ended(sql, request))["state"] == "done"


async def test_tools_that_ask_models_in_steps(settings: dict[str, str], sql: OneTrip, provider: ProviderServer) -> None:
    """Every tool can be asked, not only chat."""
    with start_daemon(settings, ["--requests"]):
        row = await ended(sql, await ask(sql, ANNA, "thinkdeep", prompt="Why is the sky blue?"))
        assert row["state"] == "done", row
        assert row["continuation_id"]
        appended = await ended(
            sql,
            await ask(
                sql, ANNA, "conversation_append", continuation_id=row["continuation_id"],
                messages=[{"role": "user", "content": "noted"}],
            ),
        )  # fmt: skip
        assert appended["state"] == "done"
