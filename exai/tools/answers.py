"""How tools take and state the use of the answer cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator

from exai.conversations.turns.answers import SHOWN_CHARS
from exai.models import AnswerOrigin, CacheUse

FLAGS: Final = {"true": "use", "yes": "use", "on": "use", "1": "use", "false": "off", "no": "off", "0": "off"}
"""The choices that the values of a flag stand for."""


def _chosen(value: Any) -> Any:
    return FLAGS.get(str(value).strip().lower(), value)


CacheArgument = Annotated[CacheUse, BeforeValidator(_chosen)]
"""The argument `cache`; a flag is understood."""


@dataclass
class OriginOutput:
    """When which model gave an answer of the answer cache; to which question, if that was a similar one."""

    answered_at: str
    model: str
    similarity: float | None
    question: str | None

    @classmethod
    def of(cls, origin: AnswerOrigin | None) -> Self | None:
        """Make the output for an origin, None for a new answer."""
        if origin is None:
            return None
        question = None if origin.question is None else origin.question[:SHOWN_CHARS]
        return cls(origin.answered_at.isoformat(), origin.model, origin.similarity, question)
