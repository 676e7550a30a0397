"""What a rule receives: clients of the store, fresh names, a seeded random, and the history of its calls."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import Random
from typing import Any

from conversation_store_conformance.store import Item, OpenStore, Store

MAX_SHOWN_CHARS = 160
MAX_HISTORY = 16
RECORDED = frozenset(
    name for name in vars(Store) if not name.startswith("_") and asyncio.iscoroutinefunction(vars(Store)[name])
)


class Violation(Exception):
    """The store broke a rule. `history` is a shorter history than the recorded one, if there is one."""

    def __init__(self, message: str, history: Sequence[str] | None = None) -> None:
        super().__init__(message)
        self.history = history


class NotApplicable(Exception):
    """The rule says nothing about this store, for the reason that it gives."""


@dataclass
class World:
    """One run of one rule."""

    open_store: OpenStore
    spec: str | None
    place: str
    seed: str
    stack: AsyncExitStack
    capabilities: frozenset[str] = frozenset()
    history: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)  # noqa: S311 - repeatable by its seed
        # Not by the seed: a store that outlives a run may have the names of a run with the same seed.
        self._run = secrets.token_hex(6)
        self._numbers = itertools.count(1)
        self._clients = itertools.count(1)

    def name(self, about: str = "conversation") -> str:
        """Return a name that no other run has used."""
        return f"{about}-{self._run}-{next(self._numbers)}"

    async def open(self) -> Any:
        """Open a client of the store; its calls are recorded."""
        store = await self.stack.enter_async_context(self.open_store(self.place))
        return Recorded(store, f"client {next(self._clients)}", self.history)

    def note(self, text: str) -> None:
        """Add a remark to the report."""
        if text not in self.notes:
            self.notes.append(text)


class Recorded:
    """A store whose calls are recorded."""

    def __init__(self, store: Store, client: str, history: list[str]) -> None:
        self.store, self._client, self._history = store, client, history

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.store, name)
        if name == "tenant":
            return lambda tenant: Recorded(found(tenant), f"{self._client} of {tenant}", self._history)
        return self._recorded(name, found) if name in RECORDED else found

    def _recorded(self, name: str, function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any) -> Any:
            written = f"{self._client}: {name}({', '.join(map(shown, arguments))})"
            try:
                result = await function(*arguments)
            except BaseException as error:
                self._history.append(f"{written} raised {type(error).__name__}: {str(error)[:MAX_SHOWN_CHARS]}")
                raise
            self._history.append(f"{written} -> {shown(result)}")
            return result

        return call


def message(text: str, **more: Any) -> Item:
    """Return an item as most frameworks store it."""
    return {"role": "user", "content": text, **more}


def messages(*texts: str) -> list[Item]:
    """Return several items."""
    return [message(text) for text in texts]


def texts(items: Sequence[Item] | None) -> list[str]:
    """Return the texts of items made by `message`."""
    return [item["content"] for item in items or ()]


def shown(value: object) -> str:
    """Return a value, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError):
        try:
            text = repr(value)
        except RecursionError:
            text = f"a deep {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}... ({len(text):,} characters)"


def expect(condition: object, problem: str) -> None:
    """Raise `Violation` unless the condition holds."""
    if not condition:
        raise Violation(problem)


def expect_equal(found: object, wanted: object, what: str) -> None:
    """Raise `Violation` unless two values are equal, with the types of all numbers."""
    if not same(found, wanted):
        raise Violation(f"{what}: expected {shown(wanted)}, found {shown(found)}")


def same(first: object, second: object) -> bool:
    """Return whether two JSON values are equal: 1 and 1.0 differ, NaN equals itself. Not recursive."""
    waiting = [(first, second)]
    while waiting:
        one, other = waiting.pop()
        if isinstance(one, dict) and isinstance(other, dict):
            if one.keys() != other.keys():
                return False
            waiting += [(one[key], other[key]) for key in one]
        elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
            if len(one) != len(other):
                return False
            waiting += zip(one, other, strict=True)
        elif type(one) is not type(other) or (one != other and not (one != one and other != other)):  # noqa: PLR0124
            return False
    return True


async def refusal(work: Awaitable[Any]) -> Exception | None:
    """Return the error that refuses a call, None if it was carried out."""
    try:
        await work
    except (Violation, NotApplicable):
        raise
    except Exception as error:  # noqa: BLE001 - a store may refuse by any error
        return error
    return None


async def all_of(*work: Awaitable[Any]) -> list[Any]:
    """Run calls at the same time, and return their results and errors."""
    return list(await asyncio.gather(*work, return_exceptions=True))


def first_error(results: Sequence[Any]) -> None:
    """Raise the first error among results of calls that all have to succeed."""
    for result in results:
        if isinstance(result, BaseException):
            raise result
