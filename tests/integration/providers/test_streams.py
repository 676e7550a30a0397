"""Streams as servers send them, over real HTTP: no part of the text is lost silently."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any, NamedTuple

import pytest

from exai.errors import ExaiError, ProviderBroken, ProviderRefused, ProviderTooLong
from exai.models import Usage
from exai.monitoring.metrics import MetricsRecorder
from tests.integration.providers.conftest import Asker
from tests.support.provider_server import Framing, ProviderServer, Reply, Step, chunk, event, stream

USAGE = {"prompt_tokens": 11, "completion_tokens": 7}
END = event("[DONE]")
STOP = chunk({}, finish="stop", usage=USAGE)


class Case(NamedTuple):
    """A reply and its expected result."""

    reply: Reply
    content: str | type[ExaiError] = "Do NOT delete it."
    partial: bool = False
    unread: int = 0
    reasoning: str = ""
    finish: str = "stop"
    usage: Usage = Usage(11, 7)
    note: str = ""


def whole(*steps: Step, **expected: Any) -> Case:
    """A case whose stream is complete."""
    return Case(stream(*steps, STOP, END), **expected)


def parts(*deltas: dict[str, Any], **expected: Any) -> Case:
    """A case made of deltas."""
    return whole(*map(chunk, deltas), **expected)


def raw(text: str | bytes, framing: Framing = "chunked", **expected: Any) -> Case:
    """A case of an event stream as it stands."""
    body = text.encode() if isinstance(text, str) else text
    return Case(stream(body, framing=framing), **expected)


def lines(*texts: str, end: str = "\n", **expected: Any) -> Case:
    """A case of lines of `data`, each an event."""
    return raw("".join(f"data: {text}{end}{end}" for text in texts), **expected)


def said(*texts: str, finish: str | None = None) -> list[str]:
    """The data of chunks with these texts, the last with a finish reason."""
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None} for text in texts]
    if finish:
        choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    return [json.dumps({"choices": [each]}) for each in choices] + ([json.dumps({"usage": USAGE})] if finish else [])


def reply_as(body: bytes, content_type: str = "application/json", **headers: str) -> Reply:
    """A reply with a body and a type."""
    return Reply([body], 200, {"content-type": content_type, **headers}, framing="length")


def choice(delta: Any, index: Any = 0, **more: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": None, **more}


def typed(kind: str, **facts: Any) -> bytes:
    return f"event: {kind}\n".encode() + event({"type": kind, **facts})


def choices(*each: Any, **more: Any) -> bytes:
    return event({"choices": list(each), **more})


D, N = "Do NOT ", "delete it."
TEXT = [chunk({"content": D}), chunk({"content": N})]
MESSAGE = {"choices": [{"index": 0, "message": {"role": "assistant", "content": D + N}, "finish_reason": "stop"}]}
PLAIN = "".join(f"data: {text}\n\n" for text in [*said(D, N, finish="stop"), "[DONE]"])
CALL = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "look", "arguments": "{"}}]}
GO_ON = {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}

CASES: dict[str, Case] = {
    # Shapes of content.
    "array of parts": parts({"content": [{"type": "text", "text": D}]}, {"content": N}),
    "array of strings": parts({"content": [D, N]}),
    "one part": parts({"content": {"type": "text", "text": D}}, {"content": {"text": N}}),
    "text with a value": parts({"content": [{"type": "text", "text": {"value": D + N, "annotations": []}}]}),
    "output_text parts": parts({"content": [{"type": "output_text", "text": D + N}]}),
    "nested parts": parts({"content": [[{"parts": [{"text": D}, {"text": N}]}]]}),
    "unknown type with text": parts({"content": [{"type": "never_seen", "text": D + N}]}),
    "a number": parts({"content": 42}, content="42"),
    "refusal": parts({"refusal": "Do NOT "}, {"refusal": "delete it."}),
    "refusal part": parts({"content": [{"type": "refusal", "refusal": D + N}]}),
    "delta is text": whole(choices(choice(D)), choices(choice(N))),
    "delta is a list of parts": whole(choices(choice([{"type": "text", "text": D + N}]))),
    "text beside choices": whole(event({"delta": {"content": D}}), event({"delta": {"text": N}})),
    "completions shape": whole(choices({"index": 0, "text": D}), choices({"index": 0, "text": N})),
    "choices is an object": whole(event({"choices": {"delta": {"content": D + N}}})),
    "envelope of another name": whole(event({"result": {"choices": [choice({"content": D + N})]}})),
    "envelope": whole(event({"code": 0, "data": {"choices": [choice({"content": D + N})]}})),
    "message instead of delta": whole(choices({"message": {"content": D}}), choices({"message": {"content": N}})),
    "message repeats the deltas": whole(*TEXT, event(MESSAGE)),
    "message says more than the deltas": whole(TEXT[0], event(MESSAGE)),
    "transcript of audio": parts(
        {"audio": {"transcript": D + N, "data": "AAAA"}}, partial=True, unread=1, note="also held audio"
    ),
    "image part": parts(
        {"content": [{"type": "text", "text": D + N}, {"type": "image_url", "image_url": {"url": "data:"}}]},
        partial=True,
        unread=1,
        note="an image",
    ),
    "images beside": parts(
        {"content": D + N}, {"images": [{"type": "image_url"}]}, partial=True, unread=1, note="an image"
    ),
    "part under the name of its type": parts({"content": [{"type": "markdown", "markdown": D + N}]}),
    "unknown part": parts({"content": [D + N, {"type": "hologram", "blob": 1}]}, partial=True, unread=1),
    "text that is null": parts({"content": [{"type": "text", "text": None}, {"type": "text", "text": D + N}]}),
    "message within a delta": parts({"message": {"content": {"text": D}}}, {"message": {"content": [N]}}),
    "unknown field": parts({"content": D + N}, {"hologram": "more"}, partial=True, unread=1, note="field hologram"),
    "chunk of another protocol": whole(
        *TEXT, event({"candidates": [{"content": {"parts": [{"text": "x"}]}}]}), partial=True, unread=1
    ),
    "metadata of the provider": parts({"content": D + N, "hologram": "more"}, {"annotations": [1, 2], "phase": "end"}),
    "content is true": parts({"content": D + N}, {"content": True}, partial=True, unread=1, note="could not be read"),
    "tool call": parts({"content": D + N}, CALL, GO_ON, partial=True, unread=1, note="a call of the tool look"),
    "function call": parts(
        {"content": D + N, "function_call": {"name": "f", "arguments": "{}"}}, partial=True, unread=1, note="tool f"
    ),
    "no tool calls": parts({"content": D + N, "tool_calls": [], "function_call": None}),
    # Reasoning.
    "reasoning_details": parts(
        {"reasoning_details": [{"type": "reasoning.text", "text": "hm"}]}, {"content": D + N}, reasoning="hm"
    ),
    "reasoning under two names": parts(
        {"reasoning": "hm", "reasoning_details": [{"text": "hm"}], "content": D + N}, reasoning="hm"
    ),
    "thinking": parts({"thinking": "h"}, {"thinking": {"content": "m"}}, {"content": D + N}, reasoning="hm"),
    "thinking part": parts(
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": D + N},
            ]
        },
        reasoning="hm",
    ),
    "encrypted reasoning": parts(
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]}, {"content": D + N}
    ),
    "think tags": parts({"content": "<think>hm</think>ok"}, content="<think>hm</think>ok"),
    # Choices.
    "other choices": whole(
        choices(choice({"content": D}), choice({"content": "Yes"}, 1)), choices(choice({"content": "!"}, 1)), TEXT[1]
    ),
    "other choice first": whole(choices(choice({"content": "Yes"}, 1), choice({"content": D + N}))),
    "only an other choice": Case(
        stream(choices(choice({"content": D}, 1)), choices(choice({"content": N}, 1, finish_reason="stop")), END),
        usage=Usage(),
    ),
    "blocks of Anthropic": Case(
        stream(
            typed("message_start", message={"content": [], "usage": {"input_tokens": 11, "output_tokens": 1}}),
            typed("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "hm"}),
            typed("content_block_delta", index=1, delta={"type": "text_delta", "text": D}),
            typed("content_block_delta", index=1, delta={"type": "text_delta", "text": N}),
            typed("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7}),
            typed("message_stop"),
        ),
        reasoning="hm",
    ),
    "events of Responses": Case(
        stream(
            typed("response.created", response={"status": "in_progress"}),
            typed("response.output_text.delta", delta=D, output_index=1),
            typed("response.output_text.delta", delta=N, output_index=1),
            typed("response.output_text.done", text=D + N),
            typed("response.completed", response={"usage": {"input_tokens": 11, "output_tokens": 7}}),
        ),
        finish="other",
    ),
    "index as text": whole(choices(choice({"content": D}, "0"), choice({"content": "Yes"}, "1")), TEXT[1]),
    # Noise between events.
    "empty data": whole(TEXT[0], b"data:\n\n", TEXT[1]),
    "data: ping": whole(TEXT[0], b"data: ping\n\n", TEXT[1]),
    "event: ping": whole(TEXT[0], b'event: ping\ndata: {"type": "ping"}\n\n', TEXT[1]),
    "comments": whole(b": OPENROUTER PROCESSING\n\n", *TEXT, b":\n"),
    "name before the name": raw(PLAIN.replace("data: ", "data: data: ")),
    "null and empty documents": whole(TEXT[0], event("null"), event("{}"), event("[]"), TEXT[1]),
    "not JSON": whole(TEXT[0], b'data: {"choices": [{"delta"\n\n', TEXT[1], partial=True, unread=1, note="1 events"),
    "not JSON only": Case(stream(b"data: {oops\n\n", END), ProviderBroken),
    # JSON that others read.
    "NaN": lines(*said(D), '{"choices": [{"delta": {"content": "delete it."}, "logprob": NaN}]}', *said(finish="stop")),
    "-Infinity": lines('{"x": [-Infinity, Infinity], ' + said(D + N)[0][1:], *said(finish="stop")),
    "half a pair in each delta": lines(
        '{"choices": [{"delta": {"content": "a\\ud83d"}}]}',
        '{"choices": [{"delta": {"content": "\\ude00b"}}]}',
        *said(finish="stop"),
        content="a\U0001f600b",
    ),
    "half a pair at the end": lines(
        '{"choices": [{"delta": {"content": "a\\ud83d"}}]}', *said(finish="stop"), content="a\ufffd"
    ),
    "NUL": parts({"content": "a\x00b"}, content="a\ufffdb"),
    "control character in a string": lines(
        said(D + N)[0].replace("NOT", "NOT\t"), *said(finish="stop"), content="Do NOT\t delete it."
    ),
    "huge number": lines(said(D + N)[0][:-1] + ', "created": ' + "9" * 5_000 + "}", *said(finish="stop")),
    # Framing.
    "CR LF": lines(*said(D, N, finish="stop"), "[DONE]", end="\r\n"),
    "CR": lines(*said(D, N, finish="stop"), "[DONE]", end="\r"),
    "BOM": raw("\ufeff" + PLAIN),
    "no space after the colon": raw(PLAIN.replace("data: ", "data:")),
    "no last line end": raw(PLAIN.rstrip("\n")),
    "no blank lines": raw(PLAIN.replace("\n\n", "\n")),
    "two documents in a line": lines("".join(said(D, N, finish="stop")), "[DONE]"),
    "one document over several lines": raw(
        "data: " + json.dumps(MESSAGE | {"usage": USAGE}, indent=1).replace("\n", "\ndata: ") + "\n\n"
    ),
    "names of events": raw(PLAIN.replace("data: ", "event: message\nid: 7\ndata: ")),
    "gzip": Case(reply_as(gzip.compress(PLAIN.encode()), "text/event-stream", **{"content-encoding": "gzip"})),
    "gzip without a header": Case(reply_as(gzip.compress(PLAIN.encode()), "text/event-stream")),
    "deflate": Case(
        reply_as(zlib.compress(PLAIN.encode())[2:-4], "text/event-stream", **{"content-encoding": "deflate"})
    ),
    "stream under another type": Case(reply_as(PLAIN.encode(), "text/plain")),
    "stream without a type": Case(reply_as(PLAIN.encode(), "")),
    "one JSON document": Case(reply_as(json.dumps(MESSAGE | {"usage": USAGE}).encode())),
    "one JSON document as a stream": raw(json.dumps(MESSAGE | {"usage": USAGE}, indent=2)),
    "JSON lines": Case(reply_as("\n".join(said(D, N, finish="stop")).encode(), "application/x-ndjson")),
    "JSON lines that say they are done": Case(
        reply_as(
            b'{"message": {"content": "Do NOT "}, "done": false}\n{"message": {"content": "delete it."}}\n'
            b'{"done": true, "prompt_eval_count": 11, "eval_count": 7}\n',
            "application/x-ndjson",
        )
    ),
    "JSON lines without an end": Case(reply_as("\n".join(said(D, N)).encode(), "application/x-ndjson"), ProviderBroken),
    "one JSON document on a line": Case(reply_as(json.dumps(MESSAGE | {"usage": USAGE}).encode() + b"\n")),
    "one JSON document on many lines": Case(reply_as(json.dumps(MESSAGE | {"usage": USAGE}, indent=1).encode())),
    "JSON lines, reset before the end": Case(
        Reply(
            [f"{each}\n".encode() for each in said(D, N)] + [0.05, "rst"], headers={"content-type": "application/json"}
        ),
        ProviderBroken,
    ),
    "JSON lines, reset after the reason": Case(
        Reply(
            [f"{each}\n".encode() for each in said(D, N, finish="stop")] + [0.05, "rst"],
            headers={"content-type": "application/x-ndjson"},
        ),
        partial=True,
        note="the connection broke",
    ),
    "lines without data:": raw(f": hello\n\n{PLAIN}".replace("data: {", "{")),
    # Finish.
    "no [DONE]": Case(stream(*TEXT, STOP)),
    "no finish reason": Case(stream(*TEXT, event({"usage": USAGE}), END), finish="other"),
    "DONE": Case(stream(*TEXT, event({"usage": USAGE}), b"data: DONE\n\n"), finish="other"),
    "event: done": Case(stream(*TEXT, event({"usage": USAGE}), b"event: done\ndata: {}\n\n"), finish="other"),
    "done is true": Case(stream(*TEXT, event({"usage": USAGE}), event({"done": True}))),
    "neither": Case(stream(*TEXT), ProviderBroken),
    "length": Case(stream(*TEXT, chunk({}, finish="length", usage=USAGE), END), finish="length"),
    "max_tokens in capitals": Case(stream(*TEXT, chunk({}, finish="MAX_TOKENS", usage=USAGE), END), finish="length"),
    "content_filter": Case(
        stream(*TEXT, chunk({}, finish="content_filter", usage=USAGE), END), finish="content_filter"
    ),
    "unknown reason": Case(stream(*TEXT, chunk({}, finish="bored", usage=USAGE), END), finish="other"),
    "aborted": Case(stream(*TEXT, chunk({}, finish="abort"), END), ProviderBroken),
    "a reason in each chunk": whole(chunk({"content": D}, finish="stop"), chunk({"content": N}, finish="stop")),
    "a reason in each chunk, no end": Case(
        stream(chunk({"content": D}, finish="stop"), chunk({"content": N}, finish="stop"), framing="close"),
        partial=True,
        usage=Usage(),
        note="without its end marker",
    ),
    "reset after a reason in each chunk": Case(
        stream(chunk({"content": D}, finish="stop"), 0.05, chunk({"content": N}, finish="stop"), 0.05, "rst"),
        partial=True,
        usage=Usage(),
        note="the connection broke",
    ),
    "end of file after the reason": Case(stream(*TEXT, STOP, "fin"), partial=True, note="the connection broke"),
    "silence after the reason": Case(
        stream(chunk({"content": D}, finish="stop"), chunk({"content": N}, finish="stop", usage=USAGE), "hang"),
        partial=True,
        note="did not end",
    ),
    "reset before the reason": Case(stream(*TEXT, 0.05, "rst"), ProviderBroken),
    # Usage.
    "empty usage later": whole(*TEXT, event({"choices": [], "usage": {}}), STOP, event({"choices": [], "usage": {}})),
    "usage null, choices null": whole(*TEXT, event({"choices": None, "usage": None})),
    "usage in a chunk without choices": Case(
        stream(*TEXT, chunk({}, finish="stop"), event({"choices": None, "usage": USAGE}), END)
    ),
    "cumulative usage": whole(
        chunk({"content": D}, usage={"prompt_tokens": 11, "completion_tokens": 1}),
        chunk({"content": N}, usage={"prompt_tokens": 11, "completion_tokens": 6}),
    ),
    "usage in the choice": Case(stream(*TEXT, chunk({}, finish="stop", choice_usage=USAGE), END)),
    "x_groq usage": Case(stream(*TEXT, chunk({}, finish="stop", x_groq={"id": "r", "usage": USAGE}), END)),
    "usage as floats": Case(
        stream(*TEXT, chunk({}, finish="stop", usage={"prompt_tokens": 11.0, "completion_tokens": "7"}), END)
    ),
    "negative and huge usage": Case(
        stream(*TEXT, chunk({}, finish="stop", usage={"prompt_tokens": -3, "completion_tokens": 2**64}), END),
        usage=Usage(0, 2**53),
    ),
    "timings of llama.cpp": Case(
        stream(*TEXT, chunk({}, finish="stop", timings={"prompt_n": 11, "predicted_n": 7}), END)
    ),
    # Errors.
    "error in the stream": Case(
        stream(TEXT[0], event({"error": {"message": "no", "type": "server_error"}})), ProviderBroken
    ),
    "error before anything": Case(stream(event({"error": {"type": "content_filter"}})), ProviderRefused),
    "error in a choice": Case(
        stream(TEXT[0], choices(choice({}, error={"code": 502, "message": "upstream"}, finish_reason="error"))),
        ProviderBroken,
    ),
    "error in a field of its own": Case(
        stream(b'error: {"code": 400, "type": "exceed_context_size_error", "message": "no"}\n\n'), ProviderTooLong
    ),
    "error of Groq beside the reason": Case(
        stream(*TEXT, chunk({}, finish="stop", x_groq={"error": "over capacity"}), END),
        partial=True,
        usage=Usage(),
        note="over capacity",
    ),
    "error of MiniMax": Case(
        stream(event({"choices": None, "base_resp": {"status_code": 1008, "status_msg": "no balance"}})), ProviderBroken
    ),
    "no error of MiniMax": whole(*TEXT, event({"choices": [], "base_resp": {"status_code": 0, "status_msg": ""}})),
    "error with a code of 0": whole(
        event({"error": {"code": 0, "message": ""}, "choices": [choice({"content": D})]}), TEXT[1]
    ),
    "error is null": whole(event({"error": None, "choices": [choice({"content": D})]}), TEXT[1]),
    "error after the reason": Case(
        stream(*TEXT, STOP, event({"error": {"message": "late"}})), partial=True, note="late"
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_stream_gives_the_whole_text_or_says_what_is_missing(
    server: ProviderServer, ask_impatiently: Asker, recorder: MetricsRecorder, case: Case
) -> None:
    """As clients of the field read them: leniently, and never in silence."""
    server.default = lambda _: case.reply
    if not isinstance(case.content, str):
        with pytest.raises(case.content):
            await ask_impatiently("kimi-k2.6")
        return
    completion = await ask_impatiently("kimi-k2.6")
    assert completion.content == case.content
    assert (completion.reasoning, completion.finish_reason) == (case.reasoning, case.finish)
    assert completion.usage == case.usage
    assert (completion.is_partial, completion.unread_events) == (case.partial, case.unread)
    assert case.note in " ".join(completion.notes)
    assert bool(completion.notes) is case.partial
    assert recorder.value("provider_unread_total", provider="kimi", model="kimi-k2.6") == case.unread
