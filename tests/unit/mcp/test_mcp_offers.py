"""Resources, prompts and completion: lists, reads and refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from exai.mcp.core import versions
from exai.mcp.core.jsonrpc import Json, RpcError
from exai.mcp.core.protocol import Call, CallContext, ClientInfo, Feature, Surface
from exai.mcp.features.prompts import PromptArgument, PromptRegistry, PromptSpec, completion_feature
from exai.mcp.features.resources import Listing, ResourceContents, ResourceRegistry, ResourceSpec
from exai.models import LOCAL_OWNER


async def silent(message: str) -> None:
    pass


async def ask(feature: Feature, name: str, params: dict[str, Any], version: str = versions.MODERN) -> Any:
    method = next(method for method in feature.methods if method.name == name)
    call = Call(1, method, params, version, ClientInfo())
    if method.answer is not None:
        return method.answer(call)
    assert method.work is not None
    return await method.work(call, CallContext(LOCAL_OWNER, "r", silent))


async def read(uri: str, context: CallContext) -> Sequence[ResourceContents]:
    known: dict[str, str | bytes] = {"exai://text": "words", "exai://bytes": b"\x00\xff"}
    return [ResourceContents(uri, known[uri])] if uri in known else []


async def listing(cursor: str | None, context: CallContext) -> Listing:
    return Listing([ResourceSpec("exai://text", "text", "Text", "Some words."), ResourceSpec("exai://bytes", "bytes")])


TEMPLATES = [ResourceSpec("exai://chats/{id}", "chat")]


class TestResources:
    FEATURE = ResourceRegistry(TEMPLATES, read, listing).feature()

    async def test_resources_and_templates_are_listed_apart(self) -> None:
        """resources/list contains addresses without parameters."""
        listed = (await ask(self.FEATURE, "resources/list", {}))["resources"]
        assert [each["uri"] for each in listed] == ["exai://text", "exai://bytes"]
        assert listed[0] == {
            "uri": "exai://text",
            "name": "text",
            "mimeType": "text/plain",
            "title": "Text",
            "description": "Some words.",
        }
        templates = (await ask(self.FEATURE, "resources/templates/list", {}))["resourceTemplates"]
        assert [each["uriTemplate"] for each in templates] == ["exai://chats/{id}"]

    async def test_text_goes_out_as_text_and_bytes_as_base64(self) -> None:
        """The two shapes of contents."""
        text = await ask(self.FEATURE, "resources/read", {"uri": "exai://text"})
        assert text["contents"] == [{"uri": "exai://text", "mimeType": "text/plain", "text": "words"}]
        blob = await ask(self.FEATURE, "resources/read", {"uri": "exai://bytes"})
        assert blob["contents"][0]["blob"] == "AP8="

    @pytest.mark.parametrize(("version", "code"), [(versions.MODERN, -32602), ("2025-11-25", -32002)])
    async def test_an_unknown_address_is_an_error_that_names_it(self, version: str, code: int) -> None:
        """SEP-2164; the code changed with 2026-07-28."""
        with pytest.raises(RpcError) as caught:
            await ask(self.FEATURE, "resources/read", {"uri": "exai://none"}, version)
        assert (caught.value.code, caught.value.data) == (code, {"uri": "exai://none"})

    @pytest.mark.parametrize("params", [{}, {"uri": 5}, {"uri": "x" * 5_000}])
    async def test_an_address_is_a_text_of_some_length(self, params: dict[str, Any]) -> None:
        """Anything else is a malformed request."""
        with pytest.raises(RpcError) as caught:
            await ask(self.FEATURE, "resources/read", params)
        assert caught.value.code == -32602

    def test_changes_are_announced_only_when_asked_for(self) -> None:
        """A change that is not announced cannot be subscribed to."""
        assert Surface("a", "1", [self.FEATURE]).has_subscriptions is False
        surface = Surface("a", "1", [ResourceRegistry(TEMPLATES, read, listing, announces=True).feature()])
        assert surface.capabilities == {"resources": {"subscribe": True, "listChanged": True}}
        assert surface.has_subscriptions is True


async def render(arguments: Mapping[str, str], context: CallContext) -> Sequence[Json]:
    return [{"role": "user", "content": {"type": "text", "text": f"Review {arguments.get('path', 'all')}"}}]


class TestPrompts:
    FEATURE = PromptRegistry(
        [
            PromptSpec(
                "review", "Review", "Reviews.", render, (PromptArgument("path"), PromptArgument("tone", "", False))
            ),
            PromptSpec("plain", "Plain", "Takes nothing.", render),
        ]
    ).feature()

    async def test_prompts_are_listed_with_their_arguments(self) -> None:
        """prompts/list."""
        listed = (await ask(self.FEATURE, "prompts/list", {}))["prompts"]
        assert [each["name"] for each in listed] == ["review", "plain"]
        assert [each["required"] for each in listed[0]["arguments"]] == [True, False]
        assert "arguments" not in listed[1]

    async def test_a_prompt_is_rendered_with_its_arguments(self) -> None:
        """prompts/get; optional ones may be left out."""
        found = await ask(self.FEATURE, "prompts/get", {"name": "review", "arguments": {"path": "a.py"}})
        assert found["messages"][0]["content"]["text"] == "Review a.py"
        assert (await ask(self.FEATURE, "prompts/get", {"name": "plain"}))["description"] == "Takes nothing."

    @pytest.mark.parametrize(
        ("params", "words"),
        [
            ({"name": "nope"}, "prompts/list"),
            ({"name": 5}, "prompts/list"),
            ({"name": "review"}, "path is required"),
            ({"name": "review", "arguments": {"path": "a", "pat": "b"}}, "no argument pat"),
            ({"name": "review", "arguments": {"path": {}}}, "texts"),
            ({"name": "plain", "arguments": [1]}, "texts"),
        ],
    )
    async def test_wrong_requests_say_what_is_wrong(self, params: dict[str, Any], words: str) -> None:
        """Invalid params, with the name."""
        with pytest.raises(RpcError, match=words) as caught:
            await ask(self.FEATURE, "prompts/get", params)
        assert caught.value.code == -32602


class TestCompletion:
    async def test_likely_values_are_returned_up_to_a_hundred(self) -> None:
        """completion/complete."""

        async def complete(reference: Json, name: str, typed: str, context: CallContext) -> list[str]:
            return [f"{typed}{number}" for number in range(150)]

        feature = completion_feature(complete)
        params = {"ref": {"type": "ref/prompt", "name": "x"}, "argument": {"name": "a", "value": "v"}}
        found = (await ask(feature, "completion/complete", params))["completion"]
        assert (len(found["values"]), found["total"], found["hasMore"]) == (100, 150, True)
        assert feature.capabilities == {"completions": {}}

    @pytest.mark.parametrize("params", [{}, {"ref": {}, "argument": {}}, {"ref": {}, "argument": {"name": "a"}}])
    async def test_incomplete_questions_are_invalid(self, params: dict[str, Any]) -> None:
        """The reference and the argument are required."""

        async def complete(reference: Json, name: str, typed: str, context: CallContext) -> list[str]:
            return []

        with pytest.raises(RpcError):
            await ask(completion_feature(complete), "completion/complete", params)


@pytest.mark.parametrize("reference", [{"name": ["a"]}, {"name": {}}, {"uri": {"a": 1}}, {"uri": 5}, {"name": None}])
async def test_references_that_are_no_texts_are_invalid(reference: dict[str, Any]) -> None:
    """They cannot be looked up, which is no fault of the server."""

    async def complete(reference: Json, name: str, typed: str, context: CallContext) -> list[str]:
        raise AssertionError("not reached")

    params = {"ref": reference, "argument": {"name": "a", "value": ""}}
    with pytest.raises(RpcError, match=r"ref\.name"):
        await ask(completion_feature(complete), "completion/complete", params)
