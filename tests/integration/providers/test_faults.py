"""Faults of a provider over real HTTP, each followed by a request that succeeds.

The cases are those of the fault list: hangs, cuts, drips, refusals, storms, replies that are no answers, cancellation.
"""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from exai.errors import (
    DeadlineExceeded,
    ProviderAuthFailed,
    ProviderBroken,
    ProviderError,
    ProviderLimited,
    ProviderRefused,
    ProviderTooLong,
    ProviderUnavailable,
    ProviderUnknownModel,
)
from exai.models import CompletionRequest, Prompt
from exai.monitoring.metrics import MetricsRecorder
from exai.providers.completion.client import MAX_CONNECTIONS
from exai.resilience import with_deadline
from tests.integration.providers.conftest import KEY, Asker, Heard, OpenProviders, Pauses, soon
from tests.support.provider_server import (
    Break,
    ProviderServer,
    Reply,
    break_after_first_token,
    break_before_headers,
    chunk,
    drip,
    event,
    failure,
    glm_error,
    gzip_bomb,
    hang_after_first_token,
    hang_before_headers,
    huge_line,
    kimi_answer,
    kimi_error,
    stream,
)


async def recovers(ask: Asker) -> None:
    """After the fault the next request is answered."""
    assert (await ask("kimi-k3")).finish_reason == "stop"


async def test_hang_before_headers_ends_at_the_first_token_limit_without_a_second_request(
    server: ProviderServer, ask_impatiently: Asker
) -> None:
    """The provider has the request and may be working on it; asking again would double its load."""
    server.script(hang_before_headers())
    with pytest.raises(ProviderUnavailable, match=r"no answer began within 0\.3 s"):
        await ask_impatiently("kimi-k3")
    assert len(server.chats) == 1
    await soon(server.chats[0].gone.wait())
    await recovers(ask_impatiently)


async def test_hang_before_headers_ends_at_the_requests_deadline(server: ProviderServer, ask: Asker) -> None:
    """The request's own time ends before the provider's."""
    server.script(hang_before_headers())
    with with_deadline(0.1), pytest.raises(DeadlineExceeded, match="provider kimi"):
        await ask("kimi-k3")
    await soon(server.chats[0].gone.wait())
    await recovers(ask)


@pytest.mark.parametrize(
    "sign",
    [
        b": ping\n\n",
        chunk({"content": ""}),
        chunk({"reasoning_details": [{"type": "reasoning.encrypted"}]}),
        b"data:\n\n",
    ],
    ids=["comment", "empty content", "hidden reasoning", "empty data"],
)
async def test_server_that_shows_that_it_is_at_work_is_given_the_requests_time(
    server: ProviderServer, ask_impatiently: Asker, sign: bytes
) -> None:
    """A model may think for longer than the first-token limit without a word of it."""
    server.script(stream(*[sign, 0.05] * 12, chunk({"content": "thought"}, finish="stop"), event("[DONE]")))
    assert (await ask_impatiently("kimi-k3")).content == "thought"


async def test_silence_after_a_sign_of_life_ends_at_the_first_token_limit(
    server: ProviderServer, ask_impatiently: Asker
) -> None:
    """Headers and one keep-alive are not the first token."""
    server.script(stream(chunk({"role": "assistant", "content": ""}), b": ping\n\n", "hang"))
    with pytest.raises(ProviderUnavailable, match="no answer began"):
        await ask_impatiently("kimi-k3")


async def test_signs_of_life_without_an_answer_end_at_the_requests_deadline(server: ProviderServer, ask: Asker) -> None:
    """A server may say that it is alive for ever without answering."""
    server.script(stream(*[b": ping\n\n", 0.01] * 1_000))
    with with_deadline(0.3), pytest.raises(DeadlineExceeded):
        await ask("kimi-k3")
    await soon(server.chats[0].gone.wait())


async def test_reasoning_is_progress_before_the_first_content(server: ProviderServer, opened: OpenProviders) -> None:
    """Reasoning may exceed the first-token limit while its pieces arrive."""
    steps = [step for number in range(8) for step in (chunk({"reasoning_content": str(number)}), 0.05)]
    server.script(stream(*steps, chunk({"content": "done"}, finish="stop")))
    async with opened(first_token_timeout_s=0.2, stream_idle_timeout_s=1.0) as providers:
        completion = await Asker(providers)("kimi-k3")
    assert (completion.reasoning, completion.content) == ("01234567", "done")


async def test_hang_in_the_middle_ends_at_the_gap_limit_with_the_text_so_far(
    server: ProviderServer, ask_impatiently: Asker
) -> None:
    """The turn stores the text as partial; it is not an answer."""
    server.script(hang_after_first_token("Hel"))
    with pytest.raises(ProviderBroken, match="the answer stopped") as broken:
        await ask_impatiently("kimi-k3")
    assert broken.value.partial == "Hel"
    assert len(server.chats) == 1
    await soon(server.chats[0].gone.wait())
    await recovers(ask_impatiently)


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_cut_in_the_middle_is_not_taken_for_the_end(server: ProviderServer, ask: Asker, how: Break) -> None:
    """Without a finish marker there is no answer, and after the first piece no retry."""
    server.script(break_after_first_token(how, "Hel", gate=True))
    heard = Heard()
    call = asyncio.create_task(ask("kimi-k3", heard))
    await soon(heard.first.wait())
    server.gate.set()
    with pytest.raises(ProviderBroken) as broken:
        await call
    assert broken.value.partial == "Hel"
    assert len(server.chats) == 1
    await recovers(ask)


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("pieces", [["Hel"], ["He", "l"]])
async def test_cut_inside_json_lines_keeps_the_text_so_far(
    server: ProviderServer, ask: Asker, how: Break, pieces: list[str]
) -> None:
    """Each line is an answer's piece when it is complete, as an event is."""
    lines = [json.dumps({"message": {"content": each}, "done": False}).encode() + b"\n" for each in pieces]
    server.script(Reply([*lines, b'{"mess', "gate", how], headers={"content-type": "application/x-ndjson"}))
    heard = Heard()
    call = asyncio.create_task(ask("kimi-k3", heard))
    await soon(heard.first.wait())
    server.gate.set()
    with pytest.raises(ProviderBroken, match="the connection broke") as broken:
        await call
    assert broken.value.partial == "".join(piece.content for piece in heard.pieces) == "Hel"
    assert len(server.chats) == 1
    await recovers(ask)


@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_stream_that_ends_properly_without_a_finish_marker_is_broken(
    server: ProviderServer, ask: Asker, framing: str
) -> None:
    """A clean end of the HTTP response is not the end of the answer."""
    server.script(stream(chunk({"content": "Hel"}), framing="chunked" if framing == "chunked" else "close"))
    with pytest.raises(ProviderBroken, match="ended before the answer did") as broken:
        await ask("kimi-k3")
    assert broken.value.partial == "Hel"


@pytest.mark.parametrize(
    "reply",
    [
        break_before_headers("fin"),
        break_before_headers("rst"),
        stream("fin"),
        stream("rst"),
        stream(b": hello\n\n"),
        stream(event("[DONE]")),
    ],
    ids=["fin", "rst", "fin after headers", "rst after headers", "empty stream", "done only"],
)
async def test_cut_before_the_first_piece_is_tried_again(server: ProviderServer, ask: Asker, reply: Reply) -> None:
    """No piece has reached the caller."""
    server.script(reply)
    completion = await ask("kimi-k3")
    assert (completion.attempts, len(server.chats)) == (2, 2)


async def test_drip_is_ended_by_the_requests_deadline(server: ProviderServer, ask: Asker) -> None:
    """Bytes keep coming, an answer does not; HTTP clients have no limit for the whole."""
    server.script(drip("Hel"))
    with with_deadline(0.2), pytest.raises(DeadlineExceeded) as ended:
        await ask("kimi-k3")
    assert ended.value.partial == "Hel"
    await soon(server.chats[0].gone.wait())
    await recovers(ask)


async def test_drip_after_the_end_does_not_hold_the_answer(server: ProviderServer, ask: Asker) -> None:
    """The limits after [DONE] are not extended by bytes."""
    endless = [step for _ in range(10_000) for step in (b":", 0.01)]
    server.script(stream(chunk({"content": "Hello"}, finish="stop"), event("[DONE]"), *endless))
    assert (await ask("kimi-k3")).content == "Hello"


@pytest.mark.parametrize("value", ["2", "Sat, 21 Nov 2026 12:00:02 GMT"])
async def test_too_many_requests_are_repeated_after_the_time_the_provider_said(
    server: ProviderServer, ask: Asker, pauses: Pauses, value: str
) -> None:
    """Seconds or a date; the jitter comes on top."""
    server.script(kimi_error(429, "rate_limit_reached_error", headers={"retry-after": value}))
    assert (await ask("kimi-k3")).attempts == 2
    assert pauses.slept == [0.0, 2.25]


async def test_too_many_requests_without_a_time_are_repeated_with_backoff(
    server: ProviderServer, ask: Asker, pauses: Pauses
) -> None:
    """Full jitter of 0.5 s, then of 1 s."""
    server.script(glm_error(429, "1302"), glm_error(429, "1305"))
    assert (await ask("glm-5.3")).attempts == 3
    assert pauses.slept == [0.25, 0.5]


async def test_too_many_requests_for_longer_than_the_deadline_fail_at_once(
    server: ProviderServer, ask: Asker, pauses: Pauses
) -> None:
    """The error states when to try again, without a wait that cannot succeed."""
    server.script(kimi_error(429, "rate_limit_reached_error", headers={"retry-after": "120"}))
    with with_deadline(60), pytest.raises(ProviderLimited) as limited:
        await ask("kimi-k3")
    assert (limited.value.retry_after_s, limited.value.request_id) == (120, "trace-kimi-1")
    assert pauses.slept == []
    pauses.now += 121
    await recovers(ask)


@pytest.mark.parametrize("code", ["1113", "1112", "1304", "1309", "1121"])
async def test_429_for_balance_or_a_locked_account_is_not_repeated(
    server: ProviderServer, ask: Asker, code: str
) -> None:
    """GLM's business code decides; waiting does not fill an account."""
    server.script(glm_error(429, code))
    with pytest.raises((ProviderLimited, ProviderAuthFailed)) as refused:
        await ask("glm-5.3")
    assert refused.value.request_id == "glm-request-1"
    assert len(server.chats) == 1


async def test_429_does_not_open_the_breaker(server: ProviderServer, ask: Asker) -> None:
    """The provider works and answers."""
    server.default = lambda body: kimi_error(429, "rate_limit_reached_error")
    for _ in range(10):
        with pytest.raises(ProviderLimited):
            await ask("kimi-k3")
    assert ask.providers.status()[0].breaker == "closed"


@pytest.mark.parametrize("status", [500, 502, 503, 529])
async def test_storm_of_server_errors_stops_reaching_the_provider_and_one_probe_ends_it(
    server: ProviderServer, ask: Asker, pauses: Pauses, recorder: MetricsRecorder, status: int
) -> None:
    """200 requests, at most 1.1 times as many upstream; in truth the breaker leaves five. Then exactly one probe."""
    server.default = lambda body: failure(status, "<html><title>Bad Gateway</title></html>")
    requests = 200
    results = await asyncio.gather(*(ask("kimi-k3") for _ in range(20)), return_exceptions=True)
    for _ in range(requests - 20):
        with pytest.raises(ProviderUnavailable):
            await ask("kimi-k3")
    assert all(isinstance(result, ProviderUnavailable) for result in results)
    assert len(server.chats) <= requests * 1.1
    assert ask.providers.status()[0].breaker == "open"
    assert "Bad Gateway" in str(ask.providers.status()[0].last_error)

    before = len(server.chats)
    pauses.now += 6
    server.default = lambda body: stream(chunk({"content": "x"}), "gate", chunk({}, finish="stop"))
    heard = [Heard() for _ in range(100)]
    server.gate.clear()
    calls = [asyncio.create_task(ask("kimi-k3", each)) for each in heard]
    await soon(server.arrived(before + 1))
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(server.chats) == before + 1
    server.gate.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(outcome, ProviderUnavailable) for outcome in outcomes) == 99
    await recovers(ask)
    assert recorder.value("breaker_state", breaker="kimi") == 0


async def test_first_piece_of_the_probe_lets_the_others_in(server: ProviderServer, ask: Asker, pauses: Pauses) -> None:
    """A streamed answer may last minutes; its beginning already shows that the provider is back."""
    server.script(*[failure(500)] * 5)
    for _ in range(2):
        with pytest.raises(ProviderUnavailable):
            await ask("kimi-k3")
    pauses.now += 6
    server.script(stream(chunk({"content": "a"}), "gate", chunk({"content": "b"}, finish="stop")))
    heard = Heard()
    probe = asyncio.create_task(ask("kimi-k3", heard))
    await soon(heard.first.wait())
    await recovers(ask)
    server.gate.set()
    assert (await soon(probe)).content == "ab"


async def test_failing_provider_does_not_touch_the_other(server: ProviderServer, ask: Asker) -> None:
    """One breaker and one set of connections each."""
    server.default = lambda body: (
        failure(500) if body["model"].startswith("kimi") else kimi_answer("fine", model=body["model"])
    )
    for _ in range(10):
        with pytest.raises(ProviderUnavailable):
            await ask("kimi-k3")
    assert (await ask("glm-5.3")).content == "fine"
    assert [status.breaker for status in ask.providers.status()] == ["open", "closed"]


@pytest.mark.parametrize(
    ("reply", "error", "said"),
    [
        (kimi_error(401, "invalid_authentication_error", f"Key {KEY} is wrong"), ProviderAuthFailed, "KIMI_API_KEY"),
        (kimi_error(403, "exceeded_current_quota_error"), ProviderLimited, "balance"),
        (kimi_error(400, "invalid_request_error", "max tokens is too large"), ProviderRefused, "max tokens is too"),
        (kimi_error(400, "content_filter"), ProviderRefused, "content_filter"),
        (failure(404, {"error": {"message": "no such model"}}), ProviderUnknownModel, "no such model"),
        (failure(413, "<html><title>Too Large</title></html>"), ProviderTooLong, "Too Large"),
        (failure(307, headers={"location": "http://127.0.0.1:1/"}), ProviderBroken, "redirects elsewhere"),
        (failure(204, ""), ProviderBroken, "204"),
        (failure(200, "<html><title>Log in</title></html>"), ProviderBroken, "an HTML page titled 'Log in'"),
        (failure(200, "", content_type="text/plain"), ProviderBroken, "text/plain instead of an event stream"),
        (failure(200, {"object": "list", "data": []}), ProviderBroken, "application/json instead"),
        (failure(200, {"error": {"type": "content_filter"}}), ProviderRefused, "content_filter"),
        (failure(200, {"error": {"type": "never_seen", "message": "odd"}}), ProviderBroken, "odd"),
        (gzip_bomb(), ProviderBroken, "larger than 1,048,576 bytes"),
        (stream(b"x", headers={"content-encoding": "br"}), ProviderBroken, "compressed"),
        (huge_line(), ProviderBroken, "larger than 1,048,576 bytes"),
        (stream(b"data: {not json}\n\n"), ProviderBroken, "1 of its events could not be read"),
        (stream(event({"error": {"type": "content_filter", "message": "no"}})), ProviderRefused, "content_filter"),
        (stream(event({"error": {"code": "1301", "message": "no"}})), ProviderRefused, "1301"),
        (stream(chunk({"content": "x"}), event({"error": {"type": "server_error"}})), ProviderBroken, "server_error"),
        (stream(chunk({"content": "x"}, finish="network_error")), ProviderBroken, "network_error"),
    ],
    ids=lambda value: "" if isinstance(value, Reply | type) else value,
)
async def test_reply_that_is_no_answer_is_a_typed_error_after_one_request(
    server: ProviderServer, ask: Asker, reply: Reply, error: type[ProviderError], said: str
) -> None:
    """Status, type and code decide; keys are never repeated; the upstream response is closed."""
    server.script(reply)
    with pytest.raises(error) as raised:
        await ask("glm-5.3" if "1301" in said else "kimi-k3")
    assert type(raised.value) is error
    assert said in str(raised.value)
    assert KEY not in str(raised.value)
    assert len(server.chats) == 1
    await recovers(ask)


async def test_error_never_repeats_the_prompt(server: ProviderServer, ask: Asker) -> None:
    """Errors go to logs, metrics and the turn's record."""
    secret = "the launch code is 8241 and nobody may know"
    server.script(kimi_error(400, "invalid_request_error", f"cannot parse: {secret}"))
    with pytest.raises(ProviderRefused) as refused:
        await ask("kimi-k3", messages=[Prompt("user", secret)])
    assert "launch" not in str(refused.value)
    assert "8241" not in str(ask.providers.status()[0].last_error)


async def test_error_body_that_never_ends_does_not_hold_the_error(
    server: ProviderServer, ask_impatiently: Asker
) -> None:
    """The status alone is enough to go on."""
    server.script(Reply([b"{", "hang"], 400, {"content-type": "application/json"}))
    with pytest.raises(ProviderRefused, match="HTTP 400"):
        await ask_impatiently("kimi-k3")
    assert len(server.chats) == 1


async def test_cancelled_call_closes_the_response_at_once_and_counts_nothing(
    server: ProviderServer, ask: Asker, recorder: MetricsRecorder
) -> None:
    """The model must not continue for a cancelled call."""
    server.script(hang_after_first_token())
    heard = Heard()
    call = asyncio.create_task(ask("kimi-k3", heard))
    await soon(heard.first.wait())
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await soon(server.chats[0].gone.wait())
    assert recorder.value("breaker_calls_total", breaker="kimi-k3", outcome="failure") == 0
    assert recorder.value("provider_requests_total", provider="kimi", model="kimi-k3", outcome="cancelled") == 1
    await recovers(ask)


async def test_cancelled_probe_frees_its_slot(server: ProviderServer, ask: Asker, pauses: Pauses) -> None:
    """A cancelled probe must not block the provider for other callers."""
    server.script(*[failure(500)] * 5)
    for _ in range(2):
        with pytest.raises(ProviderUnavailable):
            await ask("kimi-k3")
    assert ask.providers.status()[0].breaker == "open"
    pauses.now += 6
    server.script(hang_before_headers())
    probe = asyncio.create_task(ask("kimi-k3"))
    await soon(server.arrived(6))
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    await recovers(ask)


async def test_request_beyond_the_connections_of_a_provider_waits_for_one(
    server: ProviderServer, opened: OpenProviders
) -> None:
    """The provider never sees more connections than the limit, and the waiting request is answered afterwards."""
    server.default = lambda body: stream("gate", chunk({"content": "x"}, finish="stop"))
    async with opened(connect_timeout_s=60.0, glm={}) as providers:
        await providers.discover()
        model = providers.resolve("kimi-k3")
        request = CompletionRequest(model.name, [Prompt("user", "hello")])
        calls = [asyncio.create_task(providers.complete(model, request, None)) for _ in range(MAX_CONNECTIONS + 1)]
        async with asyncio.timeout(60):
            await server.arrived(MAX_CONNECTIONS)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(server.chats) == server.connections == MAX_CONNECTIONS
            server.gate.set()
            assert len(await asyncio.gather(*calls)) == MAX_CONNECTIONS + 1
        assert providers.status()[0].breaker == "closed"


async def test_refused_connection_is_unavailable_with_the_systems_message(opened: OpenProviders) -> None:
    """What is broken is named with its cause."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        settings = {"api_key": KEY, "base_url": f"http://127.0.0.1:{port}/v1"}
        async with opened(kimi=settings, max_attempts=2) as providers:
            with pytest.raises(ProviderUnavailable) as failed:
                await Asker(providers)("kimi-k3")
    assert "cannot be reached at 127.0.0.1" in str(failed.value)
    assert "refused" in str(failed.value).lower()


async def test_server_that_accepts_no_connection_ends_at_the_connect_limit(opened: OpenProviders) -> None:
    """A full backlog answers nothing at all."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        settings = {"api_key": KEY, "base_url": f"http://127.0.0.1:{full.getsockname()[1]}/v1"}
        async with opened(kimi=settings, max_attempts=1, connect_timeout_s=0.2) as providers:
            with pytest.raises(ProviderUnavailable, match="cannot be reached"):
                await Asker(providers)("kimi-k3")
        for each in waiting:
            each.close()
