"""Send the calls of one script that are made in one iteration of the event loop as one command.

Appends that share a database statement update Redis at the same time, and most of the cost of an update in this process
is its command. A script called here takes two keys per call, and per call the number of its arguments followed by the
arguments. It returns a list with one reply per call.

Invariant: the server executes the calls in order, each independent of the others, with a reply for each. If the server
refuses the command, each call is sent again in a command of its own, so a script must be safe to run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from exai.batching import Batcher, Fit, Unlimited
from exai.cache.redis.client import RedisClient
from exai.cache.redis.connection import Argument, RedisReply
from exai.cache.redis.faults import REDIS, CacheDown, CacheLost, CacheRefused, ReplyError
from exai.cache.redis.scripts import Script
from exai.errors import CacheError, ExaiError

Keys: TypeAlias = tuple[str, str]
_Call: TypeAlias = tuple[Keys, tuple[Argument, ...]]

MOST_CALLS: Final = 16
"""Maximum number of calls in one command, during which the server executes nothing else."""

MOST_BYTES: Final = 262_144
"""Maximum size of the arguments in one command; a single call may exceed it."""

CLOSED: Final = "closed"


class ScriptBatcher:
    """Batches this process's calls of one script. `close` fails those in flight."""

    def __init__(self, client: RedisClient, script: Script) -> None:
        self._client, self._script = client, script
        self._batchers: dict[int, Batcher[_Call, RedisReply]] = {}

    async def run(self, group: int, keys: Keys, args: tuple[Argument, ...]) -> RedisReply:
        """Run the script in one round trip. Raises `CacheError`; cancelling it affects no other call."""
        batcher = self._batchers.get(group) or self._batcher_of(group)
        reply = await batcher.run(None, (keys, args))
        if isinstance(reply, ReplyError):
            raise CacheRefused(reply.code, reply.text)
        return reply

    async def close(self) -> None:
        """Fail all waiting calls with `CacheLost`."""
        for batcher in self._batchers.values():
            await batcher.close(lambda: CacheLost(CLOSED))

    @property
    def in_flight(self) -> int:
        """Commands in flight."""
        return sum(batcher.in_flight for batcher in self._batchers.values())

    def _batcher_of(self, group: int) -> Batcher[_Call, RedisReply]:
        async def send(calls: Sequence[_Call]) -> Sequence[RedisReply]:
            return await self._send(group, calls)

        async def send_alone(call: _Call) -> RedisReply:
            return (await self._send(group, [call]))[0]

        batcher: Batcher[_Call, RedisReply] = Batcher(
            Unlimited(),
            send,
            send_alone,
            failure=_failure,
            name=f"cache-{self._script.name}",
            what=None,
            max_items=MOST_CALLS,
            choose=_chooser,
        )
        self._batchers[group] = batcher
        return batcher

    async def _send(self, group: int, calls: Sequence[_Call]) -> list[RedisReply]:
        all_keys = tuple(key for keys, _ in calls for key in keys)
        all_args = tuple(arg for _, args in calls for arg in (len(args), *args))
        replies = await self._client.run(self._script, group, all_keys, all_args)
        if not isinstance(replies, list) or len(replies) != len(calls):
            raise CacheDown(f"{REDIS} answered {self._script.name} with something else")
        return replies


def _failure(_: _Call, error: ExaiError) -> CacheLost | None:
    """Return the error of one call, None for a refusal, which another call of the command may have caused.

    The error is a `CacheLost`, not a `CacheDown`: the breaker has already counted the failure of the command.
    """
    if isinstance(error, CacheRefused) or not isinstance(error, CacheError):
        return None
    return CacheLost(error.problem)


def _chooser() -> Callable[[_Call], Fit]:
    """Choose calls in order, up to `MOST_BYTES`."""
    left_bytes: int | None = None

    def choose(call: _Call) -> Fit:
        nonlocal left_bytes
        size = sum(len(arg) for arg in call[1] if not isinstance(arg, int))
        if left_bytes is None:
            left_bytes = MOST_BYTES
        elif size > left_bytes:
            return "full"
        left_bytes -= size
        return "take"

    return choose
