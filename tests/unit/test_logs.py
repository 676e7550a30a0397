"""Logs: one format for EXAI and its libraries, and no secret in any line."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
import time
from itertools import product

import pytest
import structlog

from exai.logs import (
    _ADDRESS,
    _SECRET_TEXT,
    MAX_VALUE_CHARS,
    MAX_WAITING_LINES,
    configure_logging,
    info_each,
    redact_text,
)
from exai.settings.addresses import redact as redact_address
from exai.settings.load import LogSettings
from tests.support.daemon import ROOT

LIBRARY = """
import exai.logs, structlog
exai.logs.log_to_stderr()
message = "what the user said"
try:
    raise ValueError("sk-of-a-provider-1234 is refused")
except ValueError:
    structlog.get_logger().exception("slow_operation")
"""

KEY = "sk-0123456789abcdef"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZSJ9.c2lnbmF0dXJlLXBhcnQ"
SECRETS = ("pa55word", KEY, JWT, "0123456789abcdef0123456789abcdef.Abcdefghijklmnop")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def logged(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def configured(level: str = "info", format: str = "json") -> io.StringIO:
    stream = io.StringIO()
    configure_logging(LogSettings(level=level, format=format), stream)  # type: ignore[arg-type]
    return stream


def test_lines_are_json_with_fields_level_and_time() -> None:
    """Style: structlog, key-values."""
    stream = configured()
    structlog.get_logger("exai.db").info("turn finished", turn_id="t1", duration_ms=12)
    [line] = logged(stream)
    assert line["event"] == "turn finished"
    assert (line["turn_id"], line["duration_ms"], line["level"], line["logger"]) == ("t1", 12, "info", "exai.db")
    assert str(line["timestamp"]).endswith("Z")


def test_terminal_gets_text_and_anything_else_json() -> None:
    """The reader decides the format unless it is configured."""
    for stream, format, is_json in (
        (Terminal(), "auto", False),
        (io.StringIO(), "auto", True),
        (Terminal(), "json", True),
        (io.StringIO(), "text", False),
    ):
        configure_logging(LogSettings(format=format), stream)
        structlog.get_logger().info("hello")
        assert "hello" in stream.getvalue()
        assert stream.getvalue().startswith("{") is is_json


def test_lines_below_the_level_are_left_out() -> None:
    """The level is a setting."""
    stream = configured(level="warning")
    structlog.get_logger("exai").info("quiet")
    logging.getLogger("library").info("quiet")
    structlog.get_logger("exai").warning("loud")
    assert [line["event"] for line in logged(stream)] == ["loud"]


def test_fields_bound_to_a_request_are_on_all_its_lines_and_on_no_others() -> None:
    """Style: context bound per request, and libraries log inside it too."""
    stream = configured()
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger().info("inside")
        logging.getLogger("library").warning("library inside")
    structlog.get_logger().info("outside")
    assert [line.get("request_id") for line in logged(stream)] == ["r1", "r1", None]


async def test_lines_of_one_turn_of_the_event_loop_are_written_in_one_go_and_in_order() -> None:
    """A write for each request costs more than the line; what must not be lost does not wait."""
    stream = configured()
    log = structlog.get_logger("exai")
    for name in ("first", "second"):
        log.info(name)
    assert stream.getvalue() == ""
    await asyncio.sleep(0)
    assert [line["event"] for line in logged(stream)] == ["first", "second"]
    log.info("third")
    logging.getLogger("library").warning("fourth")
    log.info("fifth")
    log.warning("sixth")
    assert [line["event"] for line in logged(stream)][2:] == ["third", "fourth", "fifth", "sixth"]
    for _ in range(MAX_WAITING_LINES):
        log.info("many")
    assert len(logged(stream)) == 6 + MAX_WAITING_LINES
    log.info("last")
    logging.getLogger().handlers[0].flush()
    assert logged(stream)[-1]["event"] == "last"


@pytest.mark.parametrize("format", ["json", "text"])
async def test_shared_log_lines_equal_single_ones(format: str) -> None:
    """A shorter way that made other lines, or let one secret through, would be a second format."""
    common = {"method": "tools/call", "password": "pa55word", "peer": "common", "note": f"see {KEY}"}
    fields: list[dict[str, object]] = [
        {"request": "r1", "api_key": "pa55word", "ms": 0.1, "peer": "own"},
        {"request": f"x {KEY}", "error": f"postgres://u:pa55word@h/d {JWT}", "number": 2**70},
        {
            "name": "\ud800",
            "deep": {"token": "pa55word"},
            "error": ValueError(f"Bearer {JWT}"),
            "exc_info": KeyError("no"),
        },
    ]
    written = []
    for together in (True, False):
        stream = configured(format=format)
        log = structlog.get_logger("exai.mcp")
        with structlog.contextvars.bound_contextvars(peer="bound", owner="o"):
            log.info("before")
            if together:
                info_each("exai.mcp", "request", common, [dict(each) for each in fields])
            else:
                for each in fields:
                    log.info("request", **{**common, **each})
            log.info("after")
        logging.getLogger("library").warning("last")
        written.append(re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "now", stream.getvalue()))
    together, alone = written
    assert not any(secret in together for secret in SECRETS), together
    if format == "json":
        assert [json.loads(line) for line in together.splitlines()] == [json.loads(line) for line in alone.splitlines()]
    else:
        assert together == alone
    assert "r1" in together


@pytest.mark.parametrize("fields", [[{"request": "r1", "ms": 0.1}, {"request": "r2", "ms": 2.0}], [{"a": 1}, {}]])
def test_shared_log_lines_are_byte_for_byte_those_of_single_events(fields: list[dict[str, object]]) -> None:
    """What the events have in common is encoded once."""
    common = {"owner": "o", "method": "tools/call", "note": f"see {KEY}"}
    written = []
    for together in (True, False):
        stream = configured(format="json")
        with structlog.contextvars.bound_contextvars(tool="chat"):
            for events in [fields] if together else [[each] for each in fields]:
                info_each("exai.mcp", "request", common, [dict(each) for each in events])
        written.append(re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "now", stream.getvalue()))
    assert written[0] == written[1]
    assert written[0].count("\n") == len(fields)
    assert KEY not in written[0]


def test_shared_log_lines_are_not_made_below_the_level() -> None:
    """A line that is not written must not cost a request anything."""
    stream = configured(level="warning")
    made: list[int] = []
    info_each("exai.mcp", "request", {}, ({"request": made.append(number)} for number in range(2)))
    assert (made, stream.getvalue()) == ([], "")


def test_shared_log_lines_reach_structlog_processors() -> None:
    """Without this module's configuration, and in tests, they take the usual way."""
    with structlog.testing.capture_logs() as lines:
        info_each("exai.mcp", "request", {"tool": "chat"}, [{"request": "r1"}, {"request": "r2"}])
    assert [(line["event"], line["tool"], line["request"]) for line in lines] == [
        ("request", "chat", "r1"),
        ("request", "chat", "r2"),
    ]
    configured()
    with structlog.testing.capture_logs() as lines:
        info_each("exai.mcp", "request", {}, [{"request": "r3"}])
    assert [line["request"] for line in lines] == ["r3"]


def test_lines_of_a_loop_that_has_ended_do_not_wait_for_it() -> None:
    """Its last turn may never come."""
    stream = configured()

    async def last() -> None:
        structlog.get_logger("exai").info("at its end")
        asyncio.get_running_loop().stop()

    loop = asyncio.new_event_loop()
    task = loop.create_task(last())
    loop.run_forever()
    loop.close()
    assert task.done()
    structlog.get_logger("exai").info("after")
    assert [line["event"] for line in logged(stream)] == ["at its end", "after"]


def test_libraries_share_the_format_and_are_quietened() -> None:
    """Facts on websockets: its server logger is noise below warning."""
    stream = configured()
    logging.getLogger("websockets.server").info("connection open")
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("uvicorn.access").warning("GET /health")
    logging.getLogger("httpx").info("HTTP Request")
    logging.getLogger("alembic.runtime.migration").info("Running upgrade")
    logging.getLogger("websockets.server").warning("connection %s failed", "abc")
    [line] = logged(stream)
    assert (line["event"], line["logger"]) == ("connection abc failed", "websockets.server")


def test_handlers_a_library_installed_for_itself_are_removed() -> None:
    """Otherwise its lines come twice, once in another format."""
    logging.getLogger("uvicorn").addHandler(logging.StreamHandler(io.StringIO()))
    configured()
    assert logging.getLogger("uvicorn").handlers == []


@pytest.mark.parametrize(
    "text",
    [
        "cannot connect to postgresql://exai:pa55word@db.example:5432/postgres",
        "url=rediss://:pa55word@cache:6379/0 failed",
        "postgresql:///d?host=/run&password=pa55word",
        f"Authorization: Bearer {KEY}",
        f"{{'authorization': 'Bearer {JWT}'}}",
        "authorization=Basic pa55word",
        f"header bearer {JWT} refused",
        f"the key {KEY} was refused",
        f"apikey={JWT}",
        '"api_key": "pa55word"',
        "password=pa55word",
        f"GLM says {SECRETS[3]} is wrong",
        f"wss://host/?token={JWT}",
        "KIMI_API_KEY=pa55word is wrong",
        "https://host/?access_token=pa55word&x=1",
        "EXAI_SERVER__TOKEN=pa55word",
        "'client_secret': 'pa55word'",
        "PGPASSWORD=pa55word psql",
    ],
)
def test_secrets_inside_text_are_replaced(text: str) -> None:
    """Facts on security: Authorization, apikey, sk-, JWT shapes, DSN passwords."""
    clean = redact_text(text)
    assert not any(secret in clean for secret in SECRETS), clean
    assert "***" in clean


WORDS = (
    *("authorization", "Api-Key", "api_key", "apikey", "password", "PASSWD", "pa\u017f\u017fword", "secret", "token"),
    *("to\u212aen", "bearer", "basic", "sk-", "\u017fk-", "eyJ", "eyJabcd", "://", "a", "0123456789abcdef" * 2, ""),
)
BETWEEN = ("=", ":", ": ", '": "', ".", " ", "-", "://", "?password=", "")
VALUES = ("Abcdefghijkl", "u:p@h", "a.b_c-d.e", "basic abc", "\n", "")


@pytest.mark.parametrize("word", WORDS)
def test_values_without_secrets_only_skip_redaction(word: str) -> None:
    """Most values skip it; a skipped value must be one that the patterns would not change."""
    for before, between, value in product(("", "a ", "a_"), BETWEEN, VALUES):
        text = before + word + between + value
        clean = _ADDRESS.sub(lambda match: redact_address(match[0]), text)
        for pattern, replacement in _SECRET_TEXT:
            clean = pattern.sub(replacement, clean)
        assert redact_text(text) == clean


@pytest.mark.parametrize("text", ["x" * 16_000 + "://", "://?" + "a" * 16_000, "a://:" * 3_200, "-eyJ" * 4_000])
def test_a_long_value_is_redacted_in_linear_time(text: str) -> None:
    """A caller's 16,000 characters in an error must not block the event loop for a second."""
    began = time.thread_time()
    redact_text(text)
    once = time.thread_time() - began
    began = time.thread_time()
    redact_text(text[: len(text) // 8])
    assert once < 24 * max(time.thread_time() - began, 0.002)


@pytest.mark.parametrize("secret", [f"postgresql://u:{'pa55word' * 20}@h/d", f"x {KEY}", f"x {JWT}", f"x {SECRETS[3]}"])
def test_no_secret_escapes_where_a_value_is_cut(secret: str) -> None:
    """The password of an address that ends before its @ would be taken for a port."""
    stream = configured()
    for shift in range(1, len(secret), 7):
        structlog.get_logger().info("long", text="x" * (MAX_VALUE_CHARS - shift - 1) + " " + secret + " y")
    for line in logged(stream):
        assert not re.search(r"(pa55|sk-0|VpX|Abc|0123456789abcdef\.)", str(line["text"])), line["text"]


@pytest.mark.parametrize(
    "text", ["tokens: 12 used", "ask-me-anything", "0.5 s for https://api.moonshot.ai/v1/models", "risk-free"]
)
def test_text_without_secrets_is_left_alone(text: str) -> None:
    """A log that hides everything explains nothing."""
    assert redact_text(text) == text


def test_secrets_in_fields_nested_values_arguments_and_tracebacks_are_replaced() -> None:
    """No way around the processor: fields, containers, library arguments, exceptions."""
    stream = configured()
    log = structlog.get_logger()
    log.info(
        "fields", api_key="pa55word", Authorization="pa55word", password="pa55word", input_tokens=7, token="pa55word"
    )
    log.info("nested", headers={"Authorization": "pa55word", "list": [f"Bearer {JWT}", {"apikey": "pa55word"}]})
    log.info("object", error=ValueError(f"postgres://u:pa55word@h/d {KEY}"))
    logging.getLogger("library").warning("sent %s", f"Bearer {JWT}")
    try:
        raise ValueError("postgresql://u:pa55word@h/d")
    except ValueError:
        log.exception("failed")
        logging.getLogger("library").exception("failed too")
    text = stream.getvalue()
    assert not any(secret in text for secret in SECRETS), text
    assert logged(stream)[0]["input_tokens"] == 7
    assert "ValueError" in text


def test_long_values_are_cut_and_deep_ones_end() -> None:
    """Every value has a limit; a message body in a log line must not fill the disk."""
    stream = configured()
    deep: dict[str, object] = {}
    deep["self"] = deep
    structlog.get_logger().info("big", text="x" * 100_000, deep=deep)
    assert len(stream.getvalue()) < MAX_VALUE_CHARS + 1_000


def test_text_that_cannot_be_encoded_is_logged_all_the_same() -> None:
    """A lone surrogate from a client must not cost the line."""
    stream = configured()
    structlog.get_logger().info("odd", name="\ud800")
    assert logged(stream)[0]["name"] == "\ud800"


def test_configuring_again_replaces_the_first_configuration() -> None:
    """The command line configures before the settings are known, and again after."""
    first, second = configured(), configured()
    structlog.get_logger().info("once")
    assert first.getvalue() == ""
    assert len(logged(second)) == 1


def test_what_json_cannot_hold_is_logged_all_the_same() -> None:
    """Integers beyond 64 bits, half a surrogate pair, objects: a log line is no place to fail."""
    stream = configured()
    structlog.get_logger("exai").info("odd", number=2**70, text="\ud800", thing=object)
    [line] = logged(stream)
    assert (line["number"], line["text"]) == (2**70, "\ud800")
    assert "object" in str(line["thing"])


def test_a_reader_of_logs_that_is_gone_stops_nothing() -> None:
    """A closed terminal must not fail the request that would have been logged."""
    stream = configured()
    stream.close()
    structlog.get_logger("exai").info("nobody reads this")


def test_standard_output_of_a_program_that_uses_the_library_is_its_own() -> None:
    """Without a configuration, structlog prints log lines among what the program prints, and values of variables."""
    done = subprocess.run([sys.executable, "-c", LIBRARY], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == ""
    assert "[error    ] slow_operation" in done.stderr
    assert "ValueError: *** is refused" in done.stderr
    assert "what the user said" not in done.stderr.replace(LIBRARY, "")
