"""Find answers to similar questions, and store where an answer is; each method is one statement and one round trip.

Invariant: a method with an owner accesses only that owner's rows. A row names an answer in its conversation and never
copies it, so that a deleted conversation has no answer left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson

from exai.db.driver.pool import Database
from exai.models import ConversationId, Owner, TurnId

MAX_OWNER_ROWS: Final = 1_000
"""Maximum number of rows of one owner; a further one removes the oldest."""

MAX_COMPARED: Final = 500
"""Maximum number of vectors that one search compares. With 1,024 numbers each they take the server 34 ms as arrays, and
2 ms with pgvector, measured."""

MAX_FOUND: Final = 5


@dataclass(frozen=True, slots=True)
class Question:
    """A question as it is found again: the digest of the prompt without it, its own digest, and its vector.

    `embedding` names the model that made the vector, which has the length 1.
    """

    owner: Owner
    embedding: str
    rest: str
    digest: str
    vector: Sequence[float]


@dataclass(frozen=True, slots=True)
class AnswerPlace:
    """Where a question and its answer are stored."""

    conversation_id: ConversationId
    question_seq: int
    seq: int
    turn_id: TurnId


@dataclass(frozen=True, slots=True)
class SimilarAnswer:
    """An answer to a similar question, with the metadata of its message and of its turn."""

    similarity: float
    question: str
    content: str
    metadata: Mapping[str, Any]
    turn_metadata: Mapping[str, Any]
    answered_at: datetime


class AnswerRepository:
    """Answers by their questions' vectors, in Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def similar(self, question: Question, *, least: float, age_s: float) -> list[SimilarAnswer]:
        """Return answers to the most similar questions, at least `least` and not older. Raises `DatabaseError`."""
        rows = await self._database.fetch(
            "similar_answers", question.owner, question.embedding, question.rest, list(question.vector), least, age_s,
            MAX_COMPARED, MAX_FOUND,
        )  # fmt: skip
        return [
            SimilarAnswer(
                similarity=row["similarity"],
                question=row["question"],
                content=row["content"],
                metadata=orjson.loads(row["metadata"]),
                turn_metadata=orjson.loads(row["turn_metadata"] or "{}"),
                answered_at=row["created_at"],
            )
            for row in rows
        ]

    async def keep(self, question: Question, place: AnswerPlace, *, age_s: float) -> bool:
        """Store the place of an answer; return whether its conversation exists. Raises `DatabaseError`."""
        rows = await self._database.fetch(
            "keep_answer", question.owner, question.embedding, question.rest, question.digest, list(question.vector),
            place.conversation_id, place.question_seq, place.seq, MAX_OWNER_ROWS, age_s,
        )  # fmt: skip
        return bool(rows)

    async def prune(self, *, age_s: float) -> int:
        """Delete the rows of all owners that are older. Raises `DatabaseError`."""
        return int((await self._database.fetch("prune_answers", age_s))[0]["removed"])
