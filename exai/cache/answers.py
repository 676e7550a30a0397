"""Answers of models in Redis, by owner and name; the caller determines what a name and an answer consist of.

Invariant: an answer is found by its owner only. The answers of an owner are bounded in number, in bytes and in age.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from exai.cache.redis.client import RedisClient
from exai.cache.redis.scripts import Scripts
from exai.encryption.codec import PLAIN, Codec
from exai.errors import CacheError
from exai.models import Owner

FORMAT: Final = 2
"""Part of every key: a release whose answers or names mean something else uses other keys."""

MAX_ANSWERS: Final = 1_000
"""Maximum number of answers that are kept for one owner."""


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """The age up to which an answer is found, and the size of all answers of one owner."""

    ttl_s: float
    owner_max_bytes: int


class AnswerEntries:
    """Answers in Redis; without a client there are none, and `is_on` is false."""

    def __init__(self, client: RedisClient | None, scripts: Scripts, codec: Codec = PLAIN) -> None:
        self._client, self._scripts, self._codec = client, scripts, codec

    @property
    def is_on(self) -> bool:
        """Return whether there is a Redis to ask; it may be unreachable."""
        return self._client is not None

    async def find(self, owner: Owner, name: str, limits: AnswerLimits) -> bytes | None:
        """Return the owner's answer of that name, None if there is none: 1 Redis round trip. Raises `CacheError`."""
        if self._client is None:
            return None
        group, keys = answer_keys(owner, self._client.groups)
        name = self._codec.blind(owner, name)
        args = (name, _milliseconds(limits.ttl_s))
        reply = await self._client.run(self._scripts.find_answer, group, keys, args)
        return self._codec.opened_entry(owner, name, reply) if isinstance(reply, bytes) else None

    async def keep(self, owner: Owner, name: str, answer: bytes, limits: AnswerLimits) -> bool:
        """Store an answer: 1 Redis round trip. Return whether it is stored; a failure is no error."""
        if self._client is None:
            return False
        group, keys = answer_keys(owner, self._client.groups)
        name = self._codec.blind(owner, name)
        answer = self._codec.entry(owner, name, answer)
        args = (name, answer, _milliseconds(limits.ttl_s), MAX_ANSWERS, limits.owner_max_bytes)
        try:
            return await self._client.run(self._scripts.keep_answer, group, keys, args) == 1
        except CacheError:
            return False


def answer_keys(owner: Owner, groups: int) -> tuple[int, tuple[str, str]]:
    """Return the group of an owner's answers, and their two keys."""
    name = quote(owner, safe="", errors="surrogatepass")
    group = zlib.crc32(name.encode()) % groups if groups > 1 else 0
    stem = f"exai:answers:{FORMAT}:{{g{group}}}:{name}"
    return group, (f"{stem}:a", f"{stem}:t")


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
