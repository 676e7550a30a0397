"""Classification of failed replies, and the parts of them that may be shown."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from exai.errors import ProviderError, ProviderLimited
from exai.models import Prompt
from exai.providers.base import Family
from exai.providers.completion.failures import (
    Failure,
    clean_request_id,
    decode_body,
    error_of,
    parse_retry_after,
    read_failure,
    safe_excerpt,
    verdict_of,
)
from exai.providers.families.glm import GLM
from exai.providers.families.kimi import KIMI

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
PLAIN = Family("local", "http://x", "KEY", limit_field="max_tokens", stream_usage=True)


@pytest.mark.parametrize(
    ("family", "failure", "expected"),
    [
        (KIMI, Failure(401, "invalid_authentication_error"), "auth"),
        (KIMI, Failure(401, "invalid_request_error"), "auth"),
        (KIMI, Failure(400, "invalid_request_error"), "refused"),
        (KIMI, Failure(400, "content_filter"), "refused"),
        (KIMI, Failure(429, "exceeded_current_quota_error"), "exhausted"),
        (KIMI, Failure(429, "rate_limit_reached_error"), "limited"),
        (KIMI, Failure(429, "engine_overloaded_error"), "overloaded"),
        (KIMI, Failure(403), "exhausted"),
        (KIMI, Failure(403, "permission_denied_error"), "auth"),
        (KIMI, Failure(500, "server_error"), "unavailable"),
        (GLM, Failure(429, code="1302"), "limited"),
        (GLM, Failure(429, code="1305"), "overloaded"),
        (GLM, Failure(429, code="1113"), "exhausted"),
        (GLM, Failure(429, code="1310"), "exhausted"),
        (GLM, Failure(429, code="1112"), "auth"),
        (GLM, Failure(429, code="1121"), "auth"),
        (GLM, Failure(401, code="1000"), "auth"),
        (GLM, Failure(400, code="1211"), "unknown_model"),
        (GLM, Failure(400, code="1301"), "refused"),
        (GLM, Failure(500, code="1234"), "unavailable"),
        (GLM, Failure(200, code="500"), "unavailable"),
        (GLM, Failure(429), "limited"),
        (PLAIN, Failure(400), "refused"),
        (PLAIN, Failure(401), "auth"),
        (PLAIN, Failure(401, "invalid_request_error"), "auth"),
        (PLAIN, Failure(401, "invalid_request_error", "invalid_api_key"), "auth"),
        (PLAIN, Failure(402), "exhausted"),
        (PLAIN, Failure(404), "refused"),
        (PLAIN, Failure(408), "unavailable"),
        (PLAIN, Failure(429), "limited"),
        (PLAIN, Failure(429, "insufficient_quota"), "exhausted"),
        (PLAIN, Failure(500), "unavailable"),
        (PLAIN, Failure(529), "unavailable"),
        (PLAIN, Failure(200, code="429"), "limited"),
        (PLAIN, Failure(200, code="503"), "unavailable"),
        (PLAIN, Failure(200), None),
        (PLAIN, Failure(None, "something_new"), None),
    ],
)
def test_code_then_type_then_status_decide_what_a_failure_means(
    family: Family, failure: Failure, expected: str | None
) -> None:
    """From the providers' error tables; GLM's 429 covers concurrency, balance and locked accounts."""
    assert verdict_of(family, failure) == expected


@pytest.mark.parametrize(
    ("failure", "code", "retryable"),
    [
        (Failure(400, code="1210"), "provider_refused", False),
        (Failure(401, code="1000"), "provider_auth_failed", False),
        (Failure(429, code="1302"), "provider_limited", True),
        (Failure(503), "provider_unavailable", True),
        (Failure(200), "provider_broken", True),
    ],
)
def test_each_meaning_has_its_error_with_the_facts(failure: Failure, code: str, retryable: bool) -> None:
    """One error tree; status, code and request id are in it."""
    failure = Failure(failure.status, failure.kind, failure.code, request_id="r-1")
    error = error_of(GLM, failure, "said so")
    assert (error.code, error.retryable, error.status, error.request_id) == (code, retryable, failure.status, "r-1")
    assert str(failure.status) in str(error)
    assert failure.code in str(error)
    assert "said so" in str(error)


def test_wrong_key_names_the_variables_to_check() -> None:
    """An error has a cure."""
    assert "EXAI_PROVIDERS__KIMI__API_KEY or KIMI_API_KEY" in str(error_of(KIMI, Failure(401), ""))


def test_empty_balance_is_distinguished_from_too_many_requests() -> None:
    """Waiting cures one and not the other."""
    poor, fast = error_of(GLM, Failure(429, code="1113"), ""), error_of(GLM, Failure(429, code="1302"), "")
    assert isinstance(poor, ProviderLimited)
    assert isinstance(fast, ProviderLimited)
    assert (poor.exhausted, fast.exhausted) == (True, False)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"error": {"type": "t", "code": "c", "message": "m"}}, ("t", "c", "m")),
        ({"error": {"code": 1302, "message": "m"}}, ("", "1302", "m")),
        ({"error": "m"}, ("", "", "m")),
        ({"code": 500, "msg": "m", "success": False}, ("", "500", "m")),
        ({"object": "error", "type": "t", "message": "m", "code": 400}, ("t", "400", "m")),
        ({"detail": "m"}, ("", "", "m")),
        ({"error": {"type": "a type with spaces", "code": ["x"], "message": {"x": 1}}}, ("", "", "")),
        ([1], ("", "", "")),
        (None, ("", "", "")),
    ],
)
def test_every_known_shape_of_error_body_is_read(document: Any, expected: tuple[str, str, str]) -> None:
    """OpenAI's, GLM's, vLLM's and FastAPI's; invalid codes are left out."""
    failure = read_failure(document, status=400)
    assert (failure.kind, failure.code, failure.message) == expected


def test_request_id_comes_from_the_body_when_no_header_has_it() -> None:
    """GLM puts it into the body."""
    assert read_failure({"request_id": "r-1"}, status=400).request_id == "r-1"
    assert read_failure({"request_id": "r-1"}, status=400, request_id="h-1").request_id == "h-1"


@pytest.mark.parametrize("value", ["", "a b", "a\nb", "x" * 201, 7, None])
def test_request_id_that_could_forge_a_log_line_is_dropped(value: object) -> None:
    """The id is a part of errors and log lines."""
    assert clean_request_id(value) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("7", 7.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("1e12", 86_400.0),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("Sat, 21 Nov 2026 12:00:30 GMT", 30.0),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0.0),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, expected: float | None) -> None:
    """HTTP allows both; nonsense is as if it were absent."""
    assert parse_retry_after(value, NOW) == expected


PROMPT = [Prompt("user", "My password is swordfish and I live in\nSecret Street 12")]


@pytest.mark.parametrize(
    "message",
    [
        "Invalid content: My password is swordfish and I live in Secret Street 12",
        "bad value 'word is swordfish and I live'",
        "unexpected: is swordfish and I live in Secret Str",
    ],
)
def test_message_that_repeats_the_prompt_is_not_shown(message: str) -> None:
    """Errors go to logs and metrics, which hold no content."""
    assert safe_excerpt(message, PROMPT, "") == ""


def test_short_prompt_is_recognised_too() -> None:
    """A whole message of a few characters."""
    assert safe_excerpt("cannot parse 'hunter2'", [Prompt("user", "hunter2")], "") == ""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Key secret-key-1 is wrong", "Key *** is wrong"),
        ("Incorrect API key provided: sk-abc123", "Incorrect API key provided: ***"),
        ("got Bearer abc.def", "got ***"),
        ("token eyJhbGciOi.eyJzdWIi.sig", "token ***"),
    ],
)
def test_keys_are_masked(message: str, expected: str) -> None:
    """Providers repeat the key they refuse."""
    assert safe_excerpt(message, PROMPT, "secret-key-1") == expected


def test_excerpt_is_one_short_line() -> None:
    """No control characters, no page of text."""
    excerpt = safe_excerpt("too\n many\t\x1b[31m tokens " + "z" * 1_000, PROMPT, "")
    assert excerpt.startswith("too many [31m tokens zzz")
    assert len(excerpt) <= 200


def test_html_page_is_shown_by_its_title_only() -> None:
    """A proxy answers with one in place of the provider."""
    assert decode_body(b"<html><head><title>502\n Bad Gateway</title></head>") == (
        None,
        "an HTML page titled '502 Bad Gateway'",
    )
    assert decode_body(b"\xff\x00") == (None, "not JSON")


def test_every_error_is_a_provider_error() -> None:
    """Callers catch one class."""
    assert all(isinstance(error_of(GLM, Failure(status), ""), ProviderError) for status in range(200, 600))
