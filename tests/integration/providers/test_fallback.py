"""The chain of models that a user has set: which failures it is followed for, and what its answer states."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from exai.errors import ConfigError, ProviderAuthFailed, ProviderError, ProviderLimited, ProviderUnavailable
from exai.fairness import request_owner
from exai.models import CompletionRequest, Owner, Prompt
from tests.integration.providers.conftest import KEY, Asker, Heard, OpenProviders, Pauses
from tests.support.provider_server import (
    ProviderServer,
    Reply,
    break_after_first_token,
    break_before_headers,
    chunk,
    event,
    failure,
    glm_error,
    kimi_error,
    stream,
)

CHAIN = ["kimi-k3.1-pro", "glm-5.3"]


@pytest.fixture
async def second() -> AsyncIterator[ProviderServer]:
    """A stand-in for GLM, beside the one for Kimi."""
    async with ProviderServer() as running:
        yield running


def chained(opened: OpenProviders, second: ProviderServer, **settings: Any) -> Any:
    glm = {"api_key": KEY, "base_url": second.base_url}
    return opened(**{"glm": glm, "fallback": CHAIN, "max_attempts": 1, **settings})


def asked(server: ProviderServer) -> list[str]:
    return [request.body["model"] for request in server.chats]


FOLLOWED = {
    "overloaded": kimi_error(429, "engine_overloaded_error"),
    "rate limit": kimi_error(429, "rate_limit_reached_error"),
    "rate limit for minutes": kimi_error(429, "rate_limit_reached_error", headers={"retry-after": "300"}),
    "outage": failure(503),
    "bad gateway": failure(502, "<html><title>Bad Gateway</title></html>"),
    "unknown model": kimi_error(404, "resource_not_found_error"),
    "no connection": break_before_headers("rst"),
    "no answer": stream(event("[DONE]")),
    "error before the first piece": stream(event({"error": {"code": 503, "message": "no"}})),
}


@pytest.mark.parametrize("reply", FOLLOWED.values(), ids=FOLLOWED.keys())
async def test_next_model_answers_and_the_answer_says_so(
    server: ProviderServer, second: ProviderServer, opened: OpenProviders, reply: Reply
) -> None:
    """Overload, outage and unknown model; the answer names the model and the reason."""
    server.script(reply)
    heard = Heard()
    async with chained(opened, second) as providers:
        completion = await Asker(providers)("kimi-k3.1-pro", on_delta=heard)
        model = providers.answered(providers.resolve("kimi-k3.1-pro"), completion)
    assert (completion.answered_by, completion.instead_of, completion.provider) == ("glm-5.3", "kimi-k3.1-pro", "glm")
    assert model.name == "glm-5.3"
    assert completion.notes[0].startswith("glm-5.3 answered instead of kimi-k3.1-pro: kimi ")
    assert any("asking glm-5.3, because kimi-k3.1-pro" in delta.note for delta in heard.pieces)
    assert "".join(delta.content for delta in heard.pieces) == completion.content
    assert (asked(server), asked(second)) == (["kimi-k3.1-pro"], ["glm-5.3"])


NOT_FOLLOWED = {
    "quota": (kimi_error(429, "exceeded_current_quota_error"), ProviderLimited),
    "balance": (failure(403), ProviderLimited),
    "key": (kimi_error(401, "invalid_authentication_error"), ProviderAuthFailed),
    "content": (kimi_error(400, "content_filter"), ProviderError),
    "after the first piece": (break_after_first_token(), ProviderError),
    "after the first thought": (stream(chunk({"reasoning_content": "hm"}), "fin"), ProviderError),
}


@pytest.mark.parametrize(("reply", "error"), NOT_FOLLOWED.values(), ids=NOT_FOLLOWED.keys())
@pytest.mark.parametrize("attempts", [1, 3])
async def test_no_other_model_is_asked(
    server: ProviderServer,
    second: ProviderServer,
    opened: OpenProviders,
    reply: Reply,
    error: type[ProviderError],
    attempts: int,
) -> None:
    """Quota, balance, key and refused content are the caller's to mend; a piece of the answer is never followed by
    another model's. None of them is sent again.
    """
    server.script(reply)
    async with chained(opened, second, max_attempts=attempts) as providers:
        with pytest.raises(error):
            await Asker(providers)("kimi-k3.1-pro")
    assert (asked(server), asked(second)) == (["kimi-k3.1-pro"], [])


async def test_without_a_chain_the_failure_is_the_answer(
    server: ProviderServer, second: ProviderServer, opened: OpenProviders
) -> None:
    """Nothing falls back in silence."""
    server.script(failure(503))
    async with chained(opened, second, fallback=[]) as providers:
        with pytest.raises(ProviderUnavailable):
            await Asker(providers)("kimi-k3.1-pro")
    assert asked(second) == []


async def test_member_of_a_panel_is_not_replaced(
    server: ProviderServer, second: ProviderServer, opened: OpenProviders
) -> None:
    """A replacement may be another member, which would answer twice."""
    server.script(failure(503))
    async with chained(opened, second) as providers:
        model = providers.resolve("kimi-k3")
        request = CompletionRequest(model.name, [Prompt("user", "hello")])
        with pytest.raises(ProviderUnavailable):
            await providers.complete(model, request, None, may_replace=False)
    assert asked(second) == []


async def test_chain_is_followed_to_its_end_and_the_error_names_all(
    server: ProviderServer, second: ProviderServer, opened: OpenProviders
) -> None:
    """The first error is raised; a model that is not configured is passed over."""
    server.default = lambda _body: failure(503)
    second.default = lambda _body: glm_error(429, "1305")
    chain = ["deepseek-v4-pro", "kimi-k3", "glm-5.3", "kimi-k3.1-pro"]
    async with chained(opened, second, fallback=chain) as providers:
        with pytest.raises(ProviderUnavailable) as raised:
            await Asker(providers)("kimi-k3.1-pro")
    assert asked(server) == ["kimi-k3.1-pro", "kimi-k3"]
    assert asked(second) == ["glm-5.3"]
    assert "kimi-k3: " in str(raised.value)
    assert "glm-5.3: glm is overloaded" in str(raised.value)


async def test_options_and_prompts_that_the_next_model_does_not_take_are_left_out_or_not_sent(
    server: ProviderServer, second: ProviderServer, opened: OpenProviders
) -> None:
    """The answer names the omitted options; a prompt above a window is not sent."""
    server.default = lambda _body: failure(503)
    async with chained(opened, second, fallback=["glm-4.7"]) as providers:
        ask = Asker(providers)
        completion = await ask("kimi-k3", thinking="low", max_output_tokens=1_000_000)
        body = second.chats[0].body
        assert (body["max_tokens"], "reasoning_effort" in body, "thinking" in body) == (131_072, False, False)
        assert "glm-4.7 cannot be asked for thinking 'low', so that it was left out" in completion.notes
        with pytest.raises(ProviderUnavailable, match=r"glm-4\.7 was not asked, because the prompt does not fit"):
            await ask("kimi-k3", messages=[Prompt("user", "x" * 900_000)])
    assert len(second.chats) == 1


async def test_long_pause_is_not_waited_for_while_another_model_is_left(
    server: ProviderServer, second: ProviderServer, opened: OpenProviders, pauses: Pauses
) -> None:
    """A Retry-After of a minute, also in later calls; without a chain it is honoured."""
    server.script(kimi_error(429, "rate_limit_reached_error", headers={"retry-after": "60"}))
    async with chained(opened, second, max_attempts=3) as providers:
        for _ in range(2):
            assert (await Asker(providers)("kimi-k3.1-pro")).provider == "glm"
    assert pauses.slept == []
    assert len(asked(server)) == 1


@pytest.mark.parametrize("chain", [["kimi-k31"], ["glm-5.3", "nonsense"]])
async def test_unknown_name_in_the_chain_is_a_wrong_setting(opened: OpenProviders, chain: list[str]) -> None:
    """Found at the start, not at the first outage."""
    with pytest.raises(ConfigError, match="EXAI_PROVIDERS__FALLBACK"):
        async with opened(fallback=chain):
            pass


async def test_limit_of_concurrent_requests_is_kept_and_waited_for(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """An account of the lowest tier may send one request at a time; the others wait for their turn."""
    server.default = lambda _body: stream("gate", chunk({"content": "x"}, finish="stop"))
    site = {"api_key": KEY, "base_url": server.base_url, "max_concurrent": 2}
    async with opened(kimi=site, glm={}) as providers:
        calls = [asyncio.create_task(Asker(providers)("kimi-k3")) for _ in range(5)]
        await server.arrived(2)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(server.chats) == 2
        server.gate.set()
        assert [each.content for each in await asyncio.gather(*calls)] == ["x"] * 5


async def test_owners_take_turns_under_the_limit_of_concurrent_requests(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """A call of another owner is the next but one, however many of the first owner wait."""
    server.default = lambda _body: stream("gate", chunk({"content": "x"}, finish="stop"))
    site = {"api_key": KEY, "base_url": server.base_url, "max_concurrent": 1}
    order: list[str] = []
    async with opened(kimi=site, glm={}) as providers:

        async def call(owner: str) -> None:
            request_owner.set(Owner(owner))
            await Asker(providers)("kimi-k3")
            order.append(owner)

        calls = [asyncio.create_task(call("busy")) for _ in range(8)]
        await server.arrived(1)
        calls.append(asyncio.create_task(call("other")))
        for _ in range(50):
            await asyncio.sleep(0)
        server.gate.set()
        await asyncio.gather(*calls)
    assert order.index("other") <= 2
