"""Append messages: what a request means, and what its caller receives.

Invariant: a request is one statement, with any number of messages and files, and also if it makes a conversation.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from exai.conversations.deduplication import content_hash
from exai.conversations.large import LargeContent, pieces_in, stored_form, without_large
from exai.conversations.publishing import Publisher
from exai.conversations.refusals import refusal
from exai.conversations.requests import Appended, AppendRequest, with_files
from exai.db.conversations import ConversationRepository
from exai.db.records import AppendResult, AppendStart
from exai.models import Commit, ConversationId, NewMessage, TurnId
from exai.settings.load import LimitSettings


class Appends:
    """Stores the messages of requests."""

    def __init__(
        self, repository: ConversationRepository, publisher: Publisher, large: LargeContent, limits: LimitSettings
    ) -> None:
        self._repository, self._publisher = repository, publisher
        self._large, self._limits = large, limits

    async def append(self, request: AppendRequest) -> Appended:
        """Store a request; see `ConversationStore.append`."""
        taken = await self._large.take_all(request.owner, request.messages)
        left = [without_large(*pair) for pair in zip(request.messages, taken, strict=True)] if any(taken) else None
        (request if left is None else replace(request, messages=left)).validate(self._limits)
        pieces = pieces_in(taken)
        given = [*request.messages[:-1], *(with_files(last, request.files) for last in request.messages[-1:])]
        messages, places = distinct([stored_form(*pair) for pair in zip(given, taken, strict=True)])
        file_ids = tuple(dict.fromkeys((*request.files, *(piece.id for piece in pieces))))
        start = replace(start_of(request, messages), file_ids=file_ids, metadata_bytes=self._limits.metadata_bytes)
        result = await self._large.send(
            request.owner, pieces, lambda along: self._repository.append(replace(start, along=along))
        )
        if result.commit is None:
            about = (result.missing if request.also else None) or request.continuation_id
            raise refusal(result.status, about, result.current_revision, result.missing)
        await asyncio.gather(*(self._publisher.publish(commit) for commit in (result.commit, *result.records)))
        appended = appended_of(result, result.commit, places)
        if start.patch is None and not start.also:
            return appended
        records = tuple(commit.conversation for commit in result.records)
        return replace(appended, conversation=result.commit.conversation, records=records)


def start_of(request: AppendRequest, messages: Sequence[NewMessage]) -> AppendStart:
    """Return the arguments of the statement, with the messages as they are stored."""
    # One id names the turn, the request where its caller did not, and a conversation that begins with it.
    turn_id = str(uuid.uuid4())
    made: dict[str, Any] = {"metadata": dict(request.metadata)} if request.metadata else {}
    if request.tags:
        made["tags"] = list(dict.fromkeys(request.tags))
    if request.created_at is not None:
        made["created_at"] = request.created_at
    return AppendStart(
        owner=request.owner,
        continuation_id=request.continuation_id,
        new_conversation_id=ConversationId(turn_id),
        turn_id=TurnId(turn_id),
        request_key=request.idempotency_key or turn_id,
        request_hash=content_hash(request.tool, request.continuation_id, *_identity(request, messages)),
        tool=request.tool,
        title=request.title,
        messages=messages,
        expected_revision=request.expected_revision,
        counts_steps=request.counts_steps,
        sources=request.sources,
        creates=request.create,
        made=made,
        updated_at=request.updated_at,
        patch=request.patch,
        also=request.also,
    )


def _identity(request: AppendRequest, messages: Sequence[NewMessage]) -> tuple[Any, ...]:
    """Return what a repetition with the same key must have in common."""
    if request.identity is not None:
        return request.identity
    texts = [(message.role, message.kind, message.content, dict(message.metadata)) for message in messages]
    marks = [(message.key, message.created_at) for message in messages]
    patches = [each.document() | {"id": None} for each in request.also]
    if request.patch is not None:
        patches.append(request.patch.document())
    rest = ([marks] if any(any(each) for each in marks) else []) + ([patches] if patches else [])
    return request.title, texts, *rest


def distinct(messages: Sequence[NewMessage]) -> tuple[Sequence[NewMessage], Sequence[int]]:
    """Return messages without those whose key an earlier one has, and the place of each given one among them."""
    if not any(message.key for message in messages):
        return messages, range(len(messages))
    found: list[NewMessage] = []
    places: list[int] = []
    by_key: dict[str, int] = {}
    for message in messages:
        place = by_key.setdefault(message.key, len(found)) if message.key is not None else len(found)
        places.append(place)
        if place == len(found):
            found.append(message)
    return found, places


def appended_of(result: AppendResult, commit: Commit, places: Sequence[int]) -> Appended:
    """Return the result for the caller, whose messages have these places among those of the statement."""
    first, last = result.first_seq or 0, result.last_seq or 0
    stored = result.seqs or tuple(range(first, last + 1) if first else ())
    seqs = tuple(stored[place] for place in places) if stored else ()
    skipped = _skipped(seqs, first, last) if len(stored) < len(places) or result.seqs else ()
    return Appended(
        continuation_id=commit.conversation.continuation_id,
        first_seq=first,
        last_seq=last,
        revision=commit.revision,
        duplicate=result.status == "duplicate",
        step=result.step,
        seqs=seqs,
        skipped=skipped,
        created=result.made,
    )


def _skipped(seqs: Sequence[int], first: int, last: int) -> tuple[int, ...]:
    """Return the positions of messages that are not new, or that repeat the key of one before."""
    seen: set[int] = set()
    found = []
    for position, seq in enumerate(seqs):
        if not first <= seq <= last or seq in seen:
            found.append(position)
        seen.add(seq)
    return tuple(found)
