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

from exai.db.driver.pool import Database, Record
from exai.encryption.codec import Home, is_unreadable
from exai.models import ConversationId, Message, Owner, TurnId

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
        self._database, self._codec = database, database.codec

    async def similar(self, question: Question, *, least: float, age_s: float) -> list[SimilarAnswer]:
        """Return answers to the most similar questions, at least `least` and not older. Raises `DatabaseError`."""
        rows = await self._database.fetch(
            "similar_answers", question.owner, question.embedding, self._codec.blind(question.owner, question.rest),
            list(question.vector), least, age_s,
            MAX_COMPARED, MAX_FOUND,
        )  # fmt: skip
        found = (self._answer(question.owner, row) for row in rows)
        return [each for each in found if each is not None]

    def _answer(self, owner: Owner, row: Record) -> SimilarAnswer | None:
        """Return the answer in a row, None if it cannot be decrypted."""
        codec, at = self._codec, row["created_at"]
        messages = (
            Message(row["question_seq"], "user", row["question"], at, row["question_kind"]),
            Message(row["seq"], "assistant", row["content"], at, row["kind"], None, orjson.loads(row["metadata"])),
        )
        asked, answered = codec.opened(Home(owner, row["conversation_id"]), messages)
        if is_unreadable(asked) or is_unreadable(answered):
            return None
        facts = orjson.loads(row["turn_metadata"] or "{}")
        return SimilarAnswer(
            similarity=row["similarity"],
            question=asked.content,
            content=answered.content,
            metadata=answered.metadata,
            turn_metadata=codec.opened_document(owner, (row["turn_id"] or "",), facts),
            answered_at=at,
        )

    async def keep(self, question: Question, place: AnswerPlace, *, age_s: float) -> bool:
        """Store the place of an answer; return whether its conversation exists. Raises `DatabaseError`."""
        rows = await self._database.fetch(
            "keep_answer", question.owner, question.embedding, self._codec.blind(question.owner, question.rest),
            self._codec.blind(question.owner, question.digest), list(question.vector),
            place.conversation_id, place.question_seq, place.seq, MAX_OWNER_ROWS, age_s,
        )  # fmt: skip
        return bool(rows)

    async def prune(self, *, age_s: float) -> int:
        """Delete the rows of all owners that are older. Raises `DatabaseError`."""
        return int((await self._database.fetch("prune_answers", age_s))[0]["removed"])
