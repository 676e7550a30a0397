"""Build the JSON body of a chat-completions request, with only the parameters that the model accepts.

The messages go oldest first, shaped as every endpoint accepts them. A temperature the model does not take is left out;
an option it cannot honour is refused before anything is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from exai.errors import InvalidArgument
from exai.models import CompletionRequest, Prompt, Thinking
from exai.providers.base import Family, Model
from exai.providers.completion.parameters import AS_IT_IS, Accepted
from exai.providers.completion.shaping import shaped

# Distance that GLM's own client keeps from both ends of the range.
TEMPERATURE_MARGIN: Final = 0.01


class ToolRounds(NamedTuple):
    """The tools that a model may call to search the web, and its calls so far with their results."""

    tools: Sequence[Mapping[str, Any]] = ()
    tail: Sequence[Mapping[str, Any]] = ()


NO_SEARCH: Final = ToolRounds()


def check_options(
    model: Model,
    *,
    max_output_tokens: int | None = None,
    thinking: Thinking | None = None,
    temperature: float | None = None,
) -> None:
    """Raise `InvalidArgument` for an option that `model` does not support, naming the supported ones. No I/O."""
    if max_output_tokens is not None and not 1 <= max_output_tokens <= model.max_output_tokens:
        raise InvalidArgument(
            "max_output_tokens",
            f"is {max_output_tokens:,}, and {model.name} writes 1 to {model.max_output_tokens:,}",
            "Stay within that range, or leave it out",
        )
    if thinking is not None and thinking not in model.thinking:
        raise InvalidArgument("thinking", f"{model.name} cannot be asked for {thinking!r}", _possible_thinking(model))
    if temperature is not None and model.temperature is not None:
        low, high = model.temperature
        if not low <= temperature <= high:
            raise InvalidArgument(
                "temperature",
                f"is {temperature:g}, and {model.name} accepts {low:g} to {high:g}",
                "Stay within that range, or leave it out",
            )


def check_messages(family: Family, messages: Sequence[Prompt]) -> None:
    """Raise `InvalidArgument` for a list the provider is known to reject."""
    if not messages:
        raise InvalidArgument("messages", "is empty", "Send at least one user message")
    if family.needs_user_message and not any(message.role == "user" for message in messages):
        raise InvalidArgument(
            "messages",
            f"holds no user message, which {family.name} rejects",
            "Add a user message, or use a model of another provider",
        )


def build_body(
    model: Model,
    family: Family,
    request: CompletionRequest,
    accepted: Accepted = AS_IT_IS,
    search: ToolRounds = NO_SEARCH,
) -> dict[str, Any]:
    """Return the body for `request`, without the parameters that the endpoint has refused before.

    The messages of `search` follow those of the request.

    Raises `InvalidArgument` for an option that the model does not support.
    """
    check_messages(family, request.messages)
    check_options(
        model,
        max_output_tokens=request.max_output_tokens,
        thinking=request.thinking,
        temperature=request.temperature,
    )
    body: dict[str, Any] = {
        "model": model.wire_name,
        "messages": shaped(
            request.messages,
            strictly=accepted.strictly or not family.takes_any_order,
            system_role=accepted.system_role,
            reasoning_to=model.provider if model.returns_reasoning or accepted.returns_reasoning else None,
            takes_images=model.images is not None,
        ),
        "stream": True,
    }
    if model.stream_usage:
        body["stream_options"] = {"include_usage": True}
    if request.max_output_tokens is not None:
        body[accepted.limit_field or model.limit_field] = request.max_output_tokens
    if request.temperature is not None and model.temperature is not None:
        body["temperature"] = _temperature(family, model.temperature, request.temperature)
    if request.thinking is not None:
        body.update(model.thinking[request.thinking])
    if request.web_search:
        body.update(family.search_fields)
    if search.tools:
        body["tools"] = list(search.tools)
    body["messages"] += search.tail
    if family.with_options and (request.thinking is not None or "temperature" in body):
        body.update(family.with_options)
    if not body["messages"]:
        raise InvalidArgument("messages", "is empty", "Send at least one user message")
    return {name: value for name, value in body.items() if name not in accepted.dropped}


def encode_body(body: Mapping[str, Any]) -> bytes:
    """Return the JSON of a body. Raises `InvalidArgument` for text that is not Unicode."""
    try:
        return orjson.dumps(body)
    except TypeError as error:
        raise InvalidArgument("messages", f"cannot be sent as JSON: {error}", "Send valid Unicode text") from None


def _temperature(family: Family, accepted: tuple[float, float], value: float) -> float:
    if not family.open_temperature_range:
        return value
    low, high = accepted
    return min(max(value, low + TEMPERATURE_MARGIN), high - TEMPERATURE_MARGIN)


def _possible_thinking(model: Model) -> str:
    if not model.thinking:
        return "Leave it out; describe the model's thinking rule in the models file to use it"
    default = f", or leave it out for its default, {model.default_thinking}" if model.default_thinking else ""
    return f"Use {' or '.join(model.thinking)}{default}"
