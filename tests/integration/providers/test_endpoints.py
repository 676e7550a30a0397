"""OpenAI-compatible endpoints of the user's own: addressed by name, listed lazily, reached through proxies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from exai.errors import ConfigError, InvalidArgument, NotConfigured, ProviderRefused
from exai.providers.discovery import MAX_LIST_BYTES
from tests.integration.providers.conftest import Asker, OpenProviders, Pauses, soon
from tests.support.provider_process import provider_process
from tests.support.provider_server import ProviderServer, chunk, event, failure, stream


def endpoint(server: ProviderServer, *models: str, **more: Any) -> dict[str, Any]:
    return {"base_url": server.base_url, "models": models, **more}


async def test_endpoint_without_a_key_is_asked_without_one(server: ProviderServer, opened: OpenProviders) -> None:
    """Ollama, vLLM and llama.cpp need none; a bearer of nothing confuses some."""
    async with opened(endpoints={"local": endpoint(server, "llama3:8b")}) as providers:
        completion = await Asker(providers)("local/llama3:8b", max_output_tokens=5, temperature=1.2)
    assert (completion.provider, completion.model) == ("local", "llama3:8b")
    received = server.chats[0]
    assert "authorization" not in received.headers
    assert received.body["model"] == "llama3:8b"
    assert (received.body["max_tokens"], received.body["temperature"]) == (5, 1.2)


async def test_vllm_reasoning_and_usage_are_understood(server: ProviderServer, opened: OpenProviders) -> None:
    """vLLM has the field `reasoning`, and its usage in a chunk without choices."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    server.script(
        stream(
            chunk({"reasoning": "hm"}),
            chunk({"content": "yes"}),
            chunk({}, finish="stop"),
            event({"choices": [], "usage": usage}),
            event("[DONE]"),
        )
    )
    async with opened(endpoints={"vllm": endpoint(server, "m")}) as providers:
        completion = await Asker(providers)("m")
    assert (completion.reasoning, completion.content, completion.usage.input_tokens) == ("hm", "yes", 3)


async def test_models_of_an_endpoint_without_a_list_are_discovered_once(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """One GET for any number of callers; names and windows are known afterwards."""
    server.models = [{"id": "qwen3", "max_model_len": 40_960}, {"id": "llama3"}, {"id": ""}, {"no": "id"}, "x"]
    async with opened(kimi={}, glm={}, endpoints={"local": endpoint(server, api_key="k-1")}) as providers:
        await soon(asyncio.gather(*(providers.discover() for _ in range(10))))
        assert [info.name for info in providers.models() if info.configured] == ["local/qwen3", "local/llama3"]
        assert providers.resolve("qwen3").context_window == 40_960
        assert providers.resolve(None).name == "local/qwen3"
    assert [request.path for request in server.received].count("/v1/models") == 1
    assert server.received[0].headers["authorization"] == "Bearer k-1"


async def test_endpoint_with_a_list_is_not_asked_for_one(server: ProviderServer, opened: OpenProviders) -> None:
    """The configured models are used unchanged."""
    local = endpoint(server, "m", context_window=4_096)
    async with opened(kimi={}, glm={}, endpoints={"local": local}) as providers:
        await soon(providers.discover())
        assert (await providers.prepare(providers.resolve("m"))).context_window == 4_096
    assert server.received == []


WINDOWS = [
    ({"/v1/models": {"data": [{"id": "m", "max_model_len": 40_960}]}}, 40_960),
    (
        {"/v1/models": {"data": [{"id": "m", "context_length": 99_999, "top_provider": {"context_length": 4_000}}]}},
        4_000,
    ),
    ({"/v1/models": {"data": [{"id": "m", "meta": {"n_ctx_train": 131_072, "n_ctx": 2_048}}]}}, 2_048),
    ({"/props": {"default_generation_settings": {"n_ctx": 6_144}, "total_slots": 1}}, 6_144),
    ({"/api/v0/models": {"data": [{"id": "m", "max_context_length": 99_999, "loaded_context_length": 3_000}]}}, 3_000),
    ({"/v1/model/info": {"data": [{"model_name": "m", "model_info": {"max_input_tokens": 7_000}}]}}, 7_000),
    ({"/api/ps": {"models": [{"name": "m:latest", "context_length": 4_096}]}}, 4_096),
    ({"/api/ps": {"models": []}, "/api/show": {"parameters": "stop x\nnum_ctx    16384\n"}}, 16_384),
    ({"/api/ps": {"models": []}, "/api/show": {"model_info": {"llama.context_length": 131_072}}}, 8_192),
    ({"/v1/models": {"data": [{"id": "m", "max_model_len": "many"}, {"id": "m2", "max_model_len": 3}]}}, 8_192),
    ({"/props": ["odd"], "/api/ps": {"models": [{"name": 7}, "x"]}, "/v1/model/info": {"data": "x"}}, 8_192),
]


@pytest.mark.parametrize(("routes", "window"), WINDOWS, ids=range(len(WINDOWS)))
@pytest.mark.parametrize("models", [(), ("m",)], ids=["open", "listed"])
async def test_window_that_is_not_configured_is_asked_of_the_server(
    server: ProviderServer, opened: OpenProviders, routes: dict[str, Any], window: int, models: tuple[str, ...]
) -> None:
    """vLLM, OpenRouter, llama.cpp, LM Studio, LiteLLM and Ollama say it, each in its place; once for all callers."""
    server.models = [{"id": "m"}]
    server.routes = routes
    async with opened(kimi={}, glm={}, endpoints={"local": endpoint(server, *models)}) as providers:
        model = providers.resolve("local/m")
        assert [
            each.context_window for each in await soon(asyncio.gather(*(providers.prepare(model) for _ in range(5))))
        ] == [window] * 5
        asked = [request.path for request in server.received]
    assert len(asked) == len(set(asked)) <= 6


async def test_server_that_hangs_is_waited_for_once(
    server: ProviderServer, opened: OpenProviders, pauses: Pauses
) -> None:
    """A window is worth some seconds at the start, and none of any later request."""
    server.hangs = True
    async with opened(kimi={}, glm={}, connect_timeout_s=0.2, endpoints={"local": endpoint(server, "m")}) as providers:
        model = await soon(providers.prepare(providers.resolve("m")))
        assert model.context_window == 8_192
        pauses.now += 3_600
        await soon(providers.prepare(model))


async def test_endpoint_that_lists_nothing_is_a_note_and_can_still_be_asked(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """A list is a convenience."""
    server.models = [{"id": "x" * MAX_LIST_BYTES}]
    async with opened(kimi={}, glm={}, endpoints={"local": endpoint(server)}) as providers:
        await soon(providers.discover())
        status = providers.status()[2]
        assert (status.name, status.configured, status.models) == ("local", True, 0)
        assert "list of models could not be read" in status.notes[0]
        assert (await Asker(providers)("local/anything")).provider == "local"
        with pytest.raises(NotConfigured):
            providers.resolve(None)


async def test_unreachable_endpoint_does_not_hold_up_the_start(opened: OpenProviders, server: ProviderServer) -> None:
    """A provider that is down must not keep the store from serving."""
    await server.stop()
    async with opened(endpoints={"local": {"base_url": server.base_url}}) as providers:
        assert providers.resolve("kimi-k3").provider == "kimi"


async def test_unknown_model_of_an_endpoint_is_refused_by_its_server(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """An open endpoint is trusted with any name; its refusal is passed on."""
    server.script(failure(404, {"error": {"message": "model not found, try pulling it", "type": "not_found_error"}}))
    async with opened(endpoints={"local": {"base_url": server.base_url}}) as providers:
        with pytest.raises(ProviderRefused, match="try pulling it"):
            await Asker(providers)("local/none")


async def test_default_model_that_no_provider_has_stops_the_start(opened: OpenProviders) -> None:
    """A misspelled setting is an error where it is written, not at the first request."""
    with pytest.raises(ConfigError, match=r"EXAI_PROVIDERS__DEFAULT_MODEL.*Nearest: kimi-k3"):
        async with opened(default_model="kimi-k33"):
            pytest.fail("opened with a default model that does not exist")


async def test_status_lists_models_that_retire_soon(opened: OpenProviders) -> None:
    """On 21 November the K2 series has 40 days left."""
    async with opened() as providers:
        kimi, glm = providers.status()
        assert "kimi-k2.6 retires after 2026-12-31; use kimi-k3.1-pro" in kimi.notes
        assert glm.notes == ()
        defaults = [info.name for info in providers.models() if info.default]
        assert defaults == ["kimi-k3.1-pro"]


async def test_proxy_of_the_environment_is_used_but_not_towards_this_machine(
    server: ProviderServer, opened: OpenProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Companies reach providers through a proxy; a local model server is not behind it."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", server.origin)
    monkeypatch.setenv("http_proxy", server.origin)
    far = {"api_key": "k-1", "base_url": "http://kimi.example.test/v1"}
    async with opened(kimi=far) as providers:
        await Asker(providers)("kimi-k3")
        await Asker(providers)("glm-5.3")
        assert "key travels unencrypted" in providers.status()[0].notes[-1]
    assert [request.path for request in server.chats] == [
        "http://kimi.example.test/v1/chat/completions",
        "/v1/chat/completions",
    ]


async def test_nothing_configured_opens_and_refuses_with_the_variables(opened: OpenProviders) -> None:
    """The store serves without any provider."""
    async with opened(kimi={}, glm={}) as providers:
        with pytest.raises(NotConfigured, match="KIMI_API_KEY"):
            providers.resolve("kimi-k3")
        assert [status.configured for status in providers.status()] == [False, False]
        assert not any(info.configured for info in providers.models())


async def test_options_are_checked_without_sending_anything(server: ProviderServer, opened: OpenProviders) -> None:
    """For callers that store the question first."""
    async with opened() as providers:
        providers.check(providers.resolve("kimi-k3"), thinking="low", max_output_tokens=5, temperature=0.5)
        with pytest.raises(InvalidArgument):
            providers.check(providers.resolve("kimi-k3"), thinking="off")
    assert server.received == []


async def test_server_as_a_program_answers_and_lists_its_requests(opened: OpenProviders) -> None:
    """What tests with a daemon in another process rely on."""
    with provider_process({"reply": "kimi_error", "status": 400, "kind": "content_filter"}) as program:
        async with opened(kimi={"api_key": "k-1", "base_url": program.base_url}) as providers:
            ask = Asker(providers)
            with pytest.raises(ProviderRefused):
                await ask("kimi-k3")
            program.script({"reply": "kimi_answer", "content": "scripted"})
            assert (await ask("kimi-k3")).content == "scripted"
            assert (await ask("kimi-k3")).content == "1 messages. You said: hello"
        requests = program.requests()
    asked = [request["body"]["messages"] for request in requests if request["body"]]
    assert asked == [[{"role": "user", "content": "hello"}]] * 3
