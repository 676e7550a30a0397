"""Arguments as clients send them: conversions, notes, refusals, and values left unchanged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exai.errors import InvalidArgument
from exai.mcp.features.coercion import coerce
from exai.mcp.features.schema_fit import SchemaFit
from exai.mcp.features.schemas import portable_schema
from tests.support.surface import CALLS, ONE, TWO, all_tools

TOOLS = all_tools()


def read(tool: str, arguments: object) -> tuple[dict[str, Any], list[str]]:
    """Return a handler's arguments without omitted ones, and the notes."""
    spec = TOOLS[tool]
    found, notes = coerce(portable_schema(spec.arguments), arguments, spec.arguments.KEEPS_EMPTY)
    return spec.arguments.model_validate(found).model_dump(exclude_unset=True), notes


def as_texts(value: object) -> object:
    """Every value as a text, as a client sends that does not use the schema."""
    return value if isinstance(value, str) else json.dumps(value)


def camel(value: Any) -> Any:
    """Names in camelCase, but for those of free-form objects."""
    if isinstance(value, list):
        return [camel(each) for each in value]
    if not isinstance(value, dict):
        return value
    names = {re.sub("_(.)", lambda found: found[1].upper(), name): name for name in value}
    return {new: value[old] if old == "metadata" else camel(value[old]) for new, old in names.items()}


def filled(nothing: object) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    def fill(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Set each omitted optional value to its empty value."""
        names = set(portable_schema(TOOLS[tool].arguments)["properties"]) - TOOLS[tool].arguments.KEEPS_EMPTY
        return {**dict.fromkeys(names, nothing), **arguments}

    return fill


FORMS: dict[str, Callable[[str, dict[str, Any]], object]] = {
    "as it should be": lambda tool, given: given,
    "every value a text": lambda tool, given: {name: as_texts(value) for name, value in given.items()},
    "every value a text, twice": lambda tool, given: {
        name: json.dumps(as_texts(value)) if isinstance(value, list | dict) else as_texts(value)
        for name, value in given.items()
    },
    "all a text": lambda tool, given: json.dumps(given),
    "items texts": lambda tool, given: {
        name: [as_texts(each) for each in value] if isinstance(value, list) else value for name, value in given.items()
    },
    "numbers as floats": lambda tool, given: {
        name: float(value) if type(value) is int else value for name, value in given.items()
    },
    "camelCase": lambda tool, given: camel(given),
    "hyphens": lambda tool, given: {name.replace("_", "-"): value for name, value in given.items()},
    "capitals": lambda tool, given: {name.upper(): value for name, value in given.items()},
    "empty texts": filled(""),
    "nulls": filled(None),
    "null as a text": filled("null"),
    "lists of null": lambda tool, given: {
        **{
            name: ["null"]
            for name, part in portable_schema(TOOLS[tool].arguments)["properties"].items()
            if part.get("items", {}).get("type") == "string" and name != "file_ids"
        },
        **given,
    },
    "beside the older systems' counters": lambda tool, given: (
        given
        if "prompt" not in given
        else {
            **{name: value for name, value in given.items() if name != "prompt"},
            "step": given["prompt"],
            "step_number": "1",
            "totalSteps": 3,
            "next_step_required": "false",
            "use_assistant_model": True,
            "confidence": "certain",
            "files_checked": ["a.py"],
            "temperature": 0.2,
        }
    ),
    "wrapped": lambda tool, given: {"arguments": given} if given else given,
    "wrapped as a text": lambda tool, given: {"kwargs": json.dumps(given)} if given else given,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tool", TOOLS)
def test_every_form_of_a_call_is_the_same_call(tool: str, form: str) -> None:
    """Forms that clients were seen to send; see the issues of Claude Code, Codex and Gemini CLI."""
    wanted, _ = read(tool, CALLS[tool])
    assert read(tool, FORMS[form](tool, CALLS[tool]))[0] == wanted


WORKFLOWS = [name for name, spec in TOOLS.items() if "ask_model" in spec.arguments.model_fields]


@pytest.mark.parametrize("tool", WORKFLOWS)
@pytest.mark.parametrize(
    "older",
    [
        {"next_step_required": True},
        {"next_step_required": "true", "step_number": 1, "total_steps": "4", "use_assistant_model": True},
        {"nextThoughtNeeded": True, "thoughtNumber": 1, "totalThoughts": 5},
        {"use_assistant_model": "False", "next_step_required": False},
    ],
    ids=repr,
)
def test_a_step_of_an_older_system_asks_no_model(tool: str, older: dict[str, Any]) -> None:
    """Prompts written for it work, and the answer states what became of each argument."""
    found, notes = read(tool, {"prompt": "p", **older})
    assert found == {"prompt": "p", "ask_model": False}
    assert len(notes) == len(older)
    assert [note for note in notes if note.endswith("taken as ask_model false")]


@pytest.mark.parametrize("tool", WORKFLOWS)
def test_another_step_and_the_model_at_once_are_refused(tool: str) -> None:
    """One of the two would be dropped in silence, and the model costs money."""
    with pytest.raises(InvalidArgument) as caught:
        read(tool, {"prompt": "p", "ask_model": "true", "next_step_required": True})
    assert caught.value.field == "next_step_required"
    assert str(caught.value).endswith("Give ask_model only")


@pytest.mark.parametrize("tool", [name for name, spec in TOOLS.items() if "prompt" not in spec.arguments.model_fields])
def test_only_tools_that_ask_a_model_accept_what_an_older_systems_tools_took(tool: str) -> None:
    """Elsewhere an unknown name is a mistake."""
    assert "step_number" in coerce(portable_schema(TOOLS[tool].arguments), {"step_number": 1})[0]  # type: ignore[operator]


def test_every_tool_has_a_call() -> None:
    """A new tool cannot be forgotten."""
    assert set(CALLS) == set(TOOLS)


@pytest.mark.parametrize("tool", TOOLS)
def test_what_fits_is_left_alone_and_needs_no_note(tool: str) -> None:
    """Byte for byte; also texts that look like JSON or like nothing where a text is wanted."""
    schema = portable_schema(TOOLS[tool].arguments)
    assert coerce(schema, CALLS[tool]) == (CALLS[tool], [])


@given(st.text(max_size=30) | st.sampled_from(['["a"]', '{"a": 1}', "null", "", "None", "0", "true", " x "]))
def test_a_required_text_is_never_altered(text: str) -> None:
    """A prompt may be JSON, and so may the content of a message."""
    assert read("chat", {"prompt": text})[0] == {"prompt": text}
    messages = [{"role": "user", "content": text}]
    assert read("conversation_append", {"messages": messages})[0] == {"messages": messages}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )
)
def test_free_form_objects_are_never_looked_into(value: Any) -> None:
    """Metadata is the caller's."""
    given = {"continuation_id": "c", "metadata": {"camelCase": value, "": value}}
    assert read("conversation_update", given)[0] == given


@pytest.mark.parametrize(
    ("tool", "given", "found", "note"),
    [
        ("chat", {"question": "Why?"}, {"prompt": "Why?"}, "question: taken as prompt"),
        ("chat", {"prompt": "p", "thread_id": "c"}, {"prompt": "p", "continuation_id": "c"}, "continuation_id"),
        ("chat", {"prompt": "p", "conversationId": "c"}, {"prompt": "p", "continuation_id": "c"}, "continuation_id"),
        ("chat", {"prompt": "p", "files": "a.md"}, {"prompt": "p", "files": ["a.md"]}, "a list of one"),
        ("chat", {"prompt": "p", "files": "[id].tsx"}, {"prompt": "p", "files": ["[id].tsx"]}, "a list of one"),
        ("chat", {"prompt": "p", "files": "a.md\nb.md\n"}, {"prompt": "p", "files": ["a.md", "b.md"]}, "2 lines"),
        ("chat", {"prompt": "p", "file": "a.md"}, {"prompt": "p", "files": ["a.md"]}, "taken as files"),
        ("chat", {"prompt": "p", "absolute_file_paths": ["a"]}, {"prompt": "p", "files": ["a"]}, "taken as files"),
        ("chat", {"prompt": "p", "files": [None, "a", ""]}, {"prompt": "p", "files": ["a"]}, None),
        ("chat", {"prompt": "p", "thinking": " High "}, {"prompt": "p", "thinking": "high"}, None),
        ("chat", {"prompt": "p", "expected_revision": "0"}, {"prompt": "p", "expected_revision": 0}, None),
        ("chat", {"prompt": "p", "model": "None"}, {"prompt": "p"}, "taken as left out"),
        ("file_link", {"continuation_id": 12, "file_ids": f"{ONE}, {TWO}"},
         {"continuation_id": "12", "file_ids": [ONE, TWO]}, "2 ids"),
        ("file_get", {"id": ONE, "offset": "3.0"}, {"file_id": ONE, "offset": 3}, "taken as file_id"),
        ("conversation_list", {"title": "Plan"}, {"part": "Plan"}, "title: taken as part"),
        ("conversation_get", {"id": "c", "seq": 0}, {"continuation_id": "c"}, "0 taken as left out"),
        ("conversation_update", {"continuation_id": "c", "title": ""}, {"continuation_id": "c", "title": ""}, None),
        ("conversation_update", {"continuation_id": "c", "tags": []}, {"continuation_id": "c", "tags": []}, None),
        ("conversation_delete", {"continuation_id": "c", "restore": "yes"},
         {"continuation_id": "c", "restore": True}, None),
        ("file_put", {"name": "a", "content": ""}, {"name": "a", "content": ""}, None),
        ("file_put", {"name": "a", "content": "", "path": "/a"}, {"name": "a", "path": "/a"}, None),
        ("conversation_append", {"messages": {"role": "human", "content": "a"}},
         {"messages": [{"role": "user", "content": "a"}]}, "taken as user"),
        ("conversation_append", {"messages": [{"role": "User", "content": [{"type": "text", "text": "a"}]}]},
         {"messages": [{"role": "user", "content": "a"}]}, "parts of text joined"),
        ("chat", {"prompt": None, "question": "Why?"}, {"prompt": "Why?"}, "question: taken as prompt"),
        ("chat", {"prompt": "p", "thinking": False}, {"prompt": "p", "thinking": "off"}, None),
        ("chat", {"prompt": "p", "thinking": "none"}, {"prompt": "p", "thinking": "off"}, None),
        ("chat", {"prompt": "p", "thinking_mode": "medium"}, {"prompt": "p", "thinking": "high"}, "taken as high"),
        ("chat", {"prompt": "p", "reasoning_effort": "xhigh"}, {"prompt": "p", "thinking": "max"}, "taken as max"),
        ("chat", {"prompt": "p", "web_search": " True "}, {"prompt": "p", "web_search": True}, None),
        ("chat", {"prompt": "p", "web_search": "no\n"}, {"prompt": "p", "web_search": False}, None),
        ("chat", {"prompt": "p", "files": "['a.md', 'b, c.md']"}, {"prompt": "p", "files": ["a.md", "b, c.md"]},
         "files: text taken as the list in it"),
        ("chat", "{'prompt': 'p', 'web_search': True, 'model': None}", {"prompt": "p", "web_search": True},
         "arguments: text taken as the object in it"),
        ("conversation_list", {"metadata": '{"a": 1}'}, {"metadata": {"a": 1}}, "metadata: text taken as the object"),
        ("chat", {"prompt": "p", "files": ["a"], "Files": '["a"]'}, {"prompt": "p", "files": ["a"]}, None),
        ("chat", {"prompt": "p", "web_search": True, "webSearch": "true"}, {"prompt": "p", "web_search": True}, None),
        ("conversation_get", {"continuation_id": "exai://conversations/c"}, {"continuation_id": "c"}, "the address"),
        ("conversation_get", {"id": "@exai:EXAI://conversations/a%2Fb%20c/ "},
         {"continuation_id": "a/b c"}, "the address"),
        ("conversation_get", {"continuation_id": "exai://files/c"}, {"continuation_id": "exai://files/c"}, None),
        ("conversation_get", {"continuation_id": "exai://conversations/"},
         {"continuation_id": "exai://conversations/"}, None),
        ("file_get", {"file_id": f"exai://files/{ONE}"}, {"file_id": ONE}, "the address"),
        ("chat", {"prompt": "exai://files/a", "files": [f"exai://files/{ONE}", "a.md"]},
         {"prompt": "exai://files/a", "files": [ONE, "a.md"]}, "files[0]: the address"),
        ("file_link", {"continuation_id": "c", "file_ids": f"exai://files/{ONE}, {TWO}"},
         {"continuation_id": "c", "file_ids": [ONE, TWO]}, "the address"),
        ("conversation_append", {"messages": [{"role": "user", "content": {"type": "text", "text": "a"}}]},
         {"messages": [{"role": "user", "content": "a"}]}, None),
        ("conversation_append", {"messages": '```json\n[{"role":"user","content":"a"}]\n```'},
         {"messages": [{"role": "user", "content": "a"}]}, "messages: text taken as the list"),
        ("conversation_append", {"messages": [{"role": "user", "content": "a", "metadata": []}]},
         {"messages": [{"role": "user", "content": "a", "metadata": {}}]}, None),
        ("conversation_append", {"messages": [{"role": "user", "content": "a", "name": None, "refusal": ""}]},
         {"messages": [{"role": "user", "content": "a"}]}, None),
        ("conversation_update", {"continuation_id": "c", "tags": {}}, {"continuation_id": "c", "tags": []}, None),
        ("conversation_list", {"since": None, "owner": ""}, {}, None),
        ("version", [], {}, None),
        ("version", "null", {}, None),
        ("version", "```json\n{}\n```", {}, "arguments: text taken as the object"),
        ("version", "", {}, None),
        ("version", None, {}, None),
    ],
)  # fmt: skip
def test_conversions_have_notes(tool: str, given: object, found: object, note: str | None) -> None:
    """Unless a conversion is trivial."""
    arguments, notes = read(tool, given)
    assert arguments == found
    assert (note is None) == (notes == []), notes
    assert note is None or any(note in each for each in notes), notes


@pytest.mark.parametrize(
    ("tool", "given", "words"),
    [
        ("chat", {"prompt": "p", "files": "a.md, b.md"}, 'files: one text with commas .* \\["a.md","b.md"\\]'),
        ("conversation_update", {"continuation_id": "c", "tags": "a,b"}, "tags: one text with commas"),
        ("chat", {"prompt": "p", "continuation_id": "a", "continuationId": "b"}, "continuationId: .*Give contin"),
        ("chat", {"prompt": "p", "threadId": "a", "thread_id": "b"}, "thread_id: .*Give threadId only"),
        ("chat", {"prompt": "p", "stepNumber": 1, "step_number": 2}, "step_number: .*Give stepNumber only"),
        ("chat", {"prompt": "p", "files": "[" + "1," * 50_000 + "1]"}, "files: one text with commas"),
        ("chat", {"prompt": "p", "max_output_tokens": True}, "max_output_tokens: true is not a number"),
        ("chat", {"prompt": "p", "expected_revision": False}, "expected_revision: false is not a number"),
    ],
)  # fmt: skip
def test_ambiguous_values_are_refused_with_the_cure(tool: str, given: object, words: str) -> None:
    """A second call is better than unintended files or tags."""
    with pytest.raises(InvalidArgument, match=words):
        read(tool, given)


@pytest.mark.parametrize("text", ["[" * 900 + "]" * 900, "[" * 70 + "'a'" + "]" * 70])
def test_json_in_a_text_may_not_exceed_the_limits_of_a_request(text: str) -> None:
    """It stays a text, about which the tool says what is wrong."""
    assert read("chat", {"prompt": "p", "files": text})[0]["files"] == [text]


def test_two_spellings_with_values_nested_without_end_are_refused() -> None:
    deep: Any = []
    for _ in range(1_000):
        deep = [deep]
    with pytest.raises(InvalidArgument, match="comes with another value"):
        read("chat", {"prompt": "p", "files": deep, "Files": [deep]})


@pytest.mark.parametrize(
    "given",
    [{"prompt": "p", "files": {"a": 1}}, {"prompt": "p", "max_output_tokens": "many"}, {"prompt": "p", "x": 1}, [1]],
)  # fmt: skip
def test_values_without_a_conversion_are_left_to_validation(given: object) -> None:
    """It names the field and the expected type."""
    spec = TOOLS["chat"]
    assert coerce(portable_schema(spec.arguments), given)[0] == given


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(['["a"]', "{}", '"\\"x\\""', "[", "null", "a,b", "a\nb", ONE]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(st.data())
def test_any_value_is_converted_refused_or_unchanged(data: st.DataObject) -> None:
    """No other error occurs, and a converted value is not converted again."""
    tool = data.draw(st.sampled_from(sorted(TOOLS)))
    schema = portable_schema(TOOLS[tool].arguments)
    names = [*schema["properties"], *map(camel_name, schema["properties"]), "id", "question", "x"]
    given = data.draw(JSON | st.dictionaries(st.sampled_from(names), JSON, max_size=5))
    try:
        found, _ = coerce(schema, given)
    except InvalidArgument as error:
        assert error.field
        return
    assert coerce(schema, found)[0] == found


@given(st.data())
def test_arguments_that_fit_would_be_coerced_to_themselves(data: st.DataObject) -> None:
    """The short test leaves nothing out that the long way would alter, refuse or take a note of."""
    spec = TOOLS[data.draw(st.sampled_from(sorted(TOOLS)))]
    schema = portable_schema(spec.arguments)
    texts = st.sampled_from(["", " ", "null", " None ", "off", "user", "a", "exai://conversations/a", "exai://files/a"])
    values = texts | st.booleans() | st.integers(-1, 2) | st.lists(texts, max_size=3) | JSON
    given = data.draw(
        st.dictionaries(st.sampled_from([*schema["properties"], "input", "question"]), values, max_size=4)
    )
    if SchemaFit(schema, spec.arguments.KEEPS_EMPTY).holds(given):
        assert coerce(schema, given, spec.arguments.KEEPS_EMPTY) == (given, [])


@pytest.mark.parametrize(
    ("tool", "given"),
    [
        ("chat", {"prompt": "null", "continuation_id": ONE, "files": ["a.py"], "max_output_tokens": 5}),
        ("conversation_get", {"continuation_id": ONE, "limit": 20}),
        ("status", {}),
    ],
)
def test_usual_arguments_are_seen_to_be_plain_at_once(tool: str, given: dict[str, Any]) -> None:
    """Nearly all calls are such, and understanding one costs more than everything else about its arguments."""
    assert SchemaFit(portable_schema(TOOLS[tool].arguments), TOOLS[tool].arguments.KEEPS_EMPTY).holds(given)


def camel_name(name: str) -> str:
    return re.sub("_(.)", lambda found: found[1].upper(), name)
