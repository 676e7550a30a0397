"""The request body for each model."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from exai.errors import InvalidArgument
from exai.models import CompletionRequest, Prompt, Thinking
from exai.providers.base import Family
from exai.providers.catalogue import bare_model, load_catalogue
from exai.providers.completion.request import build_body, encode_body
from exai.providers.endpoints import NAMED

CATALOGUE = load_catalogue(None, NAMED)
ASK = (Prompt("user", "hello"),)


def body(name: str, messages: tuple[Prompt, ...] = ASK, **options: Any) -> dict[str, Any]:
    model = CATALOGUE.models[name]
    request = CompletionRequest(name, messages, **options)
    decoded: dict[str, Any] = orjson.loads(encode_body(build_body(model, NAMED[model.provider], request)))
    return decoded


def test_messages_go_as_an_array_in_the_given_order() -> None:
    """Oldest first, each once, unchanged."""
    messages = (Prompt("system", "s"), Prompt("user", "1"), Prompt("assistant", "2"), Prompt("user", "3 🙂\n\x00"))
    assert body("kimi-k3", messages)["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "3 🙂\n\x00"},
    ]


def test_plain_request_holds_nothing_that_was_not_asked_for() -> None:
    """The provider's defaults stay the provider's."""
    assert body("kimi-k3").keys() == {"model", "messages", "stream", "stream_options"}
    assert body("glm-5.3").keys() == {"model", "messages", "stream"}
    assert body("kimi-k3")["stream_options"] == {"include_usage": True}


def test_output_limit_has_each_providers_own_name() -> None:
    """Kimi deprecates max_tokens; GLM supports no other field."""
    assert body("kimi-k3", max_output_tokens=9)["max_completion_tokens"] == 9
    assert "max_tokens" not in body("kimi-k3", max_output_tokens=9)
    assert body("glm-5.3", max_output_tokens=9)["max_tokens"] == 9


@pytest.mark.parametrize("value", [0, -1, 10_000_000])
def test_output_limit_beyond_the_models_is_refused(value: int) -> None:
    """Naming the range."""
    with pytest.raises(InvalidArgument, match="1 to 131,072"):
        body("glm-5.3", max_output_tokens=value)


def test_temperature_is_left_out_where_the_model_takes_none() -> None:
    """K3 answers 400 to any but its own."""
    assert "temperature" not in body("kimi-k3", temperature=0.2)
    assert "temperature" not in body("kimi-k2.6", temperature=0.2)
    assert body("glm-4.7", temperature=0.2)["temperature"] == 0.2


def test_glm_temperature_stays_inside_its_open_range() -> None:
    """GLM's own client never sends the ends."""
    assert [body("glm-5.3", temperature=value)["temperature"] for value in (0, 0.5, 1)] == [0.01, 0.5, 0.99]


def test_temperature_out_of_range_is_refused() -> None:
    """Naming the range."""
    with pytest.raises(InvalidArgument, match="0 to 1"):
        body("glm-5.3", temperature=1.5)


@pytest.mark.parametrize(
    ("name", "level", "fields"),
    [
        ("kimi-k3", "low", {"reasoning_effort": "low"}),
        ("kimi-k3", "max", {"reasoning_effort": "max"}),
        ("kimi-k2.7-code", "max", {}),
        ("kimi-k2.6", "off", {"thinking": {"type": "disabled"}}),
        ("kimi-k2.6", "high", {"thinking": {"type": "enabled"}}),
        ("glm-5.3", "high", {"reasoning_effort": "high"}),
        ("glm-5.2", "off", {"thinking": {"type": "disabled"}}),
        ("glm-5.2", "high", {"thinking": {"type": "enabled"}, "reasoning_effort": "high"}),
        ("glm-4.7", "off", {"thinking": {"type": "disabled"}}),
    ],
)
def test_thinking_is_said_in_each_models_own_way(name: str, level: Thinking, fields: dict[str, Any]) -> None:
    """One word of ours, a rule of each family."""
    sent = body(name, thinking=level)
    assert {key: sent[key] for key in sent if key in {"thinking", "reasoning_effort"}} == fields


@pytest.mark.parametrize(
    ("name", "level", "possible"),
    [
        ("kimi-k3", "off", "low or high or max"),
        ("glm-5.3", "off", "low or high or max"),
        ("glm-5.2", "low", "off or high or max"),
        ("kimi-k2.6", "low", "off or high or max"),
        ("kimi-k2.7-code", "off", "max"),
    ],
)
def test_thinking_a_model_cannot_honour_is_refused_with_what_it_can(name: str, level: Thinking, possible: str) -> None:
    """Never mapped to something else in silence."""
    with pytest.raises(InvalidArgument, match=f"Use {possible}") as refused:
        body(name, thinking=level)
    assert refused.value.field == "thinking"


def test_thinking_of_an_undescribed_endpoint_model_points_to_the_models_file() -> None:
    """The parameters that its server supports are unknown."""
    family = Family("local", "http://x", "KEY", limit_field="max_tokens", stream_usage=True)
    request = CompletionRequest("m", ASK, thinking="high")
    with pytest.raises(InvalidArgument, match="models file"):
        build_body(bare_model(family, "m", None, known=True), family, request)


def test_glm_refuses_a_list_without_a_user_message_before_it_is_sent() -> None:
    """GLM rejects lists of system or assistant messages only; Kimi does not."""
    system_only = (Prompt("system", "be kind"),)
    with pytest.raises(InvalidArgument, match="user message"):
        body("glm-5.3", system_only)
    with pytest.raises(InvalidArgument, match="user message"):
        body("glm-5.3", (*system_only, Prompt("assistant", "hello")))
    assert body("kimi-k3", system_only)["messages"] == [{"role": "system", "content": "be kind"}]


def test_empty_list_is_refused() -> None:
    """There is nothing to answer."""
    with pytest.raises(InvalidArgument, match="empty"):
        body("kimi-k3", ())


def test_tool_message_keeps_its_place_as_the_users() -> None:
    """A tool role without a recorded call is an error for every provider."""
    sent = body("kimi-k3", (Prompt("user", "a"), Prompt("tool", "42")))["messages"]
    assert sent[1] == {"role": "user", "content": "42"}


def test_text_that_is_not_unicode_is_the_callers_error() -> None:
    """A lone surrogate has no UTF-8."""
    with pytest.raises(InvalidArgument, match="Unicode"):
        body("kimi-k3", (Prompt("user", "\ud800"),))
