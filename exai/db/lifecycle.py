"""Forks, names, deletion and retention of conversations; each method is one statement and one round trip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from exai.db.driver.pool import Database
from exai.db.rows import RowsByPart, commit_of, conversation_of, json_of
from exai.models import Commit, ContinuationId, ConversationId, ConversationKey, Message, Owner, TurnId
from exai.settings.load import LimitSettings
from exai.validation import MAX_TITLE_CHARS, check_json, check_optional_name, check_tags, check_text, read_time

ForkStatus = Literal["forked", "duplicate", "not_found", "out_of_range", "too_deep", "conflict_key", "exists"]
RewindStatus = Literal[
    "rewound", "unchanged", "duplicate", "not_found", "out_of_range", "too_deep", "conflict_revision", "conflict_key"
]
ChangeStatus = Literal[
    "changed", "unchanged", "duplicate", "not_found", "conflict_revision", "conflict_key", "name_taken"
]

DAY_S: Final = 86_400.0
PURGE_AFTER_S: Final = 7 * DAY_S
"""How long a deleted conversation can be brought back; longer than any cache may hold it."""

FORGET_REMOVED_S: Final = 7 * DAY_S
MAX_CUT_MESSAGES: Final = 500
MAX_CUT_BYTES: Final = 16 * 1_048_576
"""Messages that a rewind returns, the newest ones."""

BATCH: Final = 100
"""Conversations per statement, so that one with many messages still ends within the statement's limit."""


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """Identifies a change for deduplication: a request with the same `key` and `digest` returns the first result.

    `tool` is the name recorded with the change, `turn_id` the id of this attempt.
    """

    key: str
    digest: str
    tool: str
    turn_id: TurnId


@dataclass(frozen=True, slots=True)
class Forked:
    """The result of a fork. `commit` holds the new conversation, for `forked` and `duplicate`.

    `last_seq` is the source's last number, for `out_of_range`.
    """

    status: ForkStatus
    commit: Commit | None
    last_seq: int | None


@dataclass(frozen=True, slots=True)
class Changed:
    """The result of a change. `commit` holds the header as the change left it; it is set unless the change was refused.

    For a `duplicate` the revisions are the conversation's current one. `current_revision` is set for a
    `conflict_revision`, `present_name` for `name_taken`.
    """

    status: ChangeStatus
    commit: Commit | None
    current_revision: int = 0
    present_name: str | None = None


@dataclass(frozen=True, slots=True)
class RewoundRows:
    """The result of a rewind. `commit` holds the header as it is now, unless the rewind was refused.

    `cut` are the newest of the `cut_count` messages that were cut, oldest first; `cut_id` names the deleted
    conversation that has them. `last_seq` is the number of the last one.
    """

    status: RewindStatus
    commit: Commit | None
    cut: tuple[Message, ...]
    cut_count: int
    cut_id: ContinuationId | None
    last_seq: int
    current_revision: int


@dataclass(frozen=True, slots=True)
class ConversationUpdate:
    """The values to set; None leaves a value unchanged, an empty title or `expires_at` removes it."""

    title: str | None = None
    metadata: Mapping[str, Any] | None = None
    tags: Sequence[str] | None = None
    expires_at: str | None = None

    def validate(self, limits: LimitSettings) -> str | None:
        """Raise `InvalidArgument` for a value that cannot be stored. Return the metadata as JSON, None if unchanged."""
        if self.title is not None:
            check_text("title", self.title, limits.message_bytes)
            check_optional_name("title", self.title or None, MAX_TITLE_CHARS)
        if self.tags is not None:
            check_tags(self.tags)
        if self.expires_at:
            read_time("expires_at", self.expires_at)
        return None if self.metadata is None else check_json("metadata", self.metadata, limits.metadata_bytes).decode()

    def document(self) -> dict[str, Any]:
        """Return the changes as a JSON object."""
        document: dict[str, Any] = {}
        if self.title is not None:
            document["title"] = self.title or None
        if self.metadata is not None:
            document["metadata"] = self.metadata
        if self.tags is not None:
            document["tags"] = list(dict.fromkeys(self.tags))
        if self.expires_at is not None:
            document["expires_at"] = read_time("expires_at", self.expires_at).isoformat() if self.expires_at else None
        return document


class CurationRepository:
    """Forks, changes, deletes and purges conversations."""

    def __init__(self, database: Database) -> None:
        self._database, self._codec = database, database.codec

    async def fork(
        self,
        key: ConversationKey,
        request: IdempotencyKey,
        *,
        new_conversation_id: ConversationId,
        at_seq: int | None = None,
        title: str | None = None,
        name: ContinuationId | None = None,
    ) -> Forked:
        """Make a conversation that begins as this one was after message `at_seq` (None: as it is).

        The messages are shared, not copied. Raises a `DatabaseError`.
        """
        digest = self._codec.blind(key.owner, request.digest)
        identity = (*key, new_conversation_id, request.turn_id, request.key, digest)
        stored_title = self._codec.title(key.owner, name or new_conversation_id, title)
        head = _head(await self._database.fetch("fork", *identity, at_seq, stored_title, name))
        header = head["conversation"]
        if not header:
            return Forked(head["status"], None, head["last_seq"])
        fork = conversation_of(header, self._codec)
        is_repeated = head["status"] == "duplicate"
        base = fork.revision if is_repeated else head["base_revision"]
        commit = Commit(fork, base, fork.revision, head["server_epoch"], is_listed=True, is_repeated=is_repeated)
        return Forked(head["status"], commit, head["last_seq"])

    async def rewind(
        self,
        key: ConversationKey,
        request: IdempotencyKey,
        *,
        cut_id: ConversationId,
        to_seq: int | None,
        drop: int | None,
        expected_revision: int | None = None,
    ) -> RewoundRows:
        """Make a conversation what it was after message `to_seq`, or without its `drop` newest ones.

        The cut messages move to a deleted conversation, with the id `cut_id` unless an earlier one is extended. Raises
        a `DatabaseError`.
        """
        digest = self._codec.blind(key.owner, request.digest)
        identity = (*key, cut_id, request.turn_id, request.key, digest)
        where = (to_seq, drop, expected_revision, MAX_CUT_MESSAGES, MAX_CUT_BYTES)
        answer = RowsByPart(await self._database.fetch("rewind", *identity, *where), self._codec, home="cut")
        head, status = answer.head, answer.head["status"]
        commit = commit_of(head, self._codec, is_listed=True, is_repeated=status == "duplicate")
        cut = tuple(reversed(answer.part("cut")))
        name = ContinuationId(head["cut"]["continuation_id"]) if head["cut"] else None
        numbers = head["cut_count"], name, head["last_seq"] or 0, head["revision"] or 0
        return RewoundRows(status, commit, cut, *numbers)

    async def change(
        self,
        key: ConversationKey,
        request: IdempotencyKey,
        change: ConversationUpdate,
        *,
        expected_revision: int | None = None,
    ) -> Changed:
        """Change title, metadata or tags. Raises a `DatabaseError`."""
        return await self._change(key, request, change.document(), expected_revision)

    async def mark_deleted(
        self,
        key: ConversationKey,
        request: IdempotencyKey,
        *,
        deleted: bool,
        expected_revision: int | None = None,
    ) -> Changed:
        """Mark a conversation as deleted, which hides it until the purge after `PURGE_AFTER_S`, or remove the mark."""
        return await self._change(key, request, {"deleted": deleted}, expected_revision)

    async def purge(self, *, after_s: float = PURGE_AFTER_S, limit: int = BATCH, only_expired: bool = False) -> int:
        """Remove at most `limit` conversations that have been deleted for `after_s`, with everything in them.

        With `only_expired` those whose own time has come.

        A conversation that a fork reads from is kept until the fork is removed. Fewer than `limit`: no other remains.
        """
        return int((await self._database.fetch("purge_conversations", after_s, limit, only_expired))[0]["removed"])

    async def expire_idle(
        self, owner: Owner | None, *, idle_s: float, limit: int = BATCH, but: Sequence[Owner] = ()
    ) -> int:
        """Mark at most `limit` conversations as deleted that have not changed for `idle_s`; None: of all owners `but`.

        Those with a time of their own (`expires_at`) stay until then.
        """
        return int((await self._database.fetch("expire_idle", owner, idle_s, limit, list(but)))[0]["marked"])

    async def expire_due(self, *, limit: int = BATCH) -> int:
        """Mark at most `limit` conversations as deleted whose `expires_at` has come."""
        return int((await self._database.fetch("expire_due", limit))[0]["marked"])

    async def count_purgeable(self, *, after_s: float = PURGE_AFTER_S) -> int:
        """Return how many conversations `purge` would remove in all."""
        return int((await self._database.fetch("count_purgeable", after_s))[0]["removed"])

    async def count_idle(self, owner: Owner | None, *, idle_s: float, but: Sequence[Owner] = ()) -> int:
        """Return how many conversations `expire_idle` would mark in all."""
        return int((await self._database.fetch("count_idle", owner, idle_s, list(but)))[0]["marked"])

    async def count_due(self) -> int:
        """Return how many conversations `expire_due` would mark in all."""
        return int((await self._database.fetch("count_due"))[0]["marked"])

    async def prune_removed(self, *, after_s: float = FORGET_REMOVED_S) -> int:
        """Delete the records of purged conversations once no cache can contain them any more."""
        return int((await self._database.fetch("prune_removed", after_s))[0]["removed"])

    async def _change(
        self,
        key: ConversationKey,
        request: IdempotencyKey,
        document: dict[str, Any],
        expected: int | None,
    ) -> Changed:
        codec = self._codec
        identity = (*key, request.turn_id, request.key, codec.blind(key.owner, request.digest), request.tool)
        if document.get("title") is not None:
            document["title"] = codec.title(*key, document["title"])
        if "metadata" in document:
            document["metadata"] = codec.document(*key, document["metadata"])
        text = json_of(document)
        head = _head(await self._database.fetch("change_conversation", *identity, text, expected))
        status: ChangeStatus = head["status"]
        is_refused = status in ("not_found", "conflict_revision", "conflict_key", "name_taken")
        commit = None if is_refused else commit_of(head, codec, is_listed=True, is_repeated=status == "duplicate")
        return Changed(status, commit, head.get("revision") or 0, head.get("detail"))


def _head(rows: Sequence[Any]) -> dict[str, Any]:
    head: dict[str, Any] = orjson.loads(rows[-1]["data"])
    return head
