"""Readers of sources whose messages name their parents: ChatGPT, Claude.ai, Open WebUI and LibreChat."""

import base64
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exai.importers.records import SourceConversation, SourceMessage
from tests.support.sources import (
    PNG,
    chain,
    chatgpt,
    conversations_of,
    damage_in,
    left_out_in,
    node,
    read_source,
    whole_conversations,
    write_json,
)

BRANCHED = [
    *chain(["hi", "hello", "joke?", "one"]),
    node("other", "n2", "two", "assistant"),
    node("more", "other", "ha"),
]


def _messages(items: Any) -> list[SourceMessage]:
    return [each for each in items if isinstance(each, SourceMessage)]


def test_the_current_branch_of_chatgpt_is_the_conversation_and_other_leaves_are_forks(tmp_path: Path) -> None:
    items = read_source(write_json(tmp_path / "conversations.json", [chatgpt("c", BRANCHED, "more")]))

    assert whole_conversations(items) == {
        "c": ["hi", "hello", "joke?", "two", "ha"],
        "c~n3": ["hi", "hello", "joke?", "one"],
    }


def test_chatgpt_exports_without_children_and_with_an_empty_root_are_read(tmp_path: Path) -> None:
    """An importer dropped all of 43 conversations, because nodes named their parents only."""
    nodes = [node("root", None, None), *chain(["hi", "hello"], "root")]
    for each in nodes:
        del each["children"]
    items = read_source(write_json(tmp_path / "conversations.json", [chatgpt("c", nodes)]))

    assert conversations_of(items) == {"c": ["hi", "hello"]}


def test_chatgpt_exports_without_parents_are_read_by_their_children(tmp_path: Path) -> None:
    nodes = [node("root", None, None), *chain(["hi", "hello"])]
    for each, child in zip(nodes, ["n0", "n1", None], strict=True):
        each["children"] = [child] if child else []
        del each["parent"]
    items = read_source(write_json(tmp_path / "conversations.json", [chatgpt("c", nodes, "n1")]))

    assert conversations_of(items) == {"c": ["hi", "hello"]}


def test_messages_without_metadata_author_time_or_title_are_read(tmp_path: Path) -> None:
    """Importers failed with `model_slug` of undefined, and with a missing `create_time`."""
    bare: dict[str, Any] = {"id": "n0", "message": {"content": {"content_type": "text", "parts": ["hi"]}}}
    conversation = {"id": "c", "title": None, "mapping": {"n0": bare}}
    items = read_source(write_json(tmp_path / "conversations.json", [conversation]))
    (first,) = [each for each in items if isinstance(each, SourceConversation)]
    (message,) = _messages(items)

    assert (first.title, first.created_at, message.text, message.created_at) == (None, None, "hi", None)


def test_one_damaged_conversation_does_not_discard_the_file(tmp_path: Path) -> None:
    texts = [json.dumps(chatgpt(name, chain(["hi"]))) for name in ("a", "b", "c")]
    texts[1] = texts[1].replace('"message": {', '"message": {{', 1)
    (tmp_path / "conversations.json").write_text("[" + ",\n".join([texts[0], "null", '{"id": "no"}', texts[2]]) + "]")
    items = read_source(tmp_path / "conversations.json")

    assert list(conversations_of(items)) == ["a", "c"]
    assert damage_in(items)[0].where.startswith("conversations.json, line 2")
    assert len(damage_in(items)) == 2


def test_hidden_context_is_no_message(tmp_path: Path) -> None:
    """An importer stored a user's profile, which ChatGPT adds, as a message of the user."""
    hidden = node("h", None, "profile", metadata={"is_visually_hidden_from_conversation": True})
    context = node("k", "h", "", content={"content_type": "user_editable_context", "user_profile": "secret"})
    nodes = [hidden, context, *chain(["hi", "hello"], "k")]
    items = read_source(write_json(tmp_path / "conversations.json", [chatgpt("c", nodes)]))

    assert conversations_of(items) == {"c": ["hi", "hello"]}
    assert left_out_in(items)["hidden messages"] == 2


@pytest.mark.parametrize(
    ("content", "text", "kind"),
    [
        ({"content_type": "code", "text": "print(1)"}, "print(1)", "code"),
        ({"content_type": "thoughts", "thoughts": [{"summary": "s", "content": "c"}]}, "s\nc", "thinking"),
        ({"content_type": "reasoning_recap", "content": "Thought for 5s"}, "Thought for 5s", "thinking"),
        ({"content_type": "execution_output", "text": "1"}, "1", "output"),
        ({"content_type": "tether_quote", "title": "t", "url": "u", "text": "q"}, "t\nu\nq", "message"),
        ({"content_type": "system_error", "name": "E", "text": "broken"}, "E: broken", "error"),
        ({"content_type": "unheard_of", "result": "r"}, "r", "message"),
        ({"content_type": "multimodal_text", "parts": [{"content_type": "audio_transcription", "text": "said"}, "x"]},
         "said\n\nx", "message"),
    ],
)  # fmt: skip
def test_contents_of_every_type_have_a_text(tmp_path: Path, content: Any, text: str, kind: str) -> None:
    nodes = [node("n", None, "", content=content)]
    (message,) = _messages(read_source(write_json(tmp_path / "conversations.json", [chatgpt("c", nodes)])))

    assert (message.text, message.kind) == (text, kind)


@pytest.mark.parametrize("pointer", ["file-service://file-Abc123", "sediment://file_Abc123", "file-Abc123"])
@pytest.mark.parametrize("stored", ["{}-photo.png", "{}.dat", "user-1/{}-sanitized.png"])
def test_attachments_are_found_in_sharded_zip_exports(tmp_path: Path, pointer: str, stored: str) -> None:
    """Exports name attachments in three ways, and since 2026 store them as .dat files."""
    part = {"content_type": "image_asset_pointer", "asset_pointer": pointer}
    content = {"content_type": "multimodal_text", "parts": [part, "look"]}
    nodes = [node("n", None, "", content=content)]
    name = stored.format(pointer.rpartition("/")[2])
    with zipfile.ZipFile(tmp_path / "export.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/conversations-000.json", json.dumps([chatgpt("a", nodes)]))
        archive.writestr("x/conversations-001.json", json.dumps([chatgpt("b", chain(["hi"]))]))
        archive.writestr("x/user.json", "{}")
        archive.writestr("x/chat.html", "<html>")
        archive.writestr(f"x/{name}", base64.b64decode(PNG))
        archive.writestr("x/conversation_asset_file_names.json", json.dumps({name: "photo of me.png"}))
    items = read_source(tmp_path / "export.zip", "chatgpt")
    message = _messages(items)[0]

    assert list(conversations_of(items)) == ["a", "b"]
    assert message.files[0].load() == base64.b64decode(PNG)
    assert "look" in message.text
    if stored == "{}.dat":
        assert message.files[0].name == "photo of me.png"


def test_records_are_kept_to_the_last_character(tmp_path: Path) -> None:
    record = '{ "id":"n", "parent":null,\n "big":123456789012345678901,'
    record += ' "message":{"content":{"parts":["\\ud800\\u0000\\u00e4"]}} }'
    (tmp_path / "conversations.json").write_text('[{"id": "c", "mapping": {"n": ' + record + "}}]", "utf-8")
    (message,) = _messages(read_source(tmp_path / "conversations.json"))

    assert message.record == record


def test_doubled_ids_are_one_message_if_they_are_equal(tmp_path: Path) -> None:
    first, same, other = (json.dumps(node("n", None, text)) for text in ("hi", "hi", "ho"))
    text = f'[{{"id": "c", "mapping": {{"n": {first}, "n": {same}, "n": {other}}}}}]'
    (tmp_path / "conversations.json").write_text(text)
    items = read_source(tmp_path / "conversations.json")

    assert conversations_of(items) == {"c": ["hi", "ho"]}
    assert len({each.key for each in _messages(items)}) == 2
    assert left_out_in(items) == {"records that repeat another one": 1}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_encodings_are_recognised(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "conversations.json").write_text(
        json.dumps([chatgpt("c", chain(["hé"]))], ensure_ascii=False), encoding
    )

    assert conversations_of(read_source(tmp_path / "conversations.json")) == {"c": ["hé"]}


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (1_700_000_000, "2023-11-14T22:13:20+00:00"),
        (1_700_000_000.123456, "2023-11-14T22:13:20.123456+00:00"),
        (1_700_000_000_123, "2023-11-14T22:13:20.123000+00:00"),
        ("2023-11-14T22:13:20Z", "2023-11-14T22:13:20+00:00"),
        ("2023-11-14 22:13:20", "2023-11-14T22:13:20+00:00"),
        ("2023-11-14T23:13:20.1+01:00", "2023-11-14T22:13:20.100000+00:00"),
        (None, None),
        ("soon", None),
        (True, None),
        (1e300, None),
        ("9999-12-31T23:59:59-23:00", None),
    ],
)
def test_times_in_every_form_are_kept(tmp_path: Path, time: Any, expected: str | None) -> None:
    (message,) = _messages(
        read_source(write_json(tmp_path / "c.json", [chatgpt("c", [node("n", None, "hi", time=time)])]))
    )

    assert (message.created_at.isoformat() if message.created_at else None) == expected


def test_claude_ai_exports_follow_parents_where_they_have_them(tmp_path: Path) -> None:
    def message(name: str, parent: str | None, text: str, **more: Any) -> dict[str, Any]:
        facts = {"uuid": name, "sender": "human", "text": text, "created_at": "2026-01-15T10:00:00.000001Z"}
        return {**facts, **({"parent_message_uuid": parent} if parent else {}), **more}

    root = "00000000-0000-4000-8000-000000000000"
    flat = {"uuid": "flat", "name": "", "chat_messages": [message("a", None, "x"), message("b", None, "y")]}
    attachment = {"file_name": "note.txt", "extracted_content": "pasted text"}
    parts = [{"type": "text", "text": "see"}]
    pasted = message("p", root, "", content=parts, attachments=[attachment], files_v2=[{"file_name": "pic.png"}])
    tree = {
        "uuid": "tree",
        "name": "T",
        "chat_messages": [pasted, message("q", "p", "old"), message("r", "p", "new")],
        "current_leaf_message_uuid": "r",
    }
    items = read_source(write_json(tmp_path / "conversations.json", [flat, tree, {"uuid": "e", "chat_messages": []}]))
    shown = next(each for each in _messages(items) if each.key == "p")

    assert whole_conversations(items) == {
        "flat": ["x", "y"],
        "tree": [shown.text, "new"],
        "tree~q": [shown.text, "old"],
    }
    assert shown.files[0].load() == b"pasted text"
    assert shown.text == "see\n\n[file: note.txt]\n\n[file: pic.png, not in the export]"
    assert left_out_in(items) == {"conversations without messages": 1}


@pytest.mark.parametrize("form", ["list", "one", "legacy"])
def test_open_webui_chats_with_damaged_parents_are_read(tmp_path: Path, form: str) -> None:
    """Chats with orphans, cycles and a lost current message hang Open WebUI's own page."""
    messages = {
        "a": {"id": "a", "parentId": None, "childrenIds": ["b"], "role": "user", "content": "hi", "timestamp": 1},
        "b": {"id": "b", "childrenIds": [], "role": "assistant", "content": "", "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "function_call", "name": "f", "arguments": "{}"},
            {"type": "message", "content": [{"type": "output_text", "text": "hello"}]}]},
        "x": {"id": "x", "parentId": "y", "role": "user", "content": "cycle 1"},
        "y": {"id": "y", "parentId": "x", "role": "user", "content": [{"type": "image_url", "image_url": {
            "url": f"data:image/png;base64,{PNG}"}}]},
        "o": {"id": "o", "parentId": "gone", "role": "user", "content": "orphan"},
    }  # fmt: skip
    chat = {"title": "T", "models": ["m"], "history": {"messages": messages, "currentId": "b"}}
    whole = {"id": "c", "chat": chat, "meta": {"tags": ["work"]}, "created_at": 1_700_000_000}
    value = [whole] if form == "list" else whole if form == "one" else [{"id": "c", **chat}]
    items = read_source(write_json(tmp_path / "chats.json", value))
    first = next(each for each in items if isinstance(each, SourceConversation))
    found = conversations_of(items)

    assert found["c"] == ["hi", "hm\n\n[call of f]\n{}\n\nhello"]
    assert (
        list(found.values())[1:] == [["cycle 1", "[image: image-9b8ab1d3e3f2c2ed.png]"], ["orphan"]] or len(found) == 3
    )
    assert first.title == "T"
    assert damage_in(items) == []


def test_librechat_exports_are_read_nested_and_flat(tmp_path: Path) -> None:
    root = "00000000-0000-0000-0000-000000000000"
    flat = [
        {"messageId": "a", "parentMessageId": root, "text": "hi", "isCreatedByUser": True},
        {"messageId": "b", "parentMessageId": "a", "text": "one", "isCreatedByUser": False,
         "createdAt": "2026-01-01T00:00:00Z"},
        {"messageId": "c", "parentMessageId": "a", "content": [{"type": "text", "text": {"value": "two"}}],
         "createdAt": "2026-01-02T00:00:00Z"},
    ]  # fmt: skip
    nested = [{**flat[0], "children": [{**flat[1], "children": []}, {**flat[2], "children": []}]}]
    for each in nested[0]["children"]:
        del each["parentMessageId"]
    expected = {"x": ["hi", "two"], "x~b": ["hi", "one"]}
    for number, messages in enumerate((flat, nested)):
        value = {"conversationId": "x", "endpoint": "openAI", "title": "T", "recursive": True, "messages": messages}
        items = read_source(write_json(tmp_path / f"{number}.json", value))

        assert whole_conversations(items) == expected


@pytest.mark.parametrize("depth", [10_000, pytest.param(100_000, marks=pytest.mark.heavy)])
def test_librechat_messages_may_be_nested_deeply(tmp_path: Path, depth: int) -> None:
    """Readers that call themselves for each level end with a stack overflow."""
    opening = "".join(f'{{"messageId":"m{place}","text":"t","children":[' for place in range(depth))
    text = '{"conversationId":"x","messages":[' + opening + "]}" * depth + "]}"
    (tmp_path / "x.json").write_text(text)
    found = conversations_of(read_source(tmp_path / "x.json"))

    assert len(found) == 1
    assert len(found["x"]) == depth


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_truncated_export_keeps_its_complete_conversations(tmp_path: Path, data: st.DataObject) -> None:
    text = json.dumps([chatgpt("a", BRANCHED, "more"), chatgpt("b", chain(["x", "y"]))]).encode()
    cut = data.draw(st.integers(1, len(text) - 1))
    (tmp_path / "conversations.json").write_bytes(text[:cut])
    items = read_source(tmp_path / "conversations.json", "chatgpt")

    assert damage_in(items)
    if cut > text.index(b'"conversation_id": "b"'):
        assert whole_conversations(items)["a"] == ["hi", "hello", "joke?", "two", "ha"]


@given(
    parents=st.lists(st.none() | st.integers(0, 9), min_size=1, max_size=10),
    current=st.none() | st.integers(0, 9),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_message_of_any_tree_is_read_once(tmp_path: Path, parents: list[int | None], current: int | None) -> None:
    nodes = [
        node(f"n{place}", None if parent is None else f"n{parent}", f"t{place}") for place, parent in enumerate(parents)
    ]
    path = write_json(tmp_path / "c.json", [chatgpt("c", nodes, None if current is None else f"n{current}")])
    messages = _messages(read_source(path))

    assert sorted(each.key for each in messages) == sorted(each["id"] for each in nodes)
