"""The answer cache: returns an earlier answer to the same prompt, for calls that request it.

An answer is kept in Redis under a digest of everything on which it depends: the address and the model, every parameter,
and every message of the prompt. Where an embedding model is configured, an answer to a similar question is found, too
(`exai.conversations.turns.similar`), and marked as such.

Invariant: a cached answer was complete, came from the model of the call, and belongs to the same owner, in a
conversation that is not deleted. A fault of the cache never fails a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from exai.cache.answers import AnswerEntries, AnswerLimits
from exai.conversations.requests import ChatRequest
from exai.conversations.turns.similar import SimilarAnswers, is_comparable, without_question
from exai.db.answers import AnswerPlace, Question
from exai.errors import CacheError
from exai.models import AnswerOrigin, Completion, CompletionRequest, Reasoning, Recorder, Usage, WebSource
from exai.providers.base import Model
from exai.providers.completion.identity import digest_of
from exai.providers.embeddings import EmbeddingCost
from exai.providers.registry import Providers
from exai.settings.load import AnswerSettings

NOT_ON: Final = "the answer cache was not asked, because there is no Redis (EXAI_CACHE__URL)"
NOT_ASKED: Final = "the answer cache was not asked, because Redis cannot be reached"
NOT_KEPT: Final = "the answer was not kept in the answer cache, because Redis did not store it"
TOO_LARGE: Final = (
    "the answer was not kept in the answer cache, because it is larger than EXAI_ANSWERS__ENTRY_MAX_BYTES"
)

SHOWN_CHARS: Final = 500
"""Length up to which a similar question is repeated to the caller."""

LONG_PROMPT_CHARS: Final = 500_000
"""Length from which the digest of a prompt is computed in a thread, as for any prompt with images."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """The result of a lookup in the answer cache: an answer, or the name under which one can be kept, and notes.

    `name` is the key of the same prompt, `question` that of similar ones. Without either no answer is kept, such as
    that to a shorter prompt. `embedding` is the cost of the question's vector, and
    `place` the message that holds an answer to the same prompt.
    """

    completion: Completion | None = None
    name: str | None = None
    question: Question | None = None
    notes: tuple[str, ...] = ()
    embedding: EmbeddingCost | None = None
    place: AnswerPlace | None = None


class AnswerCache:
    """Finds and keeps answers; without `similar` only those to the same prompt. Raises only for a spent deadline."""

    def __init__(
        self,
        entries: AnswerEntries,
        providers: Providers,
        settings: AnswerSettings,
        recorder: Recorder,
        *,
        similar: SimilarAnswers | None = None,
    ) -> None:
        self._entries, self._providers, self._recorder = entries, providers, recorder
        self._similar, self._entry_max_bytes = similar, settings.entry_max_bytes
        self._limits = AnswerLimits(settings.ttl_hours * 3_600, settings.owner_max_bytes)

    def may_find(self, request: ChatRequest) -> bool:
        """Return whether an answer can be found for a request, so that its cost is reserved only after a miss."""
        return request.cache == "use" and (self._entries.is_on or self._similar is not None)

    async def find(self, request: ChatRequest, model: Model, asked: CompletionRequest) -> Recalled:
        """Return an earlier answer to `asked`: 1 Redis round trip if the request uses the answer cache, else none.

        The statement that stores the outcome of the turn checks that the `place` of an answer still exists.
        If none was given to the same prompt, similar questions are looked for where that is possible.
        """
        if request.cache == "off":
            return Recalled()
        result, recalled = await self._same(request, model, asked)
        if self._similar is not None and recalled.completion is None and is_comparable(request, asked):
            rest = await self._name(request, model, without_question(asked))
            compared = await self._similar.find(request, rest, model.name)
            notes = (*recalled.notes, *filter(None, [compared.note]))
            recalled = replace(
                recalled,
                completion=compared.completion,
                question=compared.question,
                notes=notes,
                embedding=compared.embedding,
            )
            result = "similar" if compared.completion else result
        self._recorder.count("answer_cache_reads_total", result=result)
        if recalled.completion is None or recalled.completion.origin is None:
            return recalled
        said = (said_of(recalled.completion.origin), *recalled.notes, *recalled.completion.notes)
        return replace(recalled, completion=replace(recalled.completion, notes=said))

    async def keep(
        self, request: ChatRequest, recalled: Recalled, completion: Completion, model: Model, place: AnswerPlace
    ) -> str | None:
        """Keep the answer of a turn that missed: 1 round trip to each store that it is kept in, none if it is unfit.

        Returns a sentence for the caller if the answer should be kept and was not.
        """
        if recalled.completion is not None or (recalled.name is None and recalled.question is None):
            return None
        entry = encode_answer(completion, model, datetime.now(UTC), place) if is_fit(request, completion) else None
        if entry is None:
            return self._stored("unfit", None)
        if self._similar is not None and recalled.question is not None:
            is_kept = await self._similar.keep(recalled.question, place)
            self._stored("vector" if is_kept else "vector_failed", None)
        if recalled.name is None:
            return None
        if len(entry) > self._entry_max_bytes:
            return self._stored("too_large", TOO_LARGE)
        if not await self._entries.keep(request.owner, recalled.name, entry, self._limits):
            return self._stored("failed", None if recalled.notes else NOT_KEPT)
        return self._stored("stored", None)

    async def _same(self, request: ChatRequest, model: Model, asked: CompletionRequest) -> tuple[str, Recalled]:
        """Return the answer to the same prompt, and the result for the metrics."""
        if not self._entries.is_on:
            return "off", Recalled(notes=(NOT_ON,))
        name = await self._name(request, model, asked)
        if request.cache == "refresh":
            return "refresh", Recalled(name=name)
        try:
            kept = await self._entries.find(request.owner, name, self._limits)
        except CacheError:
            return "down", Recalled(name=name, notes=(NOT_ASKED,))
        found = None if kept is None else decode_answer(kept)
        if found is None:
            return "miss", Recalled(name=name)
        completion, place = found
        return "hit", Recalled(completion, name, place=place)

    async def _name(self, request: ChatRequest, model: Model, asked: CompletionRequest) -> str:
        is_long = sum(len(message.content) for message in asked.messages) > LONG_PROMPT_CHARS
        if is_long or any(message.images for message in asked.messages):
            identity = await asyncio.to_thread(self._providers.identity, model, asked)
        else:
            identity = self._providers.identity(model, asked)
        return digest_of((request.owner.encode(errors="surrogatepass"), identity.encode()))

    def _stored(self, result: str, note: str | None) -> str | None:
        self._recorder.count("answer_cache_stores_total", result=result)
        return note


def is_fit(request: ChatRequest, completion: Completion) -> bool:
    """Return whether an answer may be cached: it is complete, from the called model, with the requested search."""
    is_whole = completion.finish_reason == "stop" and not (completion.is_partial or completion.unread_events)
    has_searched = not (request.web_search and completion.notes)
    is_own = completion.instead_of is None and not completion.is_refusal
    return is_whole and is_own and has_searched and bool(completion.content.strip())


def encode_answer(completion: Completion, model: Model, now: datetime, place: AnswerPlace) -> bytes | None:
    """Return an answer as it is kept, with its time and the name of its model; None if it is not Unicode."""
    reasoning = completion.returned_reasoning
    facts = {
        "content": completion.content,
        "provider": completion.provider,
        "model": model.name,
        "wire_model": completion.model,
        "answered_at": now.isoformat(),
        "sources": [list(each) for each in completion.sources],
        "notes": list(completion.notes),
        "place": [place.conversation_id, place.question_seq, place.seq, place.turn_id],
        "reasoning": [reasoning.provider, reasoning.field, reasoning.text] if reasoning else None,
    }
    try:
        return orjson.dumps(facts)
    except TypeError:
        return None


def decode_answer(kept: bytes) -> tuple[Completion, AnswerPlace] | None:
    """Return a kept answer as one that has cost nothing; None if it cannot be read."""
    try:
        found: Mapping[str, Any] = orjson.loads(kept)
        reasoning = found["reasoning"]
        origin = AnswerOrigin(datetime.fromisoformat(found["answered_at"]), found["model"])
        place = AnswerPlace(*found["place"])
        texts = [found["content"], found["provider"], found["wire_model"], origin.model, *found["notes"]]
        texts += [place.conversation_id, place.turn_id]
        if type(place.seq) is not int or {*map(type, texts)} != {str} or origin.answered_at.tzinfo is None:
            return None
        completion = Completion(
            content=found["content"],
            reasoning="",
            finish_reason="stop",
            usage=Usage(),
            provider=found["provider"],
            model=found["wire_model"],
            request_id=None,
            duration_ms=0.0,
            attempts=0,
            notes=tuple(found["notes"]),
            sources=tuple(WebSource(*each) for each in found["sources"]),
            origin=origin,
            returned_reasoning=None if reasoning is None else Reasoning(*reasoning),
        )
    except (ValueError, TypeError, KeyError):
        return None
    return completion, place


def said_of(origin: AnswerOrigin) -> str:
    """Return the sentence about an answer that comes from the answer cache."""
    at = origin.answered_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if origin.question is None:
        given, cure = "to the same prompt", "cache: refresh asks the model again"
    else:
        shown = origin.question if len(origin.question) <= SHOWN_CHARS else origin.question[:SHOWN_CHARS] + "..."
        given = f"to a similar question (similarity {origin.similarity:.3f})"
        cure = f"cache: refresh asks the model. The similar question: {shown}"
    return f"from the answer cache: {origin.model} gave this answer {given} on {at}; {cure}"
