"""Every field of every request, with every kind of value that it cannot have.

Each is refused by its name and with a cure, before anything is sent to the database.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from exai.app import App
from exai.conversations import AppendRequest, ChatRequest
from exai.conversations.formats import FORMAT, VERSION, read_lines
from exai.db.filters import ListFilter
from exai.db.lifecycle import ConversationUpdate
from exai.db.search import SearchQuery
from exai.errors import InvalidArgument
from exai.files.loading import FileContent, FilePath
from exai.mcp.core.protocol import CallContext
from exai.mcp.features.tools import invalid_arguments
from exai.models import LOCAL_OWNER, NewMessage
from exai.settings.load import FileSettings, LimitSettings
from exai.tools.registry import build_tools
from tests.integration.conversations.conftest import Rig, open_rig

LIMITS = LimitSettings()
NAME = "c-1"
ID = "00000000-0000-0000-0000-000000000001"


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


NOT_STORABLE = ("a\0", "\ud800", "x\udfff")
NO_TEXTS = (5, 1.5, True, b"x", ["x"], {"a": 1}, object())
TEXTS = (*NOT_STORABLE, *NO_TEXTS)
NAMES = (*TEXTS, "", "x" * 5_000)
OPTIONAL_NAMES = NAMES
REQUIRED_NAMES = (*NAMES, None)
BEYOND_FILES = "x" * (FileSettings().max_bytes + LIMITS.message_bytes)
"""A text of which neither a message nor a file can hold the rest."""

CONTENTS = (*TEXTS, None, BEYOND_FILES)
NO_NUMBERS = (True, False, "1", 1.0, nan, -1, 2**63, 2**70, -(2**63), [1])
NUMBERS = (*NO_NUMBERS, None)
FROM_ONE = (*NUMBERS, 0)
NO_OBJECTS = (
    *(5, "x", ["x"], [("a", 1)], True, {1: 2}, {"a": nan}, {"a": [inf]}, {"a": "\0"}, {"a\0": 1}, {"a": "\ud800"}),
    *({"a": 2**64}, {"a": -(2**63) - 1}, {"a": b"x"}, {"a": {1}}, {"a": datetime(2026, 1, 1, tzinfo=UTC)}),
    *(nested(300), nested(10_000), {"a": "x" * LIMITS.metadata_bytes}, object()),
)
OBJECTS = (*NO_OBJECTS, None)
NO_TAGS = ("abc", 5, {"a": 1}, True, b"ab", ["x"] * 65)
NO_TAG = (*TEXTS, None, "", "  ", "x" * 201)
NO_FILES = ("abc", 5, {"a": 1}, True, [ID] * 201)
NO_FILE = (*TEXTS, None, "", "x", f"urn:uuid:{ID}", ID.upper() + "0", 2**63)
NO_TIMES = (
    *(5, "2026-01-01T00:00:00Z", True, datetime(2026, 1, 1), datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))),
    *(datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-12))),),
)
NO_ROLES = ("nobody", "", "USER", *TEXTS)

Call = Callable[[App, Any], Awaitable[object]]
Cases = Mapping[str, tuple[Iterable[Any], Call]]


async def consume(parts: AsyncIterator[object]) -> None:
    async for _ in parts:
        pass


def chat(name: str) -> Call:
    def call(app: App, value: Any) -> Awaitable[object]:
        return app.chat.run(replace(ChatRequest(LOCAL_OWNER, "hi"), **{name: value}))

    return call


def append(name: str) -> Call:
    def call(app: App, value: Any) -> Awaitable[object]:
        request = AppendRequest(LOCAL_OWNER, [NewMessage("user", "x")])
        return app.conversations.append(replace(request, **{name: value}))

    return call


def message(name: str) -> Call:
    def call(app: App, value: Any) -> Awaitable[object]:
        messages = [NewMessage("user", "fine"), replace(NewMessage("user", "x"), **{name: value})]
        return app.conversations.append(AppendRequest(LOCAL_OWNER, messages))

    return call


def method(name: str, field: str, **arguments: Any) -> Call:
    """Call a method of a service by the names of its arguments."""

    def call(app: App, value: Any) -> Awaitable[object]:
        given = {"owner": LOCAL_OWNER, **arguments, field: value}
        owner = given.pop("owner")
        service = {"export_part": app.transfer, "result": app.chat}.get(name, app.conversations)
        result: Awaitable[object] = getattr(service, name)(owner, **given)
        return result

    return call


def files(name: str, field: str, **arguments: Any) -> Call:
    def call(app: App, value: Any) -> Awaitable[object]:
        given = {"owner": LOCAL_OWNER, **arguments, field: value}
        owner = given.pop("owner")
        result: Awaitable[object] = getattr(app.files, name)(owner, **given)
        return result

    return call


def listing(name: str) -> Call:
    return lambda app, value: app.conversations.list(LOCAL_OWNER, only=replace(ListFilter(), **{name: value}))


def search(name: str) -> Call:
    def call(app: App, value: Any) -> Awaitable[object]:
        return app.conversations.search(replace(SearchQuery(LOCAL_OWNER, "words"), **{name: value}))

    return call


def change(name: str) -> Call:
    def call(app: App, value: Any) -> Awaitable[object]:
        return app.conversations.change(LOCAL_OWNER, NAME, ConversationUpdate(**{name: value}))  # type: ignore[arg-type]

    return call


def export(name: str) -> Call:
    async def call(app: App, value: Any) -> object:
        given = {"owner": LOCAL_OWNER, "continuation_id": NAME, "kind": "jsonl", name: value}
        return await consume(app.transfer.export(**given))

    return call


def file(name: str) -> Call:
    return lambda app, value: app.files.put(LOCAL_OWNER, [replace(FileContent("a.txt", b"x"), **{name: value})])


WRITE: Callable[[Callable[[str], Call]], Cases] = lambda made: {  # noqa: E731
    "owner": (REQUIRED_NAMES, made("owner")),
    "continuation_id": (OPTIONAL_NAMES, made("continuation_id")),
    "idempotency_key": (OPTIONAL_NAMES, made("idempotency_key")),
    "title": (OPTIONAL_NAMES, made("title")),
    "expected_revision": (NO_NUMBERS, made("expected_revision")),
    "tool": (REQUIRED_NAMES, made("tool")),
    "files": (NO_FILES, made("files")),
    "files[0]": ([[each] for each in NO_FILE], made("files")),
}
OPERATIONS: Mapping[str, Cases] = {
    "chat": {
        **WRITE(chat),
        "prompt": ((*CONTENTS, "", " \n"), chat("prompt")),
        "system": ((*TEXTS, "x" * (LIMITS.message_bytes + 1)), chat("system")),
        "model": ((*TEXTS, "x" * 5_000), chat("model")),
        "max_output_tokens": ((*NO_NUMBERS, 0), chat("max_output_tokens")),
        "thinking": (("much", *TEXTS), chat("thinking")),
    },
    "append": {
        **WRITE(append),
        "messages": (("abc", 5, None, [], [NewMessage("user", "x")] * 1_001), append("messages")),
        "messages[0]": (([5], ["x"], [None], [{"role": "user", "content": "x"}]), append("messages")),
        "messages[1].role": (NO_ROLES, message("role")),
        "messages[1].kind": ((*REQUIRED_NAMES, "x" * 101), message("kind")),
        "messages[1].content": (CONTENTS, message("content")),
        "messages[1].metadata": (OBJECTS, message("metadata")),
    },
    "read": {
        "owner": (REQUIRED_NAMES, method("read", "owner", continuation_id=NAME)),
        "continuation_id": (REQUIRED_NAMES, method("read", "continuation_id")),
        "limit": ((*FROM_ONE, 501), method("read", "limit", continuation_id=NAME)),
        "before_seq": ((*NO_NUMBERS, 0), method("read", "before_seq", continuation_id=NAME)),
        "offset": (NUMBERS, method("read", "offset", continuation_id=NAME)),
        "char_offset": (NUMBERS, method("read", "char_offset", continuation_id=NAME)),
        "budget_bytes": (FROM_ONE, method("read", "budget_bytes", continuation_id=NAME)),
    },
    "list": {
        "owner": (REQUIRED_NAMES, lambda app, value: app.conversations.list(value)),
        "limit": ((*FROM_ONE, 201), method("list", "limit")),
        "cursor": ((*TEXTS, "x", "x" * 5_000), method("list", "cursor")),
        "deleted": ((1, "yes", None), listing("deleted")),
        "tags": (NO_TAGS, listing("tags")),
        "tags[0]": ([[each] for each in NO_TAG], listing("tags")),
        "metadata": (OBJECTS, listing("metadata")),
        "part": ((*TEXTS, None), listing("part")),
        "tool": (OPTIONAL_NAMES, listing("tool")),
        "model": (OPTIONAL_NAMES, listing("model")),
        "since": (NO_TIMES, listing("since")),
        "until": (NO_TIMES, listing("until")),
    },
    "search": {
        "owner": (REQUIRED_NAMES, search("owner")),
        "query": ((*REQUIRED_NAMES, "  ", "x" * 1_001), search("text")),
        "continuation_id": (OPTIONAL_NAMES, search("continuation_id")),
        "role": (NO_ROLES, search("role")),
        "tool": (OPTIONAL_NAMES, search("tool")),
        "model": (OPTIONAL_NAMES, search("model")),
        "since": (NO_TIMES, search("since")),
        "until": (NO_TIMES, search("until")),
        "tags": (NO_TAGS, search("tags")),
        "tags[0]": ([[each] for each in NO_TAG], search("tags")),
        "metadata": (OBJECTS, search("metadata")),
        "limit": ((*FROM_ONE, 201), lambda app, v: app.conversations.search(SearchQuery(LOCAL_OWNER, "x"), limit=v)),
        "cursor": ((*TEXTS, "x"), lambda app, v: app.conversations.search(SearchQuery(LOCAL_OWNER, "x"), cursor=v)),
    },
    "fork": {
        "owner": (REQUIRED_NAMES, method("fork", "owner", continuation_id=NAME)),
        "continuation_id": (REQUIRED_NAMES, method("fork", "continuation_id")),
        "at_seq": ((*NO_NUMBERS, 0), method("fork", "at_seq", continuation_id=NAME)),
        "title": (OPTIONAL_NAMES, method("fork", "title", continuation_id=NAME)),
        "idempotency_key": (OPTIONAL_NAMES, method("fork", "idempotency_key", continuation_id=NAME)),
    },
    "change": {
        "owner": (REQUIRED_NAMES, lambda app, v: app.conversations.change(v, NAME, ConversationUpdate("new"))),
        "continuation_id": (REQUIRED_NAMES, method("change", "continuation_id", change=ConversationUpdate("new"))),
        "title": ((*TEXTS, "x" * 501), change("title")),
        "metadata": (NO_OBJECTS, change("metadata")),
        "tags": (NO_TAGS, change("tags")),
        "tags[0]": ([[each] for each in NO_TAG], change("tags")),
        "expected_revision": (NO_NUMBERS, method("delete", "expected_revision", continuation_id=NAME)),
        "idempotency_key": (OPTIONAL_NAMES, method("restore", "idempotency_key", continuation_id=NAME)),
        "idle_days": ((0, -1, nan, inf, True, "1", 2**63), lambda app, v: app.maintenance.prune(idle_days=v)),
    },
    "export": {
        "owner": (REQUIRED_NAMES, export("owner")),
        "continuation_id": (REQUIRED_NAMES, export("continuation_id")),
        "kind": (("pdf", None, 5), export("kind")),
        "after_seq": (
            NUMBERS,
            method("export_part", "after_seq", continuation_id=NAME, kind="jsonl", budget_bytes=1_000),
        ),
        "budget_bytes": (
            FROM_ONE,
            method("export_part", "budget_bytes", continuation_id=NAME, kind="jsonl", after_seq=0),
        ),
    },
    "turns": {
        "owner": (REQUIRED_NAMES, method("result", "owner", turn_id=ID)),
    },
    "files": {
        "owner": (REQUIRED_NAMES, lambda app, value: app.files.put(value, [FileContent("a.txt", b"x")])),
        "files": (("abc", 5, None, {"a": 1}), lambda app, value: app.files.put(LOCAL_OWNER, value)),
        "files[0]": (([5], ["x"], [None]), lambda app, value: app.files.put(LOCAL_OWNER, value)),
        "files[0].name": ((*REQUIRED_NAMES, "a\nb", "\u202e", "x" * 256), file("name")),
        "files[0].data": (("text", None, 5, bytearray(b"x")), file("data")),
        "files[0].media_type": ((*TEXTS, "a\nb", "x" * 256), file("media_type")),
        "files[0].path": (REQUIRED_NAMES, lambda app, value: app.files.put_paths(LOCAL_OWNER, [FilePath(value)])),
        "file_id": ((*TEXTS, None, "", "x"), files("get", "file_id")),
        "file_ids": ((*NO_FILES, None), files("link", "file_ids", continuation_id=NAME)),
        "file_ids[0]": (
            [[each] for each in (*TEXTS, None, "", "x")],
            files("link", "file_ids", continuation_id=NAME),
        ),
        "continuation_id": (OPTIONAL_NAMES, files("list", "continuation_id")),
        "limit": ((*FROM_ONE, 201), files("list", "limit")),
        "cursor": ((*TEXTS, "x"), files("list", "cursor")),
        "part": ((*TEXTS, None), files("find", "part", limit=9)),
        "offset": (NUMBERS, files("read_part", "offset", file_id=ID, limit=9)),
    },
    "references": {
        "files": ((*NO_FILES, None), lambda app, value: app.files.resolve(LOCAL_OWNER, value)),
        "files[0]": ([[each] for each in REQUIRED_NAMES], lambda app, value: app.files.resolve(LOCAL_OWNER, value)),
        "file_id": ((*TEXTS, None, "", "x"), files("delete", "file_id")),
        "continuation_id": (REQUIRED_NAMES, files("link", "continuation_id", file_ids=[ID])),
        "limit": ((*FROM_ONE, 201), files("find", "limit", part="a")),
    },
}


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        opened.reset()
        yield opened


async def failure(rig: Rig, work: Awaitable[object]) -> str | None:
    """The problem of a refusal or of its cost; None if there is none."""
    try:
        await work
    except InvalidArgument as error:
        if not error.cure or len(str(error)) > 1_000:
            return f"a bad sentence: {str(error)[:200]}"
        return error.field if rig.database.round_trips == 0 else "sent something"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "accepted"


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_bad_value_is_refused_by_field_and_nothing_is_sent(rig: Rig, operation: str) -> None:
    wrong = []
    for field, (values, call) in OPERATIONS[operation].items():
        for value in values:

            async def attempt(call: Call = call, value: Any = value) -> object:
                return await call(rig.app, value)

            found = await failure(rig, attempt())
            rig.reset()
            if found != field:
                wrong.append(f"{field} = {repr(value)[:60]}: {found}")
    assert wrong == []


HEADER = {"format": FORMAT, "version": VERSION, "continuation_id": "imported"}
MESSAGE = {"seq": 1, "role": "user", "content": "x"}
FILE = {"form": "text", "file_id": ID, "name": "a", "media_type": "b", "sha256": "0" * 64, "size_bytes": 1}
NO_JSON_TEXTS = ("a\0", "\ud800", 5, 1.5, True, ["x"], {"a": 1})
JSON_OBJECTS = (5, "x", [1], True, {"a": nan}, {"a": "\0"}, {"a\0": 1}, {"a": "\ud800"}, {"a": 2**64}, nested(300))
LINES: Mapping[str, tuple[Iterable[Any], Callable[[Any], list[dict[str, Any]]]]] = {
    "line 1, continuation_id": ((*NO_JSON_TEXTS, "", "x" * 501), lambda v: [HEADER | {"continuation_id": v}, MESSAGE]),
    "line 1, title": ((*NO_JSON_TEXTS, "x" * 501), lambda v: [HEADER | {"title": v}, MESSAGE]),
    "line 1, metadata": (JSON_OBJECTS, lambda v: [HEADER | {"metadata": v}, MESSAGE]),
    "line 1, tags": (("abc", 5, {"a": 1}, True, ["x"] * 65), lambda v: [HEADER | {"tags": v}, MESSAGE]),
    "line 1, tags[0]": ((*NO_JSON_TEXTS, "", "x" * 201), lambda v: [HEADER | {"tags": [v]}, MESSAGE]),
    "line 1, created_at": (("yesterday", True, nan, 1e300), lambda v: [HEADER | {"created_at": v}, MESSAGE]),
    "line 2, role": ((*NO_JSON_TEXTS, "nobody"), lambda v: [HEADER, MESSAGE | {"role": v}]),
    "line 2, kind": ((*NO_JSON_TEXTS, "", "x" * 101), lambda v: [HEADER, MESSAGE | {"kind": v}]),
    "line 2, content": (
        (*NO_JSON_TEXTS, None, BEYOND_FILES),
        lambda v: [HEADER, MESSAGE | {"content": v}],
    ),
    "line 2, metadata": (JSON_OBJECTS, lambda v: [HEADER, MESSAGE | {"metadata": v}]),
    "line 2, created_at": (("yesterday", True, nan, 1e300), lambda v: [HEADER, MESSAGE | {"created_at": v}]),
    "line 2, seq": ((True, "1", 1.5, nan, 0, -1, 2, 2**63), lambda v: [HEADER, MESSAGE | {"seq": v}]),
    "line 2, sha256": (("", "\0", "\ud800", "G" * 64), lambda v: [HEADER, FILE | {"sha256": v}, MESSAGE]),
    "line 2, size_bytes": ((2**63, 2**70), lambda v: [HEADER, FILE | {"size_bytes": v}, MESSAGE]),
}


async def test_bad_value_in_an_import_is_refused_by_line_and_field(rig: Rig) -> None:
    """For the command line and the tool alike; the text is JSON as another program may have written it."""
    wrong = []
    for field, (values, lines) in LINES.items():
        for value in values:
            text = [json.dumps(line) for line in lines(value)]
            found = await failure(rig, consume(rig.app.transfer.import_text(LOCAL_OWNER, read_lines(text))))
            rig.reset()
            if found != field:
                wrong.append(f"{field} = {repr(value)[:60]}: {found}")
    assert wrong == []
    for bad in NAMES:
        if bad:
            parts = read_lines(map(json.dumps, (HEADER, MESSAGE)))
            found = await failure(rig, consume(rig.app.transfer.import_text(LOCAL_OWNER, parts, as_name=bad)))
            assert found == "continuation_id", bad


SHORT = ("a\0", "\ud800", "x" * 5_000)
LONG = ("a\0", "\ud800", "x" * (LIMITS.message_bytes + 1))
JSON = ({"a": "\0"}, {"a": "\ud800"}, {"a": 2**64}, nested(300), {"a": "x" * LIMITS.metadata_bytes})
BAD_TAGS = (["x"] * 65,)
HUGE = (2**63, 2**70, -1)
ONE: dict[str, Any] = {"continuation_id": NAME}
TOOL_ARGUMENTS: Mapping[str, tuple[dict[str, Any], dict[str, Iterable[Any]]]] = {
    "chat": (
        {"prompt": "hi"},
        {
            "prompt": (*LONG[:2], BEYOND_FILES),
            "system": LONG,
            "model": SHORT,
            "continuation_id": SHORT,
            "idempotency_key": SHORT,
            "expected_revision": HUGE,
            "max_output_tokens": HUGE,
            "files": ([ID] * 201,),
            "files[0]": [[each] for each in SHORT],
        },
    ),
    "conversation_append": (
        {"messages": [{"role": "user", "content": "x"}]},
        {
            "messages[0].content": [[{"role": "user", "content": each}] for each in (*LONG[:2], BEYOND_FILES)],
            "messages[0].metadata": [[{"role": "user", "content": "x", "metadata": each}] for each in JSON],
            "messages": ([], [{"role": "user", "content": "x"}] * 1_001),
            "title": SHORT,
            "continuation_id": SHORT,
            "idempotency_key": SHORT,
            "expected_revision": HUGE,
            "files": ([ID] * 201,),
        },
    ),
    "conversation_get": (
        ONE,
        {"continuation_id": SHORT, "limit": HUGE, "before_seq": HUGE, "offset": HUGE, "seq": HUGE, "max_chars": HUGE},
    ),
    "conversation_list": ({}, {"limit": HUGE, "cursor": SHORT, "tags": BAD_TAGS, "metadata": JSON}),
    "conversation_search": (
        {"query": "x"},
        {
            "query": SHORT,
            "continuation_id": SHORT,
            "tool": SHORT,
            "model": SHORT,
            "limit": HUGE,
            "cursor": SHORT,
            "since": ("2026-01-01T00:00:00", "x"),
            "until": ("0001-01-01T00:00:00+14:00",),
            "tags": BAD_TAGS,
            "tags[0]": [[each] for each in SHORT],
            "metadata": JSON,
        },
    ),
    "conversation_fork": (
        ONE,
        {"continuation_id": SHORT, "at_seq": HUGE, "title": SHORT, "idempotency_key": SHORT},
    ),
    "conversation_update": (
        ONE | {"title": "new"},
        {
            "continuation_id": SHORT,
            "title": SHORT,
            "tags": BAD_TAGS,
            "tags[0]": [[each] for each in SHORT],
            "metadata": JSON,
            "expected_revision": HUGE,
            "idempotency_key": SHORT,
        },
    ),
    "conversation_delete": (ONE, {"continuation_id": SHORT, "expected_revision": HUGE, "idempotency_key": SHORT}),
    "conversation_export": (ONE, {"continuation_id": SHORT, "after_seq": HUGE, "max_chars": HUGE}),
    "conversation_import": (
        {"text": "\n".join(map(json.dumps, (HEADER, MESSAGE))), "format": "jsonl"},
        {"continuation_id": SHORT},
    ),
    "file_put": (
        {"name": "a.txt", "content": "x"},
        {"name": SHORT, "media_type": SHORT, "content": ("\ud800",)},
    ),
    "file_get": ({"file_id": ID}, {"file_id": SHORT, "offset": HUGE, "limit": HUGE}),
    "file_list": ({}, {"continuation_id": SHORT, "limit": HUGE, "cursor": SHORT}),
    "file_link": (
        ONE | {"file_ids": [ID]},
        {"continuation_id": SHORT, "file_ids": ([ID] * 201, []), "file_ids[0]": [[each] for each in SHORT]},
    ),
    "file_delete": ({"file_id": ID}, {"file_id": SHORT}),
}


async def test_bad_argument_of_a_tool_is_refused_by_its_name(rig: Rig) -> None:
    """By its schema or by the service: a model corrects the argument that the error names."""

    async def progress(_: str) -> None:
        raise AssertionError("nothing is done")

    context, wrong = CallContext(LOCAL_OWNER, "1", progress), []
    specs = {spec.name: spec for spec in build_tools(rig.app)}
    for tool, (usual, fields) in TOOL_ARGUMENTS.items():
        for field, values in fields.items():
            for value in values:

                async def attempt(
                    tool: str = tool, field: str = field, value: Any = value, usual: Any = usual
                ) -> object:
                    given = usual | {field.partition("[")[0]: value}
                    try:
                        arguments = specs[tool].arguments.model_validate(given)
                    except ValidationError as error:
                        problem = invalid_arguments(specs[tool], error)["structuredContent"]["error"]
                        raise InvalidArgument(problem["field"], "x", "y") from None
                    return await specs[tool].handler(arguments, context)

                found = await failure(rig, attempt())
                rig.reset()
                if found != field:
                    wrong.append(f"{tool}: {field} = {repr(value)[:60]}: {found}")
    assert wrong == []
