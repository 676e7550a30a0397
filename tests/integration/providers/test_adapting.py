"""Endpoints that refuse a part of a request, over real HTTP: the rest is sent, the reason is shown, others go on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from exai.errors import ProviderError, ProviderRefused, ProviderTooLong, ProviderUnavailable
from exai.fairness import request_owner
from exai.models import Owner, Prompt
from exai.monitoring.metrics import MetricsRecorder
from exai.providers.completion.client import MAX_CONNECTIONS
from exai.providers.gates import MAX_PAUSE_S
from exai.resilience import with_deadline
from tests.integration.providers.conftest import Asker, Heard, OpenProviders, Pauses, soon
from tests.support.provider_server import ProviderServer, Reply, chunk, event, failure, kimi_answer, kimi_error, stream

NAMING = [
    {
        "detail": [
            {"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted", "type": "extra_forbidden"}
        ]
    },
    {"detail": [{"msg": "extra fields not permitted: stream_options"}]},
    {"errors": [{"message": "unknown field 'stream_options'", "code": "x"}]},
    {"error": {"message": "Unrecognized request argument supplied: stream_options", "param": None}},
    {"error": {"message": "Unknown parameter", "param": "stream_options"}},
    [{"error": {"code": 400, "message": 'Invalid JSON payload received. Unknown name "include_usage"', "status": "X"}}],
    {"error": '{"message": "stream_options is not supported"}'},
    {"message": ["property stream_options should not exist"]},
    "stream_options: unexpected keyword argument",
    {"detail": [{"msg": "Extra inputs are not permitted"}]},
]


def endpoints(server: ProviderServer, *models: str) -> dict[str, Any]:
    return {"local": {"base_url": server.base_url, "models": models or ("m", "other"), "context_window": 8_192}}


def refusing(field: str, body: Any, status: int = 422) -> Any:
    """A server that knows everything but one field."""

    def answer(request: Any) -> Reply:
        return (
            failure(status, body, content_type="text/plain" if isinstance(body, str) else "")
            if field in request
            else kimi_answer("ok")
        )

    return answer


@pytest.mark.parametrize("body", NAMING, ids=range(len(NAMING)))
@pytest.mark.parametrize("status", [400, 422])
async def test_refused_stream_options_are_left_out_from_then_on(
    server: ProviderServer, opened: OpenProviders, body: Any, status: int
) -> None:
    """For each form of the refusal, one refused request for all models of the endpoint."""
    server.default = refusing("stream_options", body, status)
    async with opened(endpoints=endpoints(server)) as providers:
        ask = Asker(providers)
        first = await ask("local/m")
        assert (first.content, first.attempts, first.notes, len(server.chats)) == ("ok", 1, (), 2)
        await ask("local/other")
    assert len(server.chats) == 3


async def test_reasonless_refusal_is_taken_for_the_options_until_they_are_found_innocent(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """Once per request of an endpoint that has never answered; afterwards a refusal is a refusal."""
    server.default = refusing("stream_options", {"error": "bad request"}, 400)
    async with opened(endpoints=endpoints(server)) as providers:
        assert (await Asker(providers)("local/m")).content == "ok"
    assert len(server.chats) == 2
    server.received.clear()
    server.default = lambda _: failure(400, {"error": "bad request"})
    async with opened(endpoints=endpoints(server)) as providers:
        with pytest.raises(ProviderRefused):
            await Asker(providers)("local/m")
        server.default = lambda _: kimi_answer("ok")
        await Asker(providers)("local/m")
        server.script(failure(400, {"error": "bad request"}))
        with pytest.raises(ProviderRefused):
            await Asker(providers)("local/m")
    assert ["stream_options" in request.body for request in server.chats] == [True, False, True, True]


async def test_output_limit_is_sent_under_its_other_name(server: ProviderServer, opened: OpenProviders) -> None:
    """Half of the servers know max_tokens, half max_completion_tokens."""
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    server.default = refusing("max_tokens", {"error": {"message": said, "code": "unsupported_parameter"}}, 400)
    async with opened(endpoints=endpoints(server)) as providers:
        assert (await Asker(providers)("local/m", max_output_tokens=99)).notes == ()
        await Asker(providers)("local/m", max_output_tokens=99)
    assert [request.body.get("max_completion_tokens") for request in server.chats] == [None, 99, 99]


async def test_option_that_was_not_sent_is_reported(server: ProviderServer, opened: OpenProviders) -> None:
    """Nothing falls back in silence; another model of the endpoint may take it."""
    server.default = lambda body: (
        failure(400, {"error": {"message": "temperature is not supported with this model"}})
        if body["model"] == "m" and "temperature" in body
        else kimi_answer("ok")
    )
    async with opened(endpoints=endpoints(server)) as providers:
        for _ in range(2):
            notes = (await Asker(providers)("local/m", temperature=0.5)).notes
            assert notes == ("local does not accept temperature, so that it was not sent",)
        assert (await Asker(providers)("local/other", temperature=0.5)).notes == ()
    assert ["temperature" in request.body for request in server.chats] == [True, False, False, True]


async def test_endpoint_that_does_not_stream_is_asked_for_one_document(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """Some models of a streaming server do not stream."""
    server.default = lambda body: (
        failure(400, {"error": {"message": "Streaming is not supported for this model"}})
        if body.get("stream")
        else failure(200, {"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]})
    )
    async with opened(endpoints=endpoints(server)) as providers:
        completion = await Asker(providers)("local/m")
        await Asker(providers)("local/m")
    assert (completion.content, completion.notes, completion.is_partial) == ("whole", (), False)
    assert len(server.chats) == 3


async def test_number_that_is_too_large_is_not_taken_for_an_unknown_name(server: ProviderServer, ask: Asker) -> None:
    """The caller has to know that the limit cannot be had."""
    server.default = lambda _: kimi_error(400, "invalid_request_error", "max_completion_tokens is too large: at most 9")
    with pytest.raises(ProviderRefused, match="too large"):
        await ask("kimi-k3", max_output_tokens=10)
    assert len(server.chats) == 1


@pytest.mark.parametrize(
    "said",
    [
        "System role not supported",
        "Only user and assistant roles are supported!",
        "Conversation roles must alternate user/assistant/user/assistant/...",
        "Developer instruction is not enabled for models/gemma-3",
    ],
)
async def test_system_text_goes_with_the_user_where_the_role_is_refused(
    server: ProviderServer, opened: OpenProviders, said: str
) -> None:
    """The templates of Gemma and of older Mistral models."""
    server.default = lambda body: (
        failure(400, {"error": {"message": said}})
        if any(message["role"] == "system" for message in body["messages"])
        else kimi_answer("ok")
    )
    messages = [Prompt("system", "Be brief."), Prompt("user", "Hi")]
    async with opened(endpoints=endpoints(server)) as providers:
        assert (await Asker(providers)("local/m", messages=messages)).content == "ok"
    assert server.chats[-1].body["messages"] == [{"role": "user", "content": "Be brief.\n\nHi"}]


@pytest.mark.parametrize("said", ["Jinja Exception: After the optional system message", "bad order of messages"])
@pytest.mark.parametrize("model", ["kimi-k2.6", "local/m"])
async def test_array_that_a_template_refuses_is_sent_in_the_strictest_form(
    server: ProviderServer, opened: OpenProviders, said: str, model: str
) -> None:
    """For any message of the refusal; it is learned once, and not needed for an unknown endpoint."""

    def strict(body: Any) -> Reply:
        roles = [message["role"] for message in body["messages"]]
        return (
            kimi_answer("ok") if roles == ["user", "assistant", "user"] else failure(400, {"error": {"message": said}})
        )

    server.default = strict
    messages = [Prompt("user", "1"), Prompt("user", "2"), Prompt("assistant", "3"), Prompt("user", "4")]
    async with opened(endpoints=endpoints(server)) as providers:
        for _ in range(2):
            assert (await Asker(providers)(model, messages=messages)).content == "ok"
    assert [message["content"] for message in server.chats[-1].body["messages"]] == ["1\n\n2", "3", "4"]
    assert len(server.chats) == (3 if model == "kimi-k2.6" else 2)


async def test_endpoint_that_refuses_everything_is_asked_a_bounded_number_of_times(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """It names a field each time, and never takes the request."""
    server.default = lambda body: failure(422, {"detail": f"unknown: {' '.join(body)}"})
    async with opened(endpoints=endpoints(server)) as providers:
        with pytest.raises(ProviderRefused, match="unknown: model"):
            await Asker(providers)("local/m", max_output_tokens=5, temperature=0.5)
    assert len(server.chats) <= 6


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"detail": [{"loc": ["body", "messages", 0, "role"], "msg": "bad role"}]}, "body.messages.0.role: bad role"),
        ({"errors": [{"detail": "no such thing"}, {"detail": "nor this"}]}, "no such thing; nor this"),
        ([{"error": {"message": "bad request of Gemini", "status": "INVALID_ARGUMENT"}}], "bad request of Gemini"),
        ("the model is gone", "the model is gone"),
        (
            {"error": {"message": "Provider returned error", "metadata": {"raw": '{"detail":"upstream says no"}'}}},
            "upstream says no",
        ),
        ({"error_msg": "wrong"}, "wrong"),
        ({"error": {"error": {"message": "deep"}}}, "deep"),
        ("<html><title>Nope</title></html>", "an HTML page titled 'Nope'"),
        ('data: {"error": {"message": "as an event"}}\n\n', "as an event"),
    ],
)
async def test_reason_of_a_refusal_of_any_shape_is_shown(
    server: ProviderServer, ask: Asker, body: Any, shown: str
) -> None:
    """FastAPI's, JSON:API's, Gemini's, OpenRouter's, plain text."""
    server.script(failure(400, body))
    with pytest.raises(ProviderRefused) as refused:
        await ask("kimi-k2.6")
    assert shown in str(refused.value)


async def test_placeholder_key_is_not_masked_inside_words(server: ProviderServer, opened: OpenProviders) -> None:
    """Local servers need some key, and "x" is one."""
    server.default = lambda _: failure(
        400, {"error": {"message": "maximum context of task-force exceeded, bearer of it"}}
    )
    settings = {"base_url": server.base_url, "models": ["m"], "api_key": "x"}
    async with opened(endpoints={"local": settings}) as providers:
        with pytest.raises(ProviderRefused, match="maximum context of task-force exceeded, bearer of it"):
            await Asker(providers)("local/m")


async def test_prompt_that_is_too_long_is_an_error_of_its_own_with_the_numbers(
    server: ProviderServer, ask: Asker
) -> None:
    """Less can be sent, which the caller of this knows how to do."""
    said = "This model's maximum context length is 4096 tokens. However, your messages resulted in 9000 tokens."
    server.script(kimi_error(400, "invalid_request_error", said))
    with pytest.raises(ProviderTooLong) as refused:
        await ask("kimi-k2.6")
    assert (refused.value.limit_tokens, refused.value.sent_tokens, refused.value.retryable) == (4_096, 9_000, False)
    assert len(server.chats) == 1


async def test_refusals_by_the_breaker_do_not_quote_themselves(server: ProviderServer, ask: Asker) -> None:
    """1,500 calls during an outage: each error has the endpoint's last message once."""
    server.default = lambda _: failure(503, {"error": {"message": "down"}})
    sizes = set()
    for _ in range(50):
        with pytest.raises(ProviderUnavailable) as failed:
            await ask("kimi-k2.6")
        sizes.add(len(str(failed.value)))
    assert max(sizes) < 300
    assert str(failed.value).count("was not asked") == 1
    assert "down" in str(ask.providers.status()[0].last_error)
    assert "was not asked" not in str(ask.providers.status()[0].last_error)


async def test_failing_model_leaves_the_others_of_its_endpoint_open(
    server: ProviderServer, ask: Asker, recorder: MetricsRecorder
) -> None:
    """One model that is out of memory is no reason to refuse the others; the status names it."""
    server.default = lambda body: failure(500) if body["model"] == "kimi-k2.6" else kimi_answer("fine")
    for _ in range(6):
        with pytest.raises(ProviderUnavailable):
            await ask("kimi-k2.6")
        assert (await ask("kimi-k3")).content == "fine"
    asked = len(server.chats)
    with pytest.raises(ProviderUnavailable, match="was not asked"):
        await ask("kimi-k2.6")
    assert len(server.chats) == asked
    status = ask.providers.status()[0]
    assert status.breaker == "closed"
    assert any("kimi-k2.6 is left alone" in note for note in status.notes)


async def test_unreachable_endpoint_is_left_alone_with_all_its_models(server: ProviderServer, ask: Asker) -> None:
    """No connection concerns every model."""
    await server.stop()
    for _ in range(3):
        with pytest.raises(ProviderUnavailable):
            await ask("kimi-k2.6")
    with pytest.raises(ProviderUnavailable, match="was not asked"):
        await ask("kimi-k3")
    assert ask.providers.status()[0].breaker == "open"


async def test_pause_of_one_model_does_not_hold_the_others(server: ProviderServer, ask: Asker, pauses: Pauses) -> None:
    """Retry-After holds for the requested model."""
    server.script(*[kimi_error(429, "rate_limit_reached_error", headers={"retry-after": "60"})] * 3)
    with pytest.raises(ProviderError):
        await ask("kimi-k2.6")
    slept = len(pauses.slept)
    await ask("kimi-k3")
    assert len(pauses.slept) == slept


async def test_long_pause_is_cut_and_one_request_tries_whether_it_is_over(
    server: ProviderServer, opened: OpenProviders, pauses: Pauses
) -> None:
    """A day's Retry-After must not close a model for a day because one request got it."""
    server.script(kimi_error(429, "rate_limit_reached_error", headers={"retry-after": "86400"}))
    async with opened(max_attempts=1) as providers:
        ask = Asker(providers)
        with pytest.raises(ProviderError):
            await ask("kimi-k2.6")
        assert 0 < providers.status()[0].retry_after_s <= MAX_PAUSE_S
        pauses.now += MAX_PAUSE_S
        server.default = lambda _: stream("gate", chunk({"content": "x"}, finish="stop"), event("[DONE]"))
        calls = [asyncio.create_task(ask("kimi-k2.6")) for _ in range(5)]
        await soon(server.arrived(2))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(server.chats) == 2
        server.gate.set()
        assert [each.content for each in await soon(asyncio.gather(*calls))] == ["x"] * 5


async def test_rate_limited_chat_says_what_it_waits_for_and_that_it_waited(server: ProviderServer, ask: Asker) -> None:
    """In the progress at once, and in the answer's notes."""
    server.script(kimi_error(429, "rate_limit_reached_error", "slow down", headers={"retry-after": "7"}))
    heard = Heard()
    completion = await ask("kimi-k2.6", heard)
    told = [piece.note for piece in heard.pieces if piece.note]
    assert len(told) == len(completion.notes) == 1
    assert told[0].startswith("waiting 7 s for kimi, which asks for fewer requests")
    assert "slow down" in completion.notes[0]
    assert not completion.is_partial


async def test_every_wait_of_a_rate_limited_chat_is_reported_once(
    server: ProviderServer, ask: Asker, pauses: Pauses
) -> None:
    """Each further pause; a request that meets an existing pause reports it once, too."""
    server.script(
        kimi_error(429, "rate_limit_reached_error", "slow down", headers={"retry-after": "7"}),
        kimi_error(429, "rate_limit_reached_error", "slower", headers={"retry-after": "9"}),
        stream("gate", chunk({"content": "x"}, finish="stop"), event("[DONE]")),
    )
    heard, later = Heard(), Heard()
    first = asyncio.create_task(ask("kimi-k2.6", heard))
    await soon(server.arrived(3))
    assert [piece.note[:21] for piece in heard.pieces if piece.note] == [
        "waiting 7 s for kimi,",
        "waiting 9 s for kimi,",
    ]
    server.gate.set()
    assert len((await soon(first)).notes) == 2
    server.script(kimi_error(429, "rate_limit_reached_error", "slow down", headers={"retry-after": "50"}))
    with pytest.raises(ProviderError), with_deadline(20):
        await ask("kimi-k2.6")
    completion = await ask("kimi-k2.6", later)
    assert [piece.note for piece in later.pieces if piece.note] == [
        "waiting 50 s for kimi, which has asked for a pause, for kimi-k2.6"
    ]
    assert len(completion.notes) == 1


async def test_owner_with_many_slow_requests_leaves_connections_to_others(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """125 slow chats of one owner; another one is answered at once."""
    server.default = lambda body: (
        kimi_answer("fine") if body["model"] == "kimi-k3" else stream("gate", chunk({"content": "x"}, finish="stop"))
    )

    async def by(owner: str, model: str) -> str:
        request_owner.set(Owner(owner))
        return (await ask(model)).content

    async with opened(connect_timeout_s=5.0) as providers:
        ask = Asker(providers)
        flood = [asyncio.create_task(by("mallory", "kimi-k2.6")) for _ in range(125)]
        await soon(server.arrived(MAX_CONNECTIONS // 2))
        assert await asyncio.create_task(by("alice", "kimi-k3")) == "fine"
        server.gate.set()
        await asyncio.gather(*flood, return_exceptions=True)
