"""Map a failed reply to an error of EXAI by its status, error type and business code, never by its message text.

Invariant: the excerpt of a provider's message that is shown is short and contains neither keys nor parts of the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Any, Final, assert_never

from exai.errors import (
    ProviderAuthFailed,
    ProviderBroken,
    ProviderError,
    ProviderLimited,
    ProviderRefused,
    ProviderUnavailable,
    ProviderUnknownModel,
)
from exai.models import Prompt
from exai.providers.base import FailureKind, Family
from exai.providers.reply.reading import decode, tokens

MAX_EXCERPT_CHARS: Final = 200
MAX_RETRY_AFTER_S: Final = 86_400.0

_ECHO_CHARS: Final = 12
"""Length of the pieces of a provider's message that are searched for in the prompt."""
_ECHO_MIN_CHARS: Final = 3
_FLATTENED_CHARS: Final = 100_000

_TOKEN: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,200}")
_SECRETS: Final = re.compile(
    # Whole tokens only: "task-force" holds no key, and "bearer of bad news" no token.
    r"(?<![\w-])sk-[\w-]{4,}|(?<!\w)(?i:bearer)\s+(?=\S*[\d._~+/=])\S{6,}|(?<![\w-])eyJ[\w-]+\.[\w.-]+"
)
_NOT_TEXT: Final = re.compile(r"[\x00-\x08\x0e-\x1f\ufffd]|<(?:!doctype|html|body)\b", re.IGNORECASE)
_MAX_DEPTH: Final = 6
_WORDS: Final = (
    "message",
    "msg",
    "error",
    "errors",
    "detail",
    "details",
    "error_description",
    "description",
    "error_msg",
    "error_message",
    "errorMessage",
    "reason",
    "title",
    "text",
)
MAX_MESSAGE_CHARS: Final = 4_000
MAX_PARAMS: Final = 10
MIN_SECRET_CHARS: Final = 12
"""A shorter key is a placeholder such as "ollama", which stands in ordinary words."""
_TITLE: Final = re.compile(r"<title[^>]*>([^<]{1,300})", re.IGNORECASE)

_NO_SUCH_MODEL: Final = re.compile(
    r"\bmodels?\b.{0,120}(?:not\s+(?:be\s+)?(?:found|exist)|does\s*n[o'].?t\s+exist|no\s+longer\s+(?:available|served))"
    r"|(?:unknown|not\s+found\s+the|no\s+such|not\s+a\s+valid|nonexistent)\s+model\b|no\s+endpoints\s+found\s+for",
    re.IGNORECASE | re.DOTALL,
)
_MODEL_STATUSES: Final = frozenset({400, 404, 410, 422})
_MODEL_CHARS: Final = 500
"""Part of a message that is examined for the name of a model."""

_GENERIC: Final[Mapping[str, FailureKind]] = {
    "invalid_request_error": "refused",
    "model_not_found": "unknown_model",
    "context_length_exceeded": "refused",
    "content_filter": "refused",
    "authentication_error": "auth",
    "invalid_api_key": "auth",
    "permission_error": "auth",
    "insufficient_quota": "exhausted",
    "rate_limit_exceeded": "limited",
    "rate_limit_error": "limited",
    "server_error": "unavailable",
    "internal_server_error": "unavailable",
    "overloaded_error": "unavailable",
    "service_unavailable": "unavailable",
}
UNAUTHORIZED: Final = 401
_STATUSES: Final[Mapping[int, FailureKind]] = {
    401: "auth",
    402: "exhausted",
    403: "auth",
    408: "unavailable",
    425: "unavailable",
    429: "limited",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A provider's error reply. `kind` and `code` are the provider's names, empty if it sent none.

    `params` are the fields it blames, `limit_tokens` and `sent_tokens` numbers it gave of a prompt that is too long.
    """

    status: int | None
    kind: str = ""
    code: str = ""
    message: str = ""
    request_id: str | None = None
    retry_after_s: float | None = None
    params: tuple[str, ...] = ()
    limit_tokens: int | None = None
    sent_tokens: int | None = None


def read_failure(
    document: object, *, status: int | None, request_id: str | None = None, retry_after_s: float | None = None
) -> Failure:
    """Find type, code and message in a decoded error body of any of the known shapes."""
    if isinstance(document, list):
        # Gemini answers with a list of one.
        document = next((each for each in document if isinstance(each, Mapping)), None)
    outer: Mapping[str, Any] = document if isinstance(document, Mapping) else {}
    inner = outer.get("error") or outer.get("errors")
    if isinstance(inner, list):
        inner = next((each for each in inner if isinstance(each, Mapping)), None)
    error: Mapping[str, Any] = inner if isinstance(inner, Mapping) else outer
    return Failure(
        status=status,
        kind=_token(error.get("type")),
        code=_token(error.get("code")),
        message=_words(outer, 0)[:MAX_MESSAGE_CHARS],
        request_id=request_id or clean_request_id(outer.get("request_id")),
        retry_after_s=retry_after_s,
        params=tuple(dict.fromkeys(_params(outer, 0)))[:MAX_PARAMS],
        limit_tokens=tokens(error.get("n_ctx")) or None,
        sent_tokens=tokens(error.get("n_prompt_tokens")) or None,
    )


def _words(value: object, depth: int) -> str:
    """Return the human-readable message from any of the fields that servers use for it."""
    if isinstance(value, str):
        if value.startswith(("{", "[")) and depth < _MAX_DEPTH:
            try:
                return _words(decode(value), depth + 1) or value
            except ValueError:
                pass
        return value.strip()
    if depth >= _MAX_DEPTH:
        return ""
    if isinstance(value, list):
        said = (_words(each, depth + 1) for each in value[:MAX_PARAMS])
        return "; ".join(dict.fromkeys(filter(None, said)))
    if not isinstance(value, Mapping):
        return ""
    words = next(filter(None, (_words(value.get(name), depth + 1) for name in _WORDS)), "")
    metadata = value.get("metadata")
    raw = _words(metadata.get("raw"), depth + 1) if isinstance(metadata, Mapping) else ""
    words = ": ".join(filter(None, (words, raw)))
    place = value.get("loc")
    if words and isinstance(place, list) and place:
        words = f"{'.'.join(map(str, place))}: {words}"
    return words


def _params(value: object, depth: int) -> Iterator[str]:
    """Yield the names of parameters that a reply blames apart from its sentence."""
    if depth >= _MAX_DEPTH:
        return
    if isinstance(value, list):
        for each in value[:MAX_PARAMS]:
            yield from _params(each, depth + 1)
    elif isinstance(value, Mapping):
        for name in ("param", "parameter", "field", "path", "loc"):
            blamed = value.get(name)
            yield from (str(part) for part in (blamed if isinstance(blamed, list) else [blamed]) if part)
        for name in ("error", "errors", "detail", "details", "violations", "fieldViolations"):
            yield from _params(value.get(name), depth + 1)


def decode_body(body: bytes) -> tuple[object, str]:
    """Return the JSON value of a body, None if it is not JSON, and the text to show in that case."""
    text = body.decode("utf-8-sig", errors="replace").strip()
    try:
        return decode(text.removeprefix("data:")), ""
    except ValueError:
        pass
    title = _TITLE.search(text)
    if title:
        return None, f"an HTML page titled {' '.join(title[1].split())!r}"
    is_text = bool(text) and not _NOT_TEXT.search(text)
    return None, text[:MAX_MESSAGE_CHARS] if is_text else "not JSON"


def verdict_of(family: Family, failure: Failure) -> FailureKind | None:
    """Return the meaning of a failure, None if unknown. Codes precede types, types precede the status."""
    status = failure.status
    if (status is None or status < 400) and re.fullmatch("[45][0-9][0-9]", failure.code):
        # Proxies put the upstream's HTTP status into the body of a 200.
        status = int(failure.code)
    for name in (failure.code, failure.kind):
        verdict = family.verdicts.get(name) or _GENERIC.get(name)
        # Servers send a generic "invalid request" for wrong keys and rate limits too; then the status is more specific.
        is_generic = status == UNAUTHORIZED or (name not in family.verdicts and status in _STATUSES)
        if verdict is not None and not (verdict == "refused" and is_generic):
            return verdict
    if status is None or status < 400:
        return None
    if status in family.statuses:
        return family.statuses[status]
    return "unavailable" if status >= 500 else _STATUSES.get(status, "refused")


def _is_unknown_model(verdict: FailureKind | None, failure: Failure) -> bool:
    """Whether a refusal is for the model's name, which most servers state only in words."""
    if verdict != "refused" or failure.status not in _MODEL_STATUSES:
        return verdict == "unknown_model"
    return bool(_NO_SUCH_MODEL.search(failure.message[:_MODEL_CHARS]))


def error_of(family: Family, failure: Failure, excerpt: str) -> ProviderError:
    """The error to raise for `failure`; `excerpt` is what may be shown of the provider's words."""
    verdict = verdict_of(family, failure)
    if _is_unknown_model(verdict, failure):
        verdict = "unknown_model"
    said = f": {excerpt}" if excerpt else ""
    names = [f"HTTP {failure.status}"] if failure.status is not None else []
    names += [name for name in (failure.kind, failure.code) if name]
    facts = f" ({', '.join(names)})" if names else ""
    status, request_id = failure.status, failure.request_id
    match verdict:
        case None:
            problem = f"answered with something that is not an answer{facts}{said}"
            return ProviderBroken(
                family.name, problem, "Check the provider's base URL", status=status, request_id=request_id
            )
        case "refused":
            problem = f"refused the request{facts}{said}"
            return ProviderRefused(
                family.name, problem, "Change the request or choose another model", status=status, request_id=request_id
            )
        case "unknown_model":
            problem = f"does not serve this model{facts}{said}"
            return ProviderUnknownModel(
                family.name, problem, "Choose another model", status=status, request_id=request_id
            )
        case "auth":
            problem = f"did not accept the key or the account{facts}{said}"
            return ProviderAuthFailed(
                family.name, problem, f"Check {family.key_setting}", status=status, request_id=request_id
            )
        case "limited" | "exhausted" | "overloaded":
            return _limited(family, failure, facts + said, verdict)
        case "unavailable":
            problem = f"is not able to answer now{facts}{said}"
            return ProviderUnavailable(
                family.name,
                problem,
                "Try again shortly, or use a model of another provider",
                status=status,
                request_id=request_id,
            )
        case _:
            assert_never(verdict)


def _limited(family: Family, failure: Failure, facts: str, verdict: FailureKind) -> ProviderLimited:
    wait_s = failure.retry_after_s
    if verdict == "exhausted":
        problem, cure = "has no quota or balance left", "Top the account up, or use a model of another provider"
    else:
        problem = "is overloaded" if verdict == "overloaded" else "asks for fewer requests"
        cure = "Try again shortly" if wait_s is None else f"Try again in {wait_s:.0f} s"
    return ProviderLimited(
        family.name,
        problem + facts,
        cure,
        status=failure.status,
        request_id=failure.request_id,
        retry_after_s=wait_s,
        exhausted=verdict == "exhausted",
        overloaded=verdict == "overloaded",
    )


def safe_excerpt(message: str, prompts: Sequence[Prompt], key: str) -> str:
    """A short, single-line piece of a provider's message; empty when it repeats any part of the prompt."""
    text = " ".join(message.split())
    if len(key) >= MIN_SECRET_CHARS:
        text = re.sub(rf"(?<![\w-]){re.escape(key)}(?![\w-])", "***", text)
    text = _SECRETS.sub("***", text)[:MAX_EXCERPT_CHARS].strip()
    text = "".join(char for char in text if char.isprintable())
    return "" if _repeats(text, prompts) else text


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or an HTTP date; None when it holds neither."""
    if value is None:
        return None
    try:
        wait_s = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        if moment.tzinfo is None:
            return None
        wait_s = (moment - now).total_seconds()
    return min(max(wait_s, 0.0), MAX_RETRY_AFTER_S) if isfinite(wait_s) else None


def clean_request_id(value: object) -> str | None:
    """Return a provider's request id in a form that is safe in error messages, None for an invalid value."""
    return value if isinstance(value, str) and _REQUEST_ID.fullmatch(value) else None


def _token(value: object) -> str:
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return text if _TOKEN.fullmatch(text) else ""


def _repeats(text: str, prompts: Sequence[Prompt]) -> bool:
    """Whether the text holds a whole short message, or a piece of twice the length looked for of any message."""
    pieces = [text[at : at + _ECHO_CHARS] for at in range(0, len(text) - _ECHO_CHARS + 1, _ECHO_CHARS)]
    for prompt in prompts:
        content = prompt.content.strip()
        flat = " ".join(content[:_FLATTENED_CHARS].split())
        if len(flat) > _ECHO_MIN_CHARS and flat[:MAX_EXCERPT_CHARS] in text:
            return True
        if any(piece in flat or piece in content for piece in pieces):
            return True
    return False
