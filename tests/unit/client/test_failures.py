"""The errors of a daemon are raised by its client as those of a store in the process."""

from __future__ import annotations

import orjson
import pytest

from exai import errors
from exai.client.failures import failure_of
from exai.errors import (
    AnswerNotStored,
    BudgetExceeded,
    Conflict,
    DatabaseBusy,
    DeadlineExceeded,
    DependencyError,
    ExaiError,
    InvalidArgument,
    NotConfigured,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    ProviderLimited,
    ProviderTooLong,
    RequestError,
    ShuttingDown,
)
from exai.mcp.core.errors import ReplyTooLarge, rpc_error
from exai.tools.store import failed_call

RAISED: list[ExaiError] = [
    InvalidArgument("messages[3].content", "is empty", "Give a text"),
    NotFound("conversation", "a/b", "List them"),
    Conflict("revision", "moved on", "Read it again", revision=7),
    NotConfigured("a model", "Set a key"),
    BudgetExceeded("day", 1.0, 0.5, reserved_usd=0.1, needed_usd=0.6, resets_at="2026-12-02T00:00Z"),
    DatabaseBusy("database", "locked", "Try again", waited_s=1.5),
    OutcomeUnknown("database", "connection lost"),
    AnswerNotStored("disk full", "the answer", "c"),
    ProviderLimited("kimi", "too many", retry_after_s=2.0, status=429),
    ProviderTooLong("glm", "too long", limit_tokens=10, sent_tokens=12),
    DeadlineExceeded("the database", 3.0),
    Overloaded("requests", 5, retry_after_s=1.5),
    ShuttingDown(),
]


@pytest.mark.parametrize("raised", RAISED, ids=lambda error: type(error).__name__)
def test_an_error_keeps_class_sentence_and_facts(raised: ExaiError) -> None:
    raised.continuation_id, raised.notes = "c", ("first", "second")
    found = failure_of(orjson.loads(orjson.dumps(failed_call(raised)))["error"])
    assert type(found) is type(raised)
    assert (str(found), found.report(), vars(found)) == (str(raised), raised.report(), vars(raised))


def test_an_unknown_class_becomes_its_nearest_known_one() -> None:
    found = failure_of(orjson.loads(orjson.dumps(failed_call(ReplyTooLarge(5, 4))))["error"])
    assert type(found) is RequestError
    assert "a reply may have 4" in str(found)


def test_a_class_with_other_attributes_keeps_its_sentence() -> None:
    found = failure_of({"codes": ["not_found"], "message": "gone", "attributes": {"colour": "red"}})
    assert type(found) is DependencyError
    assert str(found) == "daemon: gone"


@pytest.mark.parametrize("raised", [Overloaded("requests", 5, retry_after_s=0.5), ShuttingDown()])
def test_errors_of_the_protocol_are_known(raised: ExaiError) -> None:
    found = failure_of(rpc_error(raised).data or {})
    assert (type(found), str(found)) == (type(raised), str(raised))


def test_every_code_names_one_class() -> None:
    """The client finds a class by its code."""
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, ExaiError)]
    shared = {each.code for each in classes if sum(other.code == each.code for other in classes) > 1}
    assert shared <= {"provider_unavailable"}, "ProviderUnreachable is ProviderUnavailable to callers"
