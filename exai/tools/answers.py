"""How tools take and state the use of the answer cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator

from exai.models import AnswerOrigin, CacheUse

FLAGS: Final = {"true": "use", "yes": "use", "on": "use", "1": "use", "false": "off", "no": "off", "0": "off"}
"""What a flag in place of a choice means."""


def _chosen(value: Any) -> Any:
    return FLAGS.get(str(value).strip().lower(), value)


CacheArgument = Annotated[CacheUse, BeforeValidator(_chosen)]
"""The argument `cache`; a flag is understood."""


@dataclass
class OriginOutput:
    """When which model gave an answer of the answer cache."""

    answered_at: str
    model: str

    @classmethod
    def of(cls, origin: AnswerOrigin | None) -> Self | None:
        """Make the output for an origin, None for an answer that was asked for now."""
        return None if origin is None else cls(origin.answered_at.isoformat(), origin.model)
