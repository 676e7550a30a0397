"""Answers to similar questions, where an embedding model is configured.

A question is compared with earlier ones of the same owner whose prompts were otherwise equal: in the model, the
parameters, the system prompt and the whole history. Only short questions without files and without the instructions of
a tool are compared, because the vector of a long text hardly reflects small differences.

Invariant: a question that differs in a number, a comparison, a name of code, or a negation of a common language has no
similar answer, at any similarity of the vectors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from exai.conversations.requests import ChatRequest
from exai.conversations.turns.prompt import reasoning_of
from exai.db.answers import AnswerPlace, AnswerRepository, Question, SimilarAnswer
from exai.errors import DatabaseError, ExaiError
from exai.files.pieces import TAKEN_OUT
from exai.models import AnswerOrigin, Completion, CompletionRequest, Message, Usage, WebSource
from exai.providers.completion.identity import digest_of
from exai.providers.embeddings import Embedder, EmbeddingCost, EmbeddingFailed
from exai.settings.load import AnswerSettings

MAX_QUESTION_CHARS: Final = 2_000
"""Length up to which a question is compared."""

NUMBERS: Final = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundred|thousand"
    "|million|billion|half|twice|once|first|second|third|last"
)
NEGATIONS: Final = (
    "no|not|never|none|nobody|nothing|nowhere|neither|nor|without|cannot|except|unless|dont|doesnt|isnt|wont|cant"
    "|nicht|nichts|nie|kein|keine|keinen|ohne|ne|pas|jamais|sans|sin|nunca|nada|não|nunca|sem|non|senza|не|нет|без|ни"
)
EXACT: Final = re.compile(
    rf"[-+]?\d+|\b(?:{NUMBERS}|{NEGATIONS})\b|n['\u2019]t\b|[零〇一二两三四五六七八九十百千万亿不没無无非未别勿]"
    r"|`[^`\n]+`|(?<!\w)[^\W_]*(?:_|\.|::|/)\w[\w.:/]*|[<>=!≠≤≥]+|%"
)
"""Parts of a question whose small differences change its meaning: numbers, negations, comparisons, and names of code
and files."""

PLACEHOLDER: Final = "\0question"
"""Text in place of the question, which no message can contain."""


@dataclass(frozen=True, slots=True)
class Compared:
    """The result of a comparison: the answer to a similar question, the question to keep an answer for, a note,
    and what its vector cost.
    """

    completion: Completion | None = None
    question: Question | None = None
    note: str | None = None
    embedding: EmbeddingCost | None = None


class SimilarAnswers:
    """Finds answers to similar questions. A fault of the embedding model or of the database is a note."""

    def __init__(self, repository: AnswerRepository, embedder: Embedder, settings: AnswerSettings) -> None:
        self._repository, self._embedder = repository, embedder
        self._least, self._age_s = settings.similarity, settings.ttl_hours * 3_600

    async def find(self, request: ChatRequest, rest: str, model: str) -> Compared:
        """Return an answer of `model` to a similar question: 1 request for the vector and 1 database round trip.

        `rest` is the digest of the prompt without the question. A request for a new answer needs only the vector.
        """
        prompt = request.prompt
        try:
            vector, cost = await self._embedder.embed(prompt)
        except EmbeddingFailed as error:
            return Compared(note=f"no similar question was looked for, because {self._embedder.name} failed: {error}")
        digest = digest_of((prompt.encode(errors="surrogatepass"),))
        question = Question(request.owner, self._embedder.space, rest, digest, vector)
        if request.cache != "use":
            return Compared(question=question, embedding=cost)
        try:
            found = await self._repository.similar(question, least=self._least, age_s=self._age_s)
        except DatabaseError as error:
            return Compared(note=f"no similar question was looked for: {error}", embedding=cost)
        parts = exact_parts(prompt)
        # The files of an answer without its large content are not linked to this conversation.
        whole = (each for each in found if TAKEN_OUT not in each.metadata)
        same = (each for each in whole if exact_parts(each.question) == parts)
        best = next(same, None)
        return Compared(None if best is None else completion_of(best, model), question, embedding=cost)

    async def keep(self, question: Question, place: AnswerPlace) -> bool:
        """Keep the place of an answer for similar questions: 1 database round trip. Return whether it is kept."""
        try:
            return await self._repository.keep(question, place, age_s=self._age_s)
        except ExaiError:
            return False


def exact_parts(question: str) -> list[str]:
    """Return the parts that two similar questions must have in common, in their order."""
    return EXACT.findall(question.casefold())


def similar_answers(
    repository: AnswerRepository, embedder: Embedder | None, settings: AnswerSettings
) -> SimilarAnswers | None:
    """Return the search for similar questions, None without an embedding model."""
    return None if embedder is None else SimilarAnswers(repository, embedder, settings)


def is_comparable(request: ChatRequest, asked: CompletionRequest) -> bool:
    """Return whether the newest message of a prompt is a short question in words and nothing else."""
    if request.guidance is not None or request.linked_files or not 0 < len(request.prompt) <= MAX_QUESTION_CHARS:
        return False
    newest = asked.messages[-1] if asked.messages else None
    return newest is not None and newest.role == "user" and newest.content == request.prompt and not newest.images


def without_question(asked: CompletionRequest) -> CompletionRequest:
    """Return a prompt with a placeholder in place of its question."""
    *earlier, newest = asked.messages
    return replace(asked, messages=[*earlier, replace(newest, content=PLACEHOLDER)])


def completion_of(found: SimilarAnswer, model: str) -> Completion:
    """Return a stored answer of `model` as one that has cost nothing."""
    message = Message(0, "assistant", found.content, found.answered_at, metadata=found.metadata)
    sources = found.turn_metadata.get("sources", ())
    return Completion(
        content=found.content,
        reasoning="",
        finish_reason="stop",
        usage=Usage(),
        provider=str(found.metadata.get("provider", "")),
        model=str(found.metadata.get("model", "")),
        request_id=None,
        duration_ms=0.0,
        attempts=0,
        sources=tuple(WebSource(*each) for each in sources),
        origin=AnswerOrigin(found.answered_at, model, round(min(found.similarity, 1.0), 4), found.question),
        returned_reasoning=reasoning_of(message),
    )
