"""Searches of the web, as each provider does them, against stand-ins: what is sent, what is read, and what fails."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from exai.errors import DeadlineExceeded, InvalidArgument, ProviderError
from exai.models import Completion, WebSource
from exai.providers.registry import Providers
from exai.resilience import with_deadline
from tests.integration.providers.conftest import KEY, Asker, Heard, OpenProviders
from tests.support.provider_server import (
    Break,
    ProviderServer,
    Reply,
    Step,
    chunk,
    event,
    failure,
    kimi_answer,
    stream,
)

TOOLS = "/v1/formulas/moonshot/web-search:latest/tools"
FIBERS = "/v1/formulas/moonshot/web-search:latest/fibers"
TOOL = {"type": "function", "function": {"name": "web_search", "parameters": {"type": "object", "properties": {}}}}
FOUND = '{"search_results": [{"title": "A page", "url": "https://a.example/1"}]}'


def calling(query: str = "exai", *, content: str = "", usage: int = 10) -> Reply:
    """The model reasons, may send text, and calls the tool; the arguments arrive in pieces."""
    first = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "web_search", "arguments": ""}}
    pieces = ['{"query": ', f'"{query}"', "}"]
    steps: list[Step] = [chunk({"role": "assistant", "reasoning_content": "I should look"})]
    steps += [chunk({"content": content})] if content else []
    steps += [chunk({"tool_calls": [first]})]
    steps += [chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in pieces]
    counts = {"prompt_tokens": usage, "completion_tokens": 2}
    return stream(*steps, chunk({}, finish="tool_calls", usage=counts), event("[DONE]"))


def answering(text: str = "It is known.") -> Reply:
    return kimi_answer([text], usage={"prompt_tokens": 30, "completion_tokens": 5})


def serves(server: ProviderServer, output: Any = FOUND, name: str = "output") -> None:
    server.routes[TOOLS] = {"object": "list", "tools": [TOOL]}
    server.routes[FIBERS] = {"id": "fiber-1", "status": "succeeded", "context": {name: output}}


def paths(server: ProviderServer) -> list[str]:
    return [request.path for request in server.received if request.path != "/v1/models"]


async def searched(providers: Providers, model: str = "kimi-k3", **options: Any) -> Completion:
    return await Asker(providers)(model, web_search=True, **options)


async def test_kimi_runs_the_call_of_its_model_and_answers(server: ProviderServer, opened: OpenProviders) -> None:
    """The tools are listed once; the call is returned with its reasoning and without an empty text."""
    serves(server)
    server.script(calling(), answering(), answering("Again."))
    heard = Heard()
    async with opened(glm={}) as providers:
        completion = await searched(providers, on_delta=heard)
        await searched(providers)
        total_usd = providers.total_usd(providers.resolve("kimi-k3"), completion)
    assert (completion.content, completion.finish_reason, completion.is_partial) == ("It is known.", "stop", False)
    assert completion.sources == (WebSource("A page", "https://a.example/1"),)
    assert (completion.searches, completion.search_usd) == (1, Decimal("0.005"))
    assert (completion.usage.input_tokens, completion.usage.output_tokens) == (40, 7)
    assert total_usd == (40 * Decimal(3) + 7 * Decimal(15)) / 1_000_000 + Decimal("0.005")
    assert "kimi-k3 searches the web" in [delta.note for delta in heard.pieces]
    assert paths(server).count(TOOLS) == 1
    fiber = next(request for request in server.received if request.path == FIBERS)
    assert fiber.body == {"name": "web_search", "arguments": '{"query": "exai"}'}
    assert fiber.headers["authorization"] == f"Bearer {KEY}"
    first, second, _ = (request.body for request in server.chats)
    assert first["tools"] == second["tools"] == [TOOL]
    assert second["messages"][: len(first["messages"])] == first["messages"]
    said, result = second["messages"][-2:]
    assert said == {
        "role": "assistant",
        "reasoning_content": "I should look",
        "tool_calls": [
            {
                "id": "call-1",
                "type": "function",
                "function": {"name": "web_search", "arguments": '{"query": "exai"}'},
            }
        ],
    }
    assert result == {"role": "tool", "tool_call_id": "call-1", "name": "web_search", "content": FOUND}


async def test_text_before_a_search_is_part_of_the_answer(server: ProviderServer, opened: OpenProviders) -> None:
    """The stored text is the one that the caller received."""
    serves(server, "----ENCRYPTED----", "encrypted_output")
    server.script(calling(content="Let me look. "), calling(), answering())
    heard = Heard()
    async with opened(glm={}) as providers:
        completion = await searched(providers, on_delta=heard)
    assert completion.content == "Let me look. It is known."
    assert "".join(delta.content for delta in heard.pieces) == completion.content
    assert (completion.searches, completion.sources) == (2, ())
    assert server.chats[1].body["messages"][-2]["content"] == "Let me look. "
    assert server.chats[1].body["messages"][-1]["content"] == "----ENCRYPTED----"


async def test_question_that_needs_no_search_costs_none(server: ProviderServer, opened: OpenProviders) -> None:
    """The tool is offered and the model decides. Without `web_search` it is not offered."""
    serves(server)
    async with opened(glm={}) as providers:
        completion = await searched(providers)
        await Asker(providers)("kimi-k3")
    assert (completion.searches, completion.search_usd) == (0, 0)
    assert "tools" in server.chats[0].body
    assert "tools" not in server.chats[1].body
    assert FIBERS not in paths(server)


@pytest.mark.parametrize(
    "fiber",
    [
        failure(500),
        failure(200, "no JSON"),
        failure(200, {"status": "failed", "error": "quota"}),
        failure(200, ["odd"]),
        failure(429, {"error": {"type": "rate_limit_reached_error"}}),
        Reply(["rst"], head=False),
    ],
)
async def test_search_that_fails_is_stated_to_the_model_and_to_the_caller(
    server: ProviderServer, opened: OpenProviders, fiber: Reply
) -> None:
    """The model answers without it."""
    serves(server)
    server.routes[FIBERS] = fiber
    server.script(calling(), answering())
    async with opened(glm={}) as providers:
        completion = await searched(providers)
    assert completion.content == "It is known."
    assert server.chats[1].body["messages"][-1]["content"].startswith("The search failed: ")
    assert any(note.startswith("a search of the web failed: ") for note in completion.notes)


@pytest.mark.parametrize("tools", [failure(404), failure(200, {"tools": []}), failure(200, "x")])
async def test_tool_that_is_not_there_is_a_note(server: ProviderServer, opened: OpenProviders, tools: Reply) -> None:
    """The question is answered without a search."""
    server.routes[TOOLS] = tools
    async with opened(glm={}) as providers:
        completion = await searched(providers)
    assert any(note.startswith("the web was not searched: ") for note in completion.notes)
    assert "tools" not in server.chats[0].body


async def test_model_that_searches_for_ever_is_stopped(server: ProviderServer, opened: OpenProviders) -> None:
    """The number of rounds and of paid searches is limited."""
    serves(server)
    server.default = lambda _body: calling(content="x")
    async with opened(glm={}) as providers:
        completion = await searched(providers)
    assert completion.finish_reason == "tool_calls"
    assert len(server.chats) == 7
    assert paths(server).count(FIBERS) == completion.searches == 6


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("round_", [0, 1])
async def test_stream_that_breaks_in_any_round_is_asked_again_unless_text_has_come(
    server: ProviderServer, opened: OpenProviders, how: Break, round_: int
) -> None:
    """A broken call of a tool is never run."""
    serves(server)
    broken: list[Step] = [chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "x"}}]})]
    before = [calling()] if round_ else []
    server.script(*before, stream(*broken, how), calling(), answering())
    async with opened(glm={}) as providers:
        try:
            completion = await searched(providers)
        except ProviderError as error:
            assert getattr(error, "partial", "") == ""
        else:
            assert completion.content == "It is known."
    fibers = [request for request in server.received if request.path == FIBERS]
    assert all(request.body["arguments"] == '{"query": "exai"}' for request in fibers)


async def test_search_ends_with_the_deadline_of_the_request(server: ProviderServer, opened: OpenProviders) -> None:
    """The text before it is kept."""
    serves(server)
    server.routes[FIBERS] = Reply(["hang"], head=False)
    server.script(calling(content="Let me look. "))
    async with opened(glm={}) as providers:
        with with_deadline(1.0), pytest.raises(DeadlineExceeded) as raised:
            await searched(providers)
    assert raised.value.partial == "Let me look. "


async def test_glm_searches_within_the_request(server: ProviderServer, opened: OpenProviders) -> None:
    """Its results come at the top of a chunk."""
    results = [
        {
            "title": "B\npage",
            "link": "https://b.example/",
            "content": "...",
            "media": "B",
            "publish_date": "2026-11-01",
        },
        {"title": "again", "link": "https://b.example/"},
        {"title": "odd", "link": "javascript:alert(1)"},
        {"link": 7},
        "x",
    ]
    server.script(
        stream(
            chunk({"content": "yes"}, model="glm-5.3", web_search=results),
            chunk({"content": ""}, model="glm-5.3", finish="stop", usage={"prompt_tokens": 3, "completion_tokens": 1}),
            event("[DONE]"),
        )
    )
    async with opened(kimi={}) as providers:
        completion = await searched(providers, "glm-5.3")
    assert server.chats[0].body["tools"][0]["type"] == "web_search"
    assert completion.sources == (WebSource("B page", "https://b.example/"),)
    assert (completion.searches, completion.search_usd, completion.is_partial) == (1, None, False)


async def test_qwen_and_openrouter_search_by_a_parameter(server: ProviderServer, opened: OpenProviders) -> None:
    """Qwen's sources come in search_info, OpenRouter's as annotations of the message."""
    site = {"api_key": KEY, "base_url": server.base_url}
    info = {"search_results": [{"index": 1, "site_name": "C", "title": "C page", "url": "https://c.example/"}]}
    cited = {"type": "url_citation", "url_citation": {"url": "https://d.example/", "title": "D page", "content": "."}}
    server.script(
        stream(chunk({"content": "yes"}, search_info=info), chunk({}, finish="stop"), event("[DONE]")),
        stream(chunk({"content": "yes", "annotations": [cited]}), chunk({}, finish="stop"), event("[DONE]")),
    )
    async with opened(kimi={}, glm={}, qwen=site, openrouter=site) as providers:
        qwen = await searched(providers, "qwen-plus")
        openrouter = await searched(providers, "openrouter/auto")
    assert qwen.sources == (WebSource("C page", "https://c.example/"),)
    assert openrouter.sources == (WebSource("D page", "https://d.example/"),)
    first, second = (request.body for request in server.chats)
    assert (first["enable_search"], second["plugins"]) == (True, [{"id": "web"}])


async def test_model_that_cannot_search_is_refused_before_anything_is_sent(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """Naming the providers that can."""
    site = {"api_key": KEY, "base_url": server.base_url}
    async with opened(deepseek=site) as providers:
        with pytest.raises(InvalidArgument, match="Use a model of kimi or glm") as refused:
            providers.check(providers.resolve("deepseek-v4-pro"), web_search=True)
        providers.check(providers.resolve("glm-5.3"), web_search=True)
    assert refused.value.field == "web_search"


async def test_next_model_of_the_chain_says_that_it_did_not_search(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """An answer without a search is returned with a note."""
    serves(server)
    site = {"api_key": KEY, "base_url": server.base_url}
    server.script(failure(503))
    async with opened(deepseek=site, fallback=["deepseek-v4-pro"], max_attempts=1) as providers:
        completion = await searched(providers)
    assert completion.provider == "deepseek"
    assert "deepseek-v4-pro cannot search the web, so that it answered without" in completion.notes
