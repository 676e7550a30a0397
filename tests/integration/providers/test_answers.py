"""Complete answers over real HTTP: the request that the provider receives, and the completion."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from exai.errors import InvalidArgument, ProviderBroken
from exai.models import Delta, Prompt, Usage
from exai.monitoring.metrics import MetricsRecorder
from exai.settings.load import LimitSettings
from tests.integration.providers.conftest import KEY, Asker, Heard, OpenProviders, soon
from tests.support.provider_server import (
    ProviderServer,
    Reply,
    UsagePlace,
    chunk,
    event,
    glm_answer,
    kimi_answer,
    stream,
)


async def test_kimi_answer_arrives_whole_with_its_facts(server: ProviderServer, ask: Asker) -> None:
    """Reasoning first, usage in the last choice, the trace id in a header."""
    server.script(kimi_answer(["Hel", "lo"], ["Let me ", "think"], model="kimi-k3-0711"))
    heard = Heard()
    completion = await ask("kimi-k3", heard)
    assert (completion.content, completion.reasoning, completion.finish_reason) == ("Hello", "Let me think", "stop")
    assert completion.usage == Usage(input_tokens=11, output_tokens=7, cached_tokens=4)
    assert (completion.provider, completion.model, completion.request_id) == ("kimi", "kimi-k3-0711", "trace-kimi-1")
    assert (completion.attempts, len(server.chats)) == (1, 1)
    assert heard.pieces == [
        Delta(reasoning="Let me "),
        Delta(reasoning="think"),
        Delta(content="Hel"),
        Delta(content="lo"),
    ]


async def test_glm_answer_arrives_whole_with_its_facts(server: ProviderServer, ask: Asker) -> None:
    """Usage with details in the last chunk, the request id in the body."""
    server.script(glm_answer("Hello", "Hm"))
    completion = await ask("glm-5.3")
    assert (completion.content, completion.reasoning, completion.finish_reason) == ("Hello", "Hm", "stop")
    assert completion.usage == Usage(input_tokens=11, output_tokens=7, cached_tokens=4, reasoning_tokens=3)
    assert (completion.provider, completion.request_id) == ("glm", "glm-request-1")


async def test_provider_receives_the_message_array_in_order_with_key_and_no_compression(
    server: ProviderServer, ask: Asker
) -> None:
    """Asserted on the bytes of the request."""
    messages = [Prompt("system", "s"), *(Prompt("user", f"{number} 你好") for number in range(50))]
    await ask("kimi-k3", messages=messages, max_output_tokens=99, thinking="low", temperature=0.3)
    received = server.chats[0]
    assert received.body == {
        "model": "kimi-k3",
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 99,
        "reasoning_effort": "low",
    }
    assert received.path == "/v1/chat/completions"
    assert received.headers["authorization"] == f"Bearer {KEY}"
    assert received.headers["accept-encoding"] == "identity"


async def test_refused_option_sends_nothing(server: ProviderServer, ask: Asker) -> None:
    """Refused before any I/O."""
    with pytest.raises(InvalidArgument):
        await ask("kimi-k3", thinking="off")
    with pytest.raises(InvalidArgument):
        await ask("kimi-k9")
    assert server.chats == []


@pytest.mark.parametrize("place", ["choice", "top", "chunk"])
async def test_usage_is_found_in_every_place_kimi_has_put_it(
    server: ProviderServer, ask: Asker, place: UsagePlace
) -> None:
    """At the top, in the choice, or in a final chunk without choices."""
    server.script(kimi_answer(usage_in=place))
    assert (await ask("kimi-k3")).usage.input_tokens == 11


async def test_missing_usage_is_zero(server: ProviderServer, ask: Asker) -> None:
    """Some servers send none; nothing is estimated."""
    server.script(kimi_answer(usage_in="none"))
    assert (await ask("kimi-k3")).usage == Usage()


@pytest.mark.parametrize(
    "reply",
    [
        kimi_answer("Hello", done=False),
        stream(chunk({"content": "Hello"}), event("[DONE]")),
        stream(chunk({"content": "Hello"}), chunk({}, finish="stop"), framing="close"),
        stream(chunk({"content": "Hello"}), b"data: [DONE]"),
        stream(chunk({"content": "Hello"}, finish="stop"), "fin"),
        stream(chunk({"content": "Hello"}, finish="stop"), "rst"),
    ],
    ids=["no done", "done only", "close delimited", "no last line end", "fin after finish", "rst after finish"],
)
async def test_either_finish_marker_completes_the_answer(server: ProviderServer, ask: Asker, reply: Reply) -> None:
    """A finish reason or [DONE]; what happens to the connection afterwards is not the answer's concern."""
    server.script(reply)
    assert (await ask("kimi-k3")).content == "Hello"


async def test_server_that_never_ends_its_response_does_not_hold_the_answer(server: ProviderServer, ask: Asker) -> None:
    """After [DONE] nothing is waited for; the connection is given up."""
    server.script(stream(chunk({"content": "Hello"}, finish="stop"), event("[DONE]"), "hang"))
    assert (await ask("kimi-k3")).content == "Hello"
    await soon(server.chats[0].gone.wait())


async def test_connection_is_used_again_after_a_whole_answer(server: ProviderServer, ask: Asker) -> None:
    """A TLS handshake for each turn would cost more than the question."""
    await ask("kimi-k3")
    opened = server.connections
    for _ in range(4):
        await ask("kimi-k3")
    assert server.connections == opened
    assert len(server.chats) == 5


async def test_stream_cut_at_every_byte_gives_the_same_answer(server: ProviderServer, ask: Asker) -> None:
    """TCP knows no events, lines or characters."""
    whole = b"".join(step for step in kimi_answer("Grüße 你好 🙂").steps if isinstance(step, bytes))
    server.script(stream(*(whole[at : at + 1] for at in range(len(whole)))))
    assert (await ask("kimi-k3")).content == "Grüße 你好 🙂"


async def test_first_tokens_of_parallel_answers_arrive_while_others_wait(server: ProviderServer, ask: Asker) -> None:
    """Nothing blocks: 20 requests are upstream at once and each has its first piece before any has ended."""
    parallel = 20
    server.default = lambda body: stream(chunk({"content": "a"}), "gate", chunk({"content": "b"}, finish="stop"))
    heard = [Heard() for _ in range(parallel)]
    calls = [asyncio.create_task(ask("kimi-k3", each)) for each in heard]
    await soon(asyncio.gather(*(each.first.wait() for each in heard)))
    assert not any(call.done() for call in calls)
    server.gate.set()
    assert [completion.content for completion in await soon(asyncio.gather(*calls))] == ["ab"] * parallel


async def test_slow_caller_is_not_taken_for_a_slow_provider(server: ProviderServer, ask_impatiently: Asker) -> None:
    """The time a piece spends with the caller does not count against the gap between pieces."""
    server.script(stream(*(chunk({"content": str(number)}) for number in range(3)), chunk({}, finish="stop")))

    async def slow(delta: Delta) -> None:
        if delta.content == "1":
            loop = asyncio.get_running_loop()
            passed = asyncio.Event()
            loop.call_later(0.6, passed.set)
            await passed.wait()

    assert (await ask_impatiently("kimi-k3", slow)).content == "012"


async def test_error_of_the_caller_passes_unchanged_and_closes_the_response(server: ProviderServer, ask: Asker) -> None:
    """A caller that cannot take the piece ends the call; the provider is not to blame."""
    server.script(stream(chunk({"content": "a"}), "hang"))
    gone = RuntimeError("the caller went away")

    async def fails(delta: Delta) -> None:
        raise gone

    with pytest.raises(RuntimeError) as raised:
        await ask("kimi-k3", fails)
    assert raised.value is gone
    await soon(server.chats[0].gone.wait())
    assert ask.providers.status()[0].breaker == "closed"


async def test_answer_larger_than_a_message_is_ended_with_the_part_received(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """The limit of a message is that of an answer; closing ends the provider's work."""
    server.script(stream(*(chunk({"content": "x" * 400}) for _ in range(10)), "hang"))
    async with opened(LimitSettings(message_bytes=1_024)) as providers:
        with pytest.raises(ProviderBroken, match="larger than a message may be") as broken:
            await Asker(providers)("kimi-k3")
    assert broken.value.partial == "x" * 800
    await soon(server.chats[0].gone.wait())


async def test_what_was_done_is_recorded(server: ProviderServer, ask: Asker, recorder: MetricsRecorder) -> None:
    """Requests by outcome, times, and tokens by kind."""
    await ask("glm-5.3")
    server.script(glm_answer())
    await ask("glm-5.3")
    labels = {"provider": "glm", "model": "glm-5.3"}
    assert recorder.value("provider_requests_total", outcome="ok", **labels) == 2
    assert recorder.value("provider_tokens_total", kind="cached", **labels) == 4
    assert recorder.value("provider_tokens_total", kind="reasoning", **labels) == 3
    text = recorder.render().decode()
    assert 'exai_provider_first_token_seconds_count{model="glm-5.3",provider="glm"} 2' in text
    assert 'exai_provider_seconds_count{model="glm-5.3",outcome="ok",provider="glm"} 2' in text


async def test_cost_follows_from_the_usage(server: ProviderServer, ask: Asker) -> None:
    """11 input tokens of which 4 cached, 7 output, at Kimi's prices."""
    server.script(kimi_answer())
    model = ask.providers.resolve("kimi-k3.1-pro")
    completion = await ask("kimi-k3.1-pro")
    assert ask.providers.prices.cost_usd(model, completion.usage) == Decimal("0.0000848")
