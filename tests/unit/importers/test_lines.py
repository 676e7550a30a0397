"""Readers of sources that grow line by line or row by row: Claude Code, Codex, Gemini CLI and the Agents SDK."""

import base64
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exai.importers.records import SourceConversation, SourceMessage
from tests.support.sources import (
    PNG,
    claude_line,
    codex_line,
    conversations_of,
    damage_in,
    left_out_in,
    read_source,
    whole_conversations,
    write_agents,
    write_json,
    write_lines,
)

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
USER = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "run it"}]}


def _messages(items: Any) -> list[SourceMessage]:
    return [each for each in items if isinstance(each, SourceMessage)]


def test_claude_code_sessions_are_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    """The parents of lines are often of lines that were never written."""
    lines = [
        {"type": "summary", "summary": "About tests", "leafUuid": "c"},
        claude_line("a", None, "run the tests"),
        claude_line("b", "phantom", [{"type": "tool_use", "name": "Bash", "input": {"command": "ls"}}], "assistant"),
        claude_line(
            "c", "b", [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "ok"}]}]
        ),
        {"type": "progress", "data": {"x": 1}, "uuid": "p", "sessionId": "session-1"},
        claude_line("d", "gone", [IMAGE, {"type": "text", "text": "see"}]),
    ]
    items = read_source(write_lines(tmp_path / "s.jsonl", lines))
    messages = _messages(items)
    (conversation,) = [each for each in items if isinstance(each, SourceConversation)]

    assert [(each.key, each.role, each.kind) for each in messages] == [
        ("a", "user", "message"),
        ("b", "assistant", "message"),
        ("c", "tool", "tool_result"),
        ("d", "user", "message"),
    ]
    assert messages[1].text == '[call of Bash]\n{\n "command": "ls"\n}'
    assert messages[3].files[0].load() == base64.b64decode(PNG)
    assert json.loads(messages[3].record) == lines[5]
    assert (conversation.title, conversation.metadata["cwd"]) == ("About tests", "/work")
    assert left_out_in(items) == {"lines of type summary": 1, "lines of type progress": 1}


def test_lines_written_twice_are_one_message(tmp_path: Path) -> None:
    """Claude Code writes a line up to four times, and echoes the first prompt under the same id."""
    first = claude_line("a", None, "hi")
    lines = [first, first, {**first, "isReplay": True}, claude_line("b", "a", "hello", "assistant"), first]
    items = read_source(write_lines(tmp_path / "s.jsonl", lines))

    assert conversations_of(items) == {"session-1": ["hi", "hello"]}


def test_one_id_with_several_contents_loses_none_of_them(tmp_path: Path) -> None:
    """The lines of hooks all have the id of the hook that began the session."""
    lines = [claude_line("a", None, f"context {place}", isMeta=True) for place in (1, 2, 3, 2)]
    items = read_source(write_lines(tmp_path / "s.jsonl", lines))

    assert conversations_of(items) == {"session-1": ["context 1", "context 2", "context 3"]}
    assert len({each.key for each in _messages(items)}) == 3


def test_a_prompt_that_was_replaced_begins_a_fork(tmp_path: Path) -> None:
    lines = [
        claude_line("a", None, "hi"),
        claude_line("b", "a", "hello", "assistant"),
        claude_line("c", "b", "first try"),
        claude_line("d", "c", "no", "assistant"),
        claude_line("e", "b", "second try"),
        claude_line("f", "e", "no", "assistant"),
        claude_line("g", "b", "third try"),
        claude_line("h", "g", "yes", "assistant"),
    ]
    items = read_source(write_lines(tmp_path / "s.jsonl", lines))

    assert whole_conversations(items) == {
        "session-1": ["hi", "hello", "third try", "yes"],
        "session-1~c": ["hi", "hello", "first try", "no"],
        "session-1~e": ["hi", "hello", "second try", "no"],
    }


def test_results_of_parallel_calls_stay_in_the_conversation(tmp_path: Path) -> None:
    result = [{"type": "tool_result", "tool_use_id": "t", "content": "r"}]
    lines = [
        claude_line("a", None, "hi"),
        claude_line("b", "a", [{"type": "tool_use", "name": "x", "input": {}}], "assistant"),
        claude_line("c", "b", [{"type": "tool_use", "name": "y", "input": {}}], "assistant"),
        claude_line("d", "b", result),
        claude_line("e", "c", result),
        claude_line("f", "e", "done", "assistant"),
    ]
    items = read_source(write_lines(tmp_path / "s.jsonl", lines))

    assert list(conversations_of(items)) == ["session-1"]
    assert len(_messages(items)) == 6


def test_subagents_do_not_take_the_place_of_their_session(tmp_path: Path) -> None:
    """An importer read a subagent's file instead of the session that it belongs to."""
    project = tmp_path / "projects" / "-work"
    write_lines(
        project / "session-1.jsonl", [claude_line("a", None, "hi"), claude_line("s", None, "old", isSidechain=True)]
    )
    write_lines(
        project / "session-1" / "subagents" / "agent-7.jsonl",
        [claude_line("x", None, "task", isSidechain=True, agentId="7")],
    )
    large = project / "session-1" / "tool-results" / "out.txt"
    large.parent.mkdir()
    large.write_text("a long output")
    with (project / "session-1.jsonl").open("a") as file:
        saved = f"Output too large. Full output saved to: {large}"
        file.write(json.dumps(claude_line("b", "a", [{"type": "tool_result", "content": saved}])) + "\n")
    items = read_source(tmp_path / "projects")

    assert {name: len(texts) for name, texts in conversations_of(items).items()} == {
        "session-1": 2,
        "session-1/subagents/s": 1,
        "session-1/subagents/agent-7": 1,
    }
    assert next(each for each in _messages(items) if each.key == "b").files[0].load() == b"a long output"
    assert damage_in(items) == []


def test_damaged_lines_are_reported_and_the_others_are_read(tmp_path: Path) -> None:
    whole = json.dumps(claude_line("c", "a", "three"))
    lines = [claude_line("a", None, "one"), '{"type": "user", "uuid": "b"', "[1]", "\x00\x00", whole]
    path = write_lines(tmp_path / "s.jsonl", lines)
    path.write_bytes(path.read_bytes() + b'{"type":"user","message":{"content":"\xff"}}\n' + whole.encode()[:40])
    items = read_source(path)

    assert conversations_of(items) == {"session-1": ["one", "three"]}
    assert [each.where for each in damage_in(items)] == [f"s.jsonl, line {line}" for line in (2, 3, 4, 6, 7)]
    assert "may still be written" in damage_in(items)[-1].reason


def test_codex_sessions_skip_what_repeats_the_history(tmp_path: Path) -> None:
    """Sessions of 98 GB consist of compacted lines, each with all images of the session."""
    url = f"data:image/png;base64,{PNG}"
    image = {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": url}]}
    lines = [
        codex_line("session_meta", {"id": "s-1", "cwd": "/work", "git": {"branch": "main"}}),
        codex_line("response_item", {"type": "message", "role": "developer", "content": "rules"}, 1),
        codex_line("response_item", USER, 2),
        codex_line("event_msg", {"type": "user_message", "message": "run it"}, 2),
        codex_line("response_item", image, 3),
        codex_line("compacted", {"message": "", "replacement_history": [image] * 50}, 4),
        codex_line("session_meta", {"id": "parent", "cwd": "/other"}, 5),
        codex_line(
            "response_item", {"type": "function_call", "name": "shell", "arguments": '{"c":1}', "call_id": "x"}, 6
        ),
        codex_line("response_item", {"type": "function_call_output", "call_id": "x", "output": "done"}, 7),
        codex_line("response_item", {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}, 8),
        codex_line("event_msg", {"type": "thread_name_updated", "thread_name": "Named"}, 9),
    ]
    items = read_source(write_lines(tmp_path / "rollout-x.jsonl", lines))
    messages = _messages(items)

    assert [(each.role, each.kind) for each in messages] == [
        ("system", "message"),
        ("user", "message"),
        ("user", "message"),
        ("assistant", "function_call"),
        ("tool", "function_call_output"),
        ("assistant", "reasoning"),
    ]
    assert [each.text for each in messages[3:]] == ['[call of shell]\n{"c":1}', "done", "hm"]
    assert {each.conversation for each in messages} == {"s-1"}
    assert [each.title for each in items if isinstance(each, SourceConversation)] == [None, "Named"]
    assert left_out_in(items)["lines of type compacted"] == 1


def test_lines_of_codex_keep_their_keys_when_the_session_grows(tmp_path: Path) -> None:
    meta, user = codex_line("session_meta", {"id": "s"}), codex_line("response_item", USER, 2)
    path = write_lines(tmp_path / "rollout-1.jsonl", [meta, user, user])
    first = _messages(read_source(path))
    write_lines(path, [meta, {"type": "new_kind", "payload": {}}, user, user, codex_line("response_item", USER, 3)])
    second = _messages(read_source(path))

    assert [each.key for each in first] == [second[0].key]
    assert len({each.key for each in second}) == 2


def test_codex_sessions_without_envelopes_are_read(tmp_path: Path) -> None:
    lines = [
        {"id": "s", "timestamp": "2025-05-01T00:00:00Z", "instructions": None},
        USER,
        {"record_type": "state"},
        USER,
    ]
    items = read_source(write_lines(tmp_path / "rollout-1.jsonl", lines))

    assert conversations_of(items) == {"s": ["run it", "run it"]}
    assert len({each.key for each in _messages(items)}) == 2


GEMINI = [
    {"sessionId": "g", "startTime": "2026-01-01T00:00:00Z", "messages": []},
    {"id": "1", "type": "user", "content": "first"},
    {"id": "2", "type": "gemini", "content": "thinking"},
    {"id": "2", "type": "gemini", "content": "answer", "toolCalls": [{"name": "ls", "args": {}, "result": [
        {"functionResponse": {"name": "ls", "response": {"output": "x"}}}]}]},
    {"id": "3", "type": "user", "content": [{"text": "second"}]},
    {"$rewindTo": "3"},
    {"$set": {"summary": "Files"}},
    {"id": "4", "type": "info", "content": "note"},
]  # fmt: skip


def test_gemini_sessions_are_replayed(tmp_path: Path) -> None:
    """The last record of an id counts; a rewind removes the named message too."""
    items = read_source(write_lines(tmp_path / "session-1.jsonl", GEMINI))
    found = whole_conversations(items)

    assert [each[:6] for each in found["g"]] == ["first", "answer", "note"]
    assert "[call of ls]" in found["g"][1]
    assert found["g~3"][-1] == "second"
    assert next(each.title for each in items if isinstance(each, SourceConversation)) == "Files"


def test_gemini_sessions_can_set_all_messages(tmp_path: Path) -> None:
    renewed = {"$set": {"messages": [{"id": "9", "type": "gemini", "content": "summary"}, GEMINI[1]]}}
    found = whole_conversations(read_source(write_lines(tmp_path / "session-1.jsonl", [*GEMINI, renewed])))

    assert found["g"] == ["summary", "first"]


def test_gemini_sessions_of_one_object_are_read(tmp_path: Path) -> None:
    messages = [
        GEMINI[1],
        {"id": "5", "type": "gemini", "content": [{"inlineData": {"mimeType": "image/png", "data": PNG}}]},
    ]
    path = write_json(tmp_path / "session-1.json", {"sessionId": "g", "projectHash": "h", "messages": messages})
    items = read_source(path)

    assert conversations_of(items)["g"][0] == "first"
    assert _messages(items)[1].files[0].load() == base64.b64decode(PNG)


def test_agents_sessions_skip_broken_rows_as_their_own_reader_does(tmp_path: Path) -> None:
    rows = [
        ("trip", {"role": "user", "content": "weather?"}),
        ("other", {"role": "user", "content": "hi"}),
        ("trip", {"type": "function_call", "name": "get", "arguments": "{}", "call_id": "c"}),
        ("trip", "{not json"),
        ("trip", {"type": "function_call_output", "call_id": "c", "output": "18C"}),
        ("trip", {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "18C"}]}),
    ]
    items = read_source(write_agents(tmp_path / "agents.db", rows))

    assert conversations_of(items) == {"trip": ["weather?", "[call of get]\n{}", "18C", "18C"], "other": ["hi"]}
    assert [each.key for each in _messages(items) if each.conversation == "trip"] == ["1", "3", "5", "6"]
    assert [each.where for each in damage_in(items)] == ["agents.db, row 4"]


def test_branches_of_agents_sessions_are_forks(tmp_path: Path) -> None:
    path = write_agents(tmp_path / "agents.db", [("s", {"role": "user", "content": text}) for text in "abcd"])
    with sqlite3.connect(path) as database:
        database.execute(
            "create table message_structure (id integer primary key, session_id text, message_id integer,"
            " branch_id text, sequence_number integer)"
        )
        for branch, rows in (("main", (1, 2, 3)), ("try", (1, 2, 4))):
            for sequence, row in enumerate(rows):
                database.execute(
                    "insert into message_structure (session_id, message_id, branch_id, sequence_number)"
                    " values ('s', ?, ?, ?)", (row, branch, sequence)
                )  # fmt: skip
    database.close()

    assert whole_conversations(read_source(path)) == {"s": ["a", "b", "c"], "s~try": ["a", "b", "d"]}


def test_a_database_that_is_no_store_of_sessions_is_not_recognised(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "x.db") as database:
        database.execute("create table t (x)")
    database.close()

    assert [each.reason for each in damage_in(read_source(tmp_path / "x.db"))] == ["is not recognised"]


@pytest.mark.parametrize("kind", ["claude-code", "codex", "gemini-cli"])
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_bytes_is_survived(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    lines = {
        "claude-code": [claude_line("a", None, "one"), claude_line("b", "a", [IMAGE], "assistant")],
        "codex": [codex_line("session_meta", {"id": "s"}), codex_line("response_item", USER, 1)],
        "gemini-cli": GEMINI,
    }[kind]
    path = write_lines(tmp_path / "session.jsonl", lines)
    text = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=4))
    path.write_bytes(text)

    assert isinstance(read_source(path, kind), list)


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "text", "content", "source", "data", "image_url", "url", "name", "input", "parts"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=10,
    )
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_contents_of_any_shape_are_read(tmp_path: Path, value: Any) -> None:
    path = write_lines(tmp_path / "s.jsonl", [claude_line("a", None, value), claude_line("b", None, "x")])
    items = read_source(path)

    assert damage_in(items) == []
    assert [each.key for each in _messages(items)] == ["a", "b"]
