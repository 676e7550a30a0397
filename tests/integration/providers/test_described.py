"""DeepSeek, OpenRouter and Qwen against stand-ins that reproduce their documented answers, refusals and lists."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from decimal import Decimal
from typing import Any

import pytest

from exai.errors import (
    ProviderAuthFailed,
    ProviderError,
    ProviderLimited,
    ProviderRefused,
    ProviderUnavailable,
    ProviderUnknownModel,
)
from exai.models import Prompt
from exai.providers.diagnose import diagnose
from exai.providers.registry import Providers
from exai.settings.load import ProvidersSettings
from tests.integration.providers.conftest import Asker, OpenProviders, soon
from tests.support.provider_server import Break, ProviderServer, Reply, chunk, event, failure, stream


def only(opened: OpenProviders, server: ProviderServer, provider: str) -> AbstractAsyncContextManager[Providers]:
    """Open one described provider with the stand-in behind it, and no other."""
    site = {"api_key": "sk-key-of-test", "base_url": server.base_url}
    return opened(**{"kimi": {}, "glm": {}, provider: site})


def deepseek_answer() -> Reply:
    """Comments while it queues, reasoning_content, and cached tokens under two names."""
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 9,
        "prompt_cache_hit_tokens": 64,
        "prompt_cache_miss_tokens": 36,
        "prompt_tokens_details": {"cached_tokens": 64},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    return stream(
        b": keep-alive\n\n",
        chunk({"role": "assistant", "content": None, "reasoning_content": "hm"}, model="deepseek-v4-pro"),
        chunk({"content": "yes", "reasoning_content": None}, model="deepseek-v4-pro"),
        chunk({"content": ""}, model="deepseek-v4-pro", finish="stop", usage=usage),
        event("[DONE]"),
    )


async def test_deepseek_counts_cached_tokens_once_and_gets_no_reasoning_back(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """Its usage names the cache hits twice; reasoning of earlier answers is left out of requests without tools."""
    server.script(deepseek_answer())
    async with only(opened, server, "deepseek") as providers:
        history = [Prompt("user", "a"), Prompt("assistant", "b"), Prompt("user", "c")]
        completion = await Asker(providers)(None, messages=history, thinking="high", max_output_tokens=50)
        cost = providers.prices.cost_usd(providers.resolve(None), completion.usage)
    assert (completion.content, completion.reasoning, completion.is_partial) == ("yes", "hm", False)
    assert (completion.usage.input_tokens, completion.usage.cached_tokens) == (100, 64)
    assert cost == (36 * Decimal("0.435") + 64 * Decimal("0.003625") + 9 * Decimal("0.87")) / 1_000_000
    body = server.chats[0].body
    assert body["model"] == "deepseek-v4-pro"
    assert (body["thinking"], body["reasoning_effort"], body["max_tokens"]) == ({"type": "enabled"}, "high", 50)
    assert all(set(message) == {"role", "content"} for message in body["messages"])


@pytest.mark.parametrize(
    ("reply", "error", "requests"),
    [
        (failure(402, {"error": {"message": "Insufficient Balance", "type": "unknown_error"}}), ProviderLimited, 1),
        (failure(401, {"error": {"type": "authentication_error", "message": "no"}}), ProviderAuthFailed, 1),
        (failure(422, {"error": {"message": "Invalid Parameters"}}), ProviderRefused, 2),
        (
            failure(400, {"error": {"message": "Model Not Exist", "type": "invalid_request_error"}}),
            ProviderUnknownModel,
            2,
        ),
        (failure(503, {"error": {"message": "Server overloaded"}}), ProviderLimited, 3),
        (failure(500, {"error": {"message": "Server error"}}), ProviderUnavailable, 3),
    ],
)
async def test_deepseek_errors_are_distinguished(
    server: ProviderServer, opened: OpenProviders, reply: Reply, error: type[ProviderError], requests: int
) -> None:
    """An empty balance is never asked again; a refusal once, without `stream_options`; overload up to the limit."""
    server.script(*[reply] * requests)
    async with only(opened, server, "deepseek") as providers:
        with pytest.raises(error) as raised:
            await Asker(providers)(None)
    assert type(raised.value) is error
    assert len(server.chats) <= requests
    if isinstance(raised.value, ProviderLimited):
        assert raised.value.exhausted is (raised.value.status == 402)
        assert raised.value.overloaded is (raised.value.status == 503)


def openrouter_answer() -> Reply:
    """Comments, reasoning as text and as details, and the cost beside the counts."""
    details = [{"type": "reasoning.text", "text": "hm", "index": 0}]
    return stream(
        b": OPENROUTER PROCESSING\n\n",
        b": OPENROUTER PROCESSING\n\n",
        chunk(
            {"role": "assistant", "content": "", "reasoning": "hm", "reasoning_details": details}, model="z-ai/glm-5.3"
        ),
        chunk({"content": "yes"}, model="z-ai/glm-5.3", provider="Z.AI"),
        chunk({"content": ""}, model="z-ai/glm-5.3", finish="stop", native_finish_reason="stop"),
        event({"id": "gen-1", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2, "cost": 0.00001}}),
        event("[DONE]"),
        headers={"x-generation-id": "gen-1"},
    )


async def test_openrouter_is_asked_for_hosts_that_honour_the_options(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """A host that ignores `reasoning` would otherwise be chosen; without options any host will do."""
    server.default = lambda _body: openrouter_answer()
    async with only(opened, server, "openrouter") as providers:
        ask = Asker(providers)
        plain = await ask("openrouter/z-ai/glm-5.3")
        await ask("openrouter/z-ai/glm-5.3", thinking="high")
        await ask("openrouter/z-ai/glm-5.3", thinking="off")
    assert (plain.content, plain.reasoning, plain.request_id) == ("yes", "hm", "gen-1")
    assert (plain.usage.input_tokens, plain.usage.output_tokens) == (7, 2)
    first, second, third = (request.body for request in server.chats)
    assert first["model"] == "z-ai/glm-5.3"
    assert "provider" not in first
    assert second["provider"] == {"require_parameters": True}
    assert (second["reasoning"], third["reasoning"]) == ({"effort": "high"}, {"enabled": False})


MID_STREAM: dict[str, Any] = {
    "id": "gen-1",
    "provider": "Z.AI",
    "error": {"code": 502, "message": "Provider disconnected unexpectedly"},
    "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
}


async def test_openrouter_error_inside_a_stream_that_began_well_is_an_error(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """After text nothing is sent again; before it, the code in the event decides as a status would."""
    async with only(opened, server, "openrouter") as providers:
        ask = Asker(providers)
        server.script(stream(chunk({"content": "Hel"}), event(MID_STREAM), event("[DONE]")))
        with pytest.raises(ProviderError) as raised:
            await ask("openrouter/z-ai/glm-5.3")
        assert getattr(raised.value, "partial", "Hel") == "Hel"
        assert len(server.chats) == 1
        no_credit = {"error": {"code": 402, "message": "Insufficient credits"}}
        server.script(stream(b": OPENROUTER PROCESSING\n\n", event(no_credit)))
        with pytest.raises(ProviderLimited) as poor:
            await ask("openrouter/z-ai/glm-5.3")
        assert poor.value.exhausted
        assert len(server.chats) == 2


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (402, "Insufficient credits", ProviderLimited),
        (403, "Input was flagged", ProviderRefused),
        (408, "Request timed out", ProviderUnavailable),
        (429, "Rate limit exceeded", ProviderLimited),
        (502, "Provider returned error", ProviderUnavailable),
        (503, "No available provider meets the requirements", ProviderLimited),
        (404, "No endpoints found for z-ai/glm-9", ProviderUnknownModel),
        (400, "z-ai/glm-9 is not a valid model ID", ProviderUnknownModel),
    ],
)
async def test_openrouter_errors_are_distinguished(
    server: ProviderServer, opened: OpenProviders, status: int, message: str, error: type[ProviderError]
) -> None:
    """The code in the body repeats the status."""
    server.default = lambda _body: failure(status, {"error": {"code": status, "message": message}})
    async with only(opened, server, "openrouter") as providers:
        with pytest.raises(error) as raised:
            await Asker(providers)("openrouter/z-ai/glm-9")
    assert type(raised.value) is error


async def test_windows_and_prices_of_openrouter_are_those_of_its_list(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """They belong to its hosts; the smaller window of a model and its host counts."""
    server.models = [
        {
            "id": "z-ai/glm-5.3",
            "context_length": 1_310_720,
            "top_provider": {"context_length": 1_048_576},
            "pricing": {"prompt": "0.00000087", "completion": "0.00000336", "input_cache_read": "0.00000016"},
        },
        {"id": "openrouter/auto", "context_length": 2_000_000, "pricing": {"prompt": "-1", "completion": "-1"}},
        {"id": "odd/price", "pricing": {"prompt": "free", "completion": [1], "input_cache_read": "NaN"}},
    ]
    async with only(opened, server, "openrouter") as providers:
        await soon(providers.discover())
        model = providers.resolve("openrouter/z-ai/glm-5.3")
        assert model.context_window == 1_048_576
        assert model.price is not None
        assert (model.price.input, model.price.cached) == (Decimal("0.87"), Decimal("0.16"))
        assert providers.resolve("openrouter/auto").price is None
        assert providers.resolve("odd/price").price is None
        assert providers.status()[-1].notes == ()


async def test_qwen_thinks_on_request_and_streams_always(server: ProviderServer, opened: OpenProviders) -> None:
    """Its hybrid models do not think unless asked; several others answer 400 to a request without a stream."""
    server.default = lambda _body: stream(
        chunk({"role": "assistant", "content": None, "reasoning_content": ""}, model="qwen-plus"),
        chunk({"content": "yes"}, model="qwen-plus"),
        chunk({"content": ""}, model="qwen-plus", finish="stop"),
        event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}),
        event("[DONE]"),
    )
    async with only(opened, server, "qwen") as providers:
        ask = Asker(providers)
        completion = await ask(None)
        await ask(None, thinking="low")
        await ask("qwen-max", thinking="off")
    assert (completion.content, completion.reasoning, completion.usage.input_tokens) == ("yes", "", 7)
    plain, low, off = (request.body for request in server.chats)
    assert (plain["stream"], plain["stream_options"]) == (True, {"include_usage": True})
    assert "enable_thinking" not in plain
    assert (low["enable_thinking"], low["thinking_budget"]) == (True, 4_096)
    assert off["enable_thinking"] is False


@pytest.mark.parametrize(
    ("status", "code", "error", "exhausted"),
    [
        (400, "Arrearage", ProviderLimited, True),
        (429, "Throttling.RateQuota", ProviderLimited, False),
        (429, "Throttling.AllocationQuota", ProviderLimited, False),
        (429, "insufficient_quota", ProviderLimited, True),
        (401, "invalid_api_key", ProviderAuthFailed, False),
        (403, "AccessDenied", ProviderAuthFailed, False),
        (400, "data_inspection_failed", ProviderRefused, False),
        (404, "model_not_found", ProviderUnknownModel, False),
        (500, "InternalError.Algo", ProviderUnavailable, False),
        (503, "ModelServingError", ProviderLimited, False),
    ],
)
async def test_qwen_errors_are_distinguished(
    server: ProviderServer,
    opened: OpenProviders,
    status: int,
    code: str,
    error: type[ProviderError],
    exhausted: bool,
) -> None:
    """Its business codes precede the status: arrears are a 400."""
    server.default = lambda _body: failure(status, {"error": {"code": code, "type": code, "message": "no"}})
    async with only(opened, server, "qwen") as providers:
        with pytest.raises(error) as raised:
            await Asker(providers)(None)
    assert type(raised.value) is error
    assert getattr(raised.value, "exhausted", False) is exhausted
    assert len(server.chats) == 1 or not exhausted


async def test_unknown_model_is_refused_with_the_nearest_that_is_served(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """The list is read again for the next caller, and never waited for."""
    server.models = [{"id": "kimi-k3.1-pro"}, {"id": "kimi-k3"}]
    gone = failure(404, {"error": {"type": "resource_not_found_error", "message": "Not found the model or denied"}})
    async with opened(glm={}) as providers:
        await soon(providers.discover())
        server.script(gone)
        with pytest.raises(ProviderUnknownModel) as raised:
            await Asker(providers)("kimi-k2.6")
        notes = providers.status()[0].notes
        served = {info.name: info.served for info in providers.models() if info.provider == "kimi"}
    assert raised.value.cure.startswith("Use kimi-k3.1-pro")
    assert "kimi-k2.6" in raised.value.cure or "kimi-k3" in raised.value.cure
    assert any("kimi does not list" in note and "kimi-k2.6" in note for note in notes)
    assert (served["kimi-k3"], served["kimi-k2.6"]) == (True, False)


async def test_list_that_hangs_delays_neither_the_start_nor_a_first_question(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """The catalogue's data suffices for the models it describes."""
    server.routes["/v1/models"] = stream("gate")
    async with opened(glm={}, connect_timeout_s=60.0) as providers:
        model = await soon(providers.find("kimi-k3"))
        assert (await soon(providers.prepare(model, prompt_tokens=100_000))).name == "kimi-k3"
        assert (await Asker(providers)("kimi-k3")).provider == "kimi"
        assert not any("list" in note for note in providers.status()[0].notes)


async def test_lists_are_read_again_every_day(
    server: ProviderServer, opened: OpenProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the background; the test shortens the pause and moves the clock."""
    monkeypatch.setattr("exai.providers.registry.LISTS_PAUSE_S", 0.0)
    monkeypatch.setattr("exai.providers.discovery.DAY_S", -1.0)
    async with opened(glm={}):
        async with server.changed:
            await soon(server.changed.wait_for(lambda: len(server.received) >= 3))
    assert {request.path for request in server.received} == {"/v1/models"}


ANSWERS = {"deepseek": deepseek_answer, "openrouter": openrouter_answer}


@pytest.mark.parametrize("provider", ANSWERS)
@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_stream_that_breaks_at_any_point_is_never_taken_for_a_whole_answer(
    server: ProviderServer, opened: OpenProviders, provider: str, how: Break
) -> None:
    """Before the first piece the request may be sent again; after it the error has the text so far."""
    steps = list(ANSWERS[provider]().steps)
    async with only(opened, server, provider) as providers:
        ask = Asker(providers)
        for cut in range(len(steps)):
            server.script(stream(*steps[:cut], how))
            server.default = lambda _body: stream(*steps)
            try:
                completion = await ask(None)
            except ProviderError as error:
                assert getattr(error, "partial", "") in ("", "yes")
            else:
                assert completion.content == "yes"
                assert completion.finish_reason == "stop"


async def test_doctor_warns_about_a_configured_model_that_is_not_listed(server: ProviderServer) -> None:
    """With the nearest that is; a provider without a key is mentioned only if it is one of the first two."""
    server.models = [{"id": "kimi-k3.1-pro"}, {"id": "kimi-k3.2"}]
    site = {"api_key": "sk-key-of-test", "base_url": server.base_url}
    settings = ProvidersSettings.model_validate({"kimi": site, "default_model": "kimi-k3"})
    found = await soon(diagnose(settings))
    said = {(each.part, each.state): each.detail for each in found}
    assert "kimi does not list" in said["provider kimi", "warn"]
    warnings = [each.detail for each in found if each.state == "warn"]
    assert warnings[0].startswith("kimi-k3 is configured, and kimi does not list it; nearest: ")
    assert "kimi-k3.1-pro" in warnings[0] or "kimi/kimi-k3.2" in warnings[0]
    assert [each.part for each in found if each.state == "off"] == ["provider glm"]
