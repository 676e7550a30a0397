"""Tools: validation of arguments, schemas, and refusals at registration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from exai.mcp.core import versions
from exai.mcp.core.jsonrpc import RpcError
from exai.mcp.core.protocol import Call, CallContext, ClientInfo, Method
from exai.mcp.features.schemas import output_schema, portable_schema
from exai.mcp.features.tools import Arguments, ToolRegistry, ToolSpec
from exai.models import LOCAL_OWNER
from tests.support.mcp_server import Nothing, Tools, tool_call
from tests.support.outputs import Fixed


async def silent(message: str) -> None:
    pass


async def call(registry: ToolRegistry, params: dict[str, Any]) -> Any:
    """What tools/call answers, without a connection."""
    method = next(method for method in registry.feature().methods if method.name == "tools/call")
    assert method.work is not None
    context = CallContext(LOCAL_OWNER, "r", silent)
    return await method.work(Call(1, method, params, versions.MODERN, ClientInfo()), context)


async def problems(name: str, **arguments: Any) -> list[dict[str, str]]:
    result = await call(Tools().registry, tool_call(name, **arguments))
    assert result["isError"] is True
    facts = result["structuredContent"]["error"]
    assert facts["code"] == "invalid_argument"
    assert result["content"][0]["text"] == facts["message"]
    for each in facts["errors"]:
        assert f"{each['field']}: {each['problem']}. {each['cure']}" in facts["message"]
    return list(facts["errors"])


async def test_a_good_call_returns_text_and_structure() -> None:
    """Both are whole answers: some clients show the model only one."""
    result = await call(Tools().registry, tool_call("echo", text="ab", times=2))
    assert result == {
        "content": [{"type": "text", "text": "abab"}],
        "structuredContent": {"text": "abab"},
        "isError": False,
    }


@pytest.mark.parametrize("arguments", [{}, None])
async def test_missing_arguments_are_an_empty_object(arguments: object) -> None:
    """The member is optional."""
    result = await call(Tools().registry, {"name": "steps", "arguments": arguments})
    assert result["isError"] is False
    assert (await call(Tools().registry, {"name": "steps"}))["isError"] is False


async def test_a_missing_argument_is_named_with_what_it_should_be() -> None:
    """2025-11-25: the model is to correct itself."""
    (found,) = await problems("echo")
    assert found == {
        "field": "text",
        "problem": "this argument is required",
        "cure": "Give it a string: what to say back",
    }


async def test_an_unknown_argument_names_the_nearest() -> None:
    """A silently ignored argument would be worse than a refusal."""
    (found,) = await problems("echo", text="a", tims=2)
    assert found["field"] == "tims"
    assert found["cure"] == "Did you mean times? The arguments are text, times, mood"


async def test_every_error_is_reported_at_once() -> None:
    """One round for all of them, and a path for each."""
    found = await problems("echo", text={}, times=99, mood="sad", txet="a")
    assert [each["field"] for each in found] == ["text", "times", "mood", "txet"]
    assert found[0]["cure"] == "Give it a string"
    assert "10" in found[1]["problem"]
    assert found[2]["cure"] == "Use 'calm' or 'loud'"
    assert "text" in found[3]["cure"]


async def test_paths_lead_into_nested_arguments() -> None:
    """`parts[1].role`, as a model would write it."""
    parts = [{"role": "user", "content": "a"}, {"role": "robot", "contents": "b"}]
    found = await problems("nested", parts=parts)
    assert [each["field"] for each in found] == ["parts[1].role", "parts[1].content", "parts[1].contents"]
    assert "Did you mean content?" in found[2]["cure"]


async def test_the_number_of_reported_errors_is_limited() -> None:
    """A thousand wrong messages need no thousand sentences."""
    found = await problems("nested", parts=[{"role": "robot", "content": "x"}] * 50)
    assert len(found) == 10


async def test_values_are_not_repeated_in_errors() -> None:
    """Texts never hold message content."""
    found = await problems("echo", text=["my secret"], mood="my secret")
    assert "my secret" not in orjson.dumps(found).decode()


async def test_own_rules_of_a_model_are_quoted() -> None:
    """A validator's sentence is written for the caller."""

    class Even(Arguments):
        number: int

        @field_validator("number")
        @classmethod
        def _even(cls, value: int) -> int:
            if value % 2:
                raise ValueError("must be even")
            return value

    async def handler(arguments: Even, context: CallContext) -> Fixed:
        return Fixed.of(None, "")

    registry = ToolRegistry([ToolSpec("even", "Even", "", Even, Fixed, handler)])
    result = await call(registry, tool_call("even", number=3))
    assert result["structuredContent"]["error"]["errors"][0]["problem"] == "must be even"


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"name": "ecko", "arguments": {}}, "Did you mean echo?"),
        ({"name": "zzzzzzzz"}, "tools/list"),
        ({"arguments": {}}, "name"),
        ({"name": 5}, "name"),
        ({"name": "echo", "arguments": [1]}, "arguments"),
    ],
)
async def test_unknown_tools_and_malformed_calls_are_protocol_errors(params: dict[str, Any], words: str) -> None:
    """2025-11-25, tools, error handling: -32602."""
    with pytest.raises(RpcError) as caught:
        await call(Tools().registry, params)
    assert caught.value.code == -32602
    assert words in caught.value.message


def test_the_list_is_in_order_of_registration() -> None:
    """A stable order keeps clients' prompt caches warm."""
    names = [spec.name for spec in Tools().registry]
    method = Method("tools/list")
    lists = [
        feature_list(Call(1, method, {}, versions.MODERN, ClientInfo()))["tools"]
        for feature_list in [next(m.answer for m in Tools().registry.feature().methods if m.answer) for _ in range(2)]
    ]
    assert [tool["name"] for tool in lists[0]] == names
    assert lists[0] == lists[1]


@pytest.mark.parametrize("name", ["", "Chat", "1a", "a-b", "a" * 42, "a b"])
def test_names_that_clients_cut_or_refuse_are_not_registered(name: str) -> None:
    """Some clients prefix names with the server's and cut at 63 characters."""
    spec = next(iter(Tools().registry))
    with pytest.raises(ValueError, match="name"):
        ToolRegistry([ToolSpec(name, "", "", Nothing, Fixed, spec.handler)])


def test_a_name_is_registered_once_and_arguments_are_closed() -> None:
    """Both are defects of the program, found at start."""
    spec = next(iter(Tools().registry))
    with pytest.raises(ValueError, match="two tools"):
        ToolRegistry([spec, spec])

    class Open(BaseModel):
        text: str

    with pytest.raises(TypeError, match="forbid"):
        ToolRegistry([ToolSpec("open", "", "", Open, Fixed, spec.handler)])


class Inner(BaseModel):
    """A description that stays."""

    model_config = ConfigDict(extra="forbid")
    title: str
    kind: Literal["a"] = "a"


class Wide(Arguments):
    """A description of the class that goes."""

    title: str = Field(description="its title")
    inner: Inner
    maybe: Inner | None = None
    inners: list[Inner] = []
    either: int | str = 5
    mixed: int | str | None = None
    number: Annotated[int, Field(ge=1, le=5)] | None = None
    table: dict[str, Inner] = {}
    flag: bool = False


def nodes(schema: Any) -> list[Any]:
    """Every object of a schema."""
    if isinstance(schema, list):
        return [node for item in schema for node in nodes(item)]
    if not isinstance(schema, dict):
        return []
    return [schema, *(node for value in schema.values() for node in nodes(value))]


def test_schemas_refer_to_nothing_and_offer_no_null() -> None:
    """What clients were seen to drop or to choke on."""
    schema = portable_schema(Wide)
    text = orjson.dumps(schema).decode()
    for word in ("$ref", "$defs", '"null"', 'default":null', "const"):
        assert word not in text
    for node in nodes(schema):
        if node.get("type") == "object" and "properties" in node:
            assert node["additionalProperties"] is False
        if "anyOf" in node:
            assert "default" not in node
            assert not any("default" in branch for branch in node["anyOf"])


def test_schemas_keep_what_a_model_needs() -> None:
    """Arguments named like schema words, descriptions, limits, defaults, choices."""
    schema = portable_schema(Wide)
    properties = schema["properties"]
    assert "title" not in schema
    assert properties["title"] == {"type": "string", "description": "its title"}
    assert properties["inner"]["properties"]["title"] == {"type": "string"}
    assert properties["inner"]["properties"]["kind"]["enum"] == ["a"]
    assert properties["maybe"]["properties"] == properties["inner"]["properties"]
    assert properties["inners"]["items"]["required"] == ["title"]
    assert properties["number"] == {"type": "integer", "minimum": 1, "maximum": 5}
    assert properties["mixed"] == {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    assert properties["table"]["additionalProperties"]["required"] == ["title"]
    assert properties["flag"] == {"type": "boolean", "default": False}
    assert schema["required"] == ["title", "inner"]


def test_answers_say_null_as_a_branch_of_its_own() -> None:
    """A list of types is what clients with a single type for each field drop."""
    properties = output_schema(Wide)["properties"]
    assert properties["number"]["anyOf"] == [{"type": "integer", "minimum": 1, "maximum": 5}, {"type": "null"}]
    assert properties["mixed"]["anyOf"][-1] == {"type": "null"}
    assert all(isinstance(node.get("type", ""), str | dict) for node in nodes(properties))


def test_recursive_arguments_are_refused() -> None:
    """They cannot be written without references."""

    class Tree(Arguments):
        children: list[Tree] = []

    Tree.model_rebuild(_types_namespace={"Tree": Tree})
    with pytest.raises(TypeError, match="recursive"):
        portable_schema(Tree)
