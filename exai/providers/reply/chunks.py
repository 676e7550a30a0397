"""Read single chunks of a chat-completions stream: their choices, their usage, and errors in every known form.

Invariant: these functions keep nothing between two chunks; `AnswerAssembler` holds the state of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from exai.models import Usage
from exai.providers.reply.reading import tokens

MAX_COST_USD: Final = 1_000_000
_COUNTING_FIELDS: Final = frozenset(
    {"usage", "x_groq", "message", "response", "timings", "eval_count", "prompt_eval_count"}
)
END_FLAGS: Final = ("done", "stop", "is_finished", "finished")
"""Fields that are true in the last piece from servers that send no finish reason."""

_GOOD_CODES: Final = (None, False, "", 0, "0", 200, "200", "ok", "OK", "success")
LOOSE_FIELDS: Final = ("delta", "message", "text", "content", "output_text", "response")
"""Fields that may hold the text of a chunk without choices."""

_ENDED: Final = (".done", ".completed", "_stop", "_start", ".created", ".in_progress")
"""Suffixes of event types that repeat text or hold none."""


def is_error(chunk: Mapping[str, Any], name: str) -> bool:
    """Return whether a chunk reports an error instead of a part of the answer; `name` is the event's name."""
    if _is_reported(chunk.get("error")) or name == "error":
        return True
    if any(chunk.get(field) for field in ("choices", *LOOSE_FIELDS[:1])) or chunk.get("usage"):
        return False
    words = (chunk.get("object"), chunk.get("type"), chunk.get("status"))
    code = chunk.get("code")
    failed = not _is_good(code)
    return "choices" not in chunk and (failed or "error" in words or chunk.get("success") is False or _detail(chunk))


def _is_good(code: Any) -> bool:
    return any(code is good or code == good for good in _GOOD_CODES)


def _is_reported(error: Any) -> bool:
    """Return whether the error field holds an error; some servers always send the field, with a code of 0."""
    return not all(map(_is_good, error.values())) if isinstance(error, dict) else bool(error)


def error_beside(chunk: Mapping[str, Any]) -> Any:
    """Return an error that Groq or MiniMax sends beside the choices of a chunk."""
    groq, reply = chunk.get("x_groq"), chunk.get("base_resp")
    if isinstance(groq, dict) and groq.get("error"):
        return groq["error"]
    if isinstance(reply, dict) and not _is_good(reply.get("status_code")):
        return {"code": reply.get("status_code"), "message": reply.get("status_msg")}
    return None


def has_choices(value: Any) -> bool:
    """Return whether the value is an object with the field `choices`."""
    return isinstance(value, dict) and "choices" in value


def _detail(chunk: Mapping[str, Any]) -> bool:
    return bool(chunk.get("detail") or chunk.get("errors"))


def choices_of(chunk: Mapping[str, Any]) -> list[Any]:
    """Return the choices of a chunk; the chunk itself if it has none and holds text or ends the answer."""
    choices = chunk.get("choices")
    if isinstance(choices, dict):
        choices = [choices] if choices.keys() & {"delta", "message", "text"} else list(choices.values())
    if isinstance(choices, list) and choices:
        return choices
    kind = chunk.get("type")
    if isinstance(kind, str) and kind.endswith(_ENDED):
        return []
    ends = chunk.get("done_reason") or any(chunk.get(flag) is True for flag in END_FLAGS)
    return [chunk] if ends or _holds_text(chunk) else []


def says_something(choice: Mapping[str, Any]) -> bool:
    """Return whether a choice holds text or a finish reason."""
    return _holds_text(choice) or bool(choice.get("finish_reason"))


def _holds_text(choice: Mapping[str, Any]) -> bool:
    return any(choice.get(name) for name in LOOSE_FIELDS)


def usage_after(chunk: Mapping[str, Any], before: Usage) -> Usage:
    """Return the usage after a chunk: values of a later report replace those of an earlier one unless missing."""
    choices = choices_of(chunk)
    if not (chunk.keys() & _COUNTING_FIELDS or (choices and isinstance(choices[0], dict) and "usage" in choices[0])):
        return before
    inner = (chunk.get(name) for name in ("x_groq", "message", "response"))
    places = [chunk, *(choice for choice in choices[:1] if isinstance(choice, dict)), *inner]
    return _merged([place.get("usage") for place in places if isinstance(place, dict)], chunk, before)


def _merged(reports: list[Any], chunk: Mapping[str, Any], before: Usage) -> Usage:
    input_tokens, output_tokens = before.input_tokens, before.output_tokens
    cached_tokens, reasoning_tokens = before.cached_tokens, before.reasoning_tokens
    cost_usd = before.cost_usd
    timings = chunk.get("timings")
    native = {"input_tokens": chunk.get("prompt_eval_count"), "output_tokens": chunk.get("eval_count")}
    if isinstance(timings, dict):
        native = {"input_tokens": timings.get("prompt_n"), "output_tokens": timings.get("predicted_n")}
    found = [usage for usage in reports if isinstance(usage, dict)]
    for usage in found or [native]:
        prompt, completion = (
            details if isinstance(details, dict) else {}
            for details in (
                usage.get("prompt_tokens_details") or usage.get("input_tokens_details"),
                usage.get("completion_tokens_details") or usage.get("output_tokens_details"),
            )
        )
        input_tokens = tokens(usage.get("prompt_tokens")) or tokens(usage.get("input_tokens")) or input_tokens
        output_tokens = tokens(usage.get("completion_tokens")) or tokens(usage.get("output_tokens")) or output_tokens
        cached_tokens = (
            tokens(prompt.get("cached_tokens"))
            or tokens(usage.get("cached_tokens"))
            or tokens(usage.get("prompt_cache_hit_tokens"))
            or cached_tokens
        )
        reasoning_tokens = (
            tokens(completion.get("reasoning_tokens")) or tokens(usage.get("reasoning_tokens")) or reasoning_tokens
        )
        reported_usd = _amount(usage.get("cost"))
        cost_usd = cost_usd if reported_usd is None else reported_usd
    return Usage(input_tokens, output_tokens, cached_tokens, reasoning_tokens, cost_usd)


def _amount(value: object) -> Decimal | None:
    """Return an amount of money; None for anything but a number that can be one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_COST_USD:
        return None
    return Decimal(repr(value))
