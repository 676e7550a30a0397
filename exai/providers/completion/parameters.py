"""Remember the parameters that an endpoint refuses, and their replacements; no I/O.

A refused optional parameter is omitted or sent under its other name; a refused system message is merged into the user's
message. The knowledge is kept for the life of the process, so only the first request to an endpoint is repeated.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from exai.providers.base import LimitField, Model
from exai.providers.completion.shaping import alternates

MAX_MODELS: Final = 500
MAX_LESSONS: Final = 5
"""Maximum number of changes to one request for its endpoint."""

STREAM_OPTIONS: Final = "stream_options"
_REQUIRED: Final = frozenset({"model", "messages", "stream", "provider"})
_LIMIT_FIELDS: Final[Mapping[str, LimitField]] = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
}
_INNER: Final[Mapping[str, str]] = {STREAM_OPTIONS: "include_usage"}
_STATUSES: Final = frozenset({400, 404, 415, 422, 500, 501})
_UNKNOWN: Final = re.compile(
    r"unsupported|not\s+(?:be\s+)?(?:supported|allowed|permitted|recogni[sz]ed|valid|known|implemented|available)|unknown"
    r"|unrecogni[sz]ed|unexpected|extra|forbidden|invalid\s+(?:argument|parameter|field|key|propert|input)|additional"
    r"|no\s+such|deprecated|does\s*n.t\s+(?:support|accept)|cannot\s+be\s+used|不支持|未知|非法",
    re.IGNORECASE,
)
_VALUE: Final = re.compile(
    r"too\s+(?:large|high|big|long)|exceed|at\s+most|less\s+than|greater|maximum\s+\w+\s+is|range", re.IGNORECASE
)
_SYSTEM_ROLE: Final = re.compile(
    r"system\s+(?:role|message|prompt|instruction)s?.{0,60}(?:not|n.t|un)\s*-?(?:be\s+)?(?:supported|allowed|permitted|enabled)"
    r"|(?:unsupported|unknown|invalid|unexpected)\s+(?:message\s+)?role\W{0,4}system"
    r"|role\W{0,4}system\W{0,4}.{0,30}(?:not|n.t|un)\s*-?(?:supported|allowed|valid|permitted)"
    r"|only\s+.{0,10}user.{0,20}(?:assistant|model).{0,20}roles?|roles?\s+must\s+alternate"
    r"|developer\s+instruction\s+is\s+not\s+enabled",
    re.IGNORECASE | re.DOTALL,
)
_NO_STREAM: Final = re.compile(
    r"stream(?:ing|ed)?\b.{0,40}(?:\bnot|n.t|\bun)\s*-?(?:be\s+|yet\s+)?(?:support|allow|enabl|avail|implement)"
    r"|unsupported.{0,20}\bstream",
    re.IGNORECASE | re.DOTALL,
)
_RETURNED: Final = re.compile(
    r"reasoning(?:_content|_details)?\b.{0,80}(?:must\s+be|missing|required|pass(?:ed)?\s+back)",
    re.IGNORECASE | re.DOTALL,
)
_ORDER: Final = re.compile(
    r"role|alternat|template|jinja|consecutive|sequence|order|messages?\b|assistant|\buser\b|conversation|empty",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Accepted:
    """Changes to the requests for one model: omitted and replaced fields."""

    dropped: frozenset[str] = frozenset()
    limit_field: LimitField | None = None
    system_role: bool = True
    strictly: bool = False
    returns_reasoning: bool = False


AS_IT_IS: Final = Accepted()


class Lessons:
    """Adaptations to one endpoint, by model; those that concern no particular model apply to all.

    An endpoint that `is_known`, or has answered, takes `stream_options`; of any other a refusal without a reason is
    taken for one of them, until the request without them is refused as well.
    """

    def __init__(self, *, is_known: bool) -> None:
        self._is_known, self._is_guess = is_known, False
        self._dropped: frozenset[str] = frozenset()
        self._models: OrderedDict[str, Accepted] = OrderedDict()

    def of(self, model: Model) -> Accepted:
        """Return the adaptations for a model."""
        own = self._models.get(model.wire_name, AS_IT_IS)
        return replace(own, dropped=own.dropped | self._dropped) if self._dropped else own

    def learn(self, model: Model, body: Mapping[str, Any], status: int | None, said: str, named: Iterable[str]) -> bool:
        """Adapt to a refusal of `body`; return whether a changed request may be accepted.

        `said` is the server's whole sentence, `named` are the fields that its reply names apart from it.
        """
        if status is not None and status not in _STATUSES:
            return False
        own = self._models.get(model.wire_name, AS_IT_IS)
        has_answer = any(message["role"] == "assistant" for message in body["messages"])
        if has_answer and not own.returns_reasoning and _RETURNED.search(said):
            self._keep(model, replace(own, returns_reasoning=True))
            return True
        fields = set(_mentioned(body, f"{said} {' '.join(named)}"))
        learned = own
        for field in fields:
            learned = self._without(learned, field, said)
        if "stream" in body and not fields and _NO_STREAM.search(said):
            # The answer then comes as one JSON document.
            learned = replace(learned, dropped=learned.dropped | {"stream", STREAM_OPTIONS})
        has_system = any(message["role"] == "system" for message in body["messages"])
        if learned == own and has_system and own.system_role and _SYSTEM_ROLE.search(said):
            learned = replace(own, system_role=False)
        may_be_order = _ORDER.search(said) and not own.strictly and not alternates(body["messages"])
        if learned == own and may_be_order:
            # Chat templates report this in wording of their own, or in the terms of the template language.
            learned = replace(own, strictly=True)
        is_guess = learned == own and STREAM_OPTIONS not in fields and self._may_be_options(status, said)
        if STREAM_OPTIONS in body and (STREAM_OPTIONS in fields or is_guess):
            self._dropped |= {STREAM_OPTIONS}
            self._is_guess = is_guess
        elif learned == own:
            return False
        self._keep(model, learned)
        return True

    def _keep(self, model: Model, learned: Accepted) -> None:
        self._models[model.wire_name] = learned
        while len(self._models) > MAX_MODELS:
            self._models.popitem(last=False)

    def answered(self) -> None:
        """Record that a request was accepted in its current form."""
        self._is_known, self._is_guess = True, False

    def refused(self) -> None:
        """Record that a request was finally refused; unconfirmed adaptations are removed."""
        if self._is_guess:
            self._dropped -= {STREAM_OPTIONS}
            self._is_guess = False

    def _may_be_options(self, status: int | None, said: str) -> bool:
        return _is_vague(status, said) or (not self._is_known and status == 400)

    def _without(self, known: Accepted, field: str, said: str) -> Accepted:
        if field == STREAM_OPTIONS:
            return known
        other = _LIMIT_FIELDS.get(field)
        if other is None:
            return replace(known, dropped=known.dropped | {field})
        if _VALUE.search(said) and not _UNKNOWN.search(said):
            # The name is accepted and the number is not.
            return known
        if known.limit_field is None:
            return replace(known, limit_field=other)
        return replace(known, dropped=known.dropped | set(_LIMIT_FIELDS))


def _mentioned(body: Mapping[str, Any], text: str) -> Iterator[str]:
    """Yield the optional fields of the body that a text names."""
    for field in body.keys() - _REQUIRED:
        names = "|".join(re.escape(name) for name in (field, _INNER.get(field, field)))
        if re.search(rf"(?<![A-Za-z0-9_])(?:{names})(?![A-Za-z0-9_])", text):
            yield field


def _is_vague(status: int | None, said: str) -> bool:
    """Whether a refusal may be for a field that it does not name."""
    return status == 422 or bool(
        _UNKNOWN.search(said) and re.search(r"param|field|argument|propert|input|option", said, re.IGNORECASE)
    )
