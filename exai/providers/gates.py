"""Decide whether a model may be called: by the breaker of its endpoint, its own breaker, and a Retry-After.

Failed connections concern every model of an endpoint. Server errors and Retry-After concern one model, so that a
failing model does not block the others; a Retry-After whose cause is not the key concerns one owner.

Invariant: after a pause shorter than the requested one, and while a breaker is half open, a single request probes the
model; all others wait for its result.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from exai.errors import (
    ProviderAuthFailed,
    ProviderBroken,
    ProviderError,
    ProviderLimited,
    ProviderRefused,
    ProviderUnavailable,
    ProviderUnreachable,
)
from exai.fairness import Holder
from exai.models import Recorder
from exai.providers.base import Clocks, Family, Model
from exai.resilience import Attempt, Breaker, BreakerState

MAX_MODELS: Final = 256
MAX_PAUSED_OWNERS: Final = 1_000
MAX_PAUSE_S: Final = 120.0
"""Longest pause for a Retry-After, after which one request probes the model."""

PROBE_LIMIT_S: Final = 120.0
PROBE_WAIT_S: Final = 1.0


class Pause:
    """The pause that a provider requested for one model."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self._until = self._probe_until = clocks.monotonic()
        self._was_cut = False
        self._probe: object | None = None

    @property
    def left_s(self) -> float:
        """Seconds until a request may be sent, including the time of another request's probe."""
        now = self._clocks.monotonic()
        if now < self._until:
            return self._until - now
        return PROBE_WAIT_S if self._probe is not None and now < self._probe_until else 0.0

    def ask(self, pause_s: float) -> None:
        """Record a requested pause."""
        kept_s = min(pause_s, MAX_PAUSE_S)
        self._was_cut = self._was_cut or kept_s < pause_s
        self._until = max(self._until, self._clocks.monotonic() + kept_s)

    def begin(self, request: object) -> None:
        """Record that a request is sent; after a shortened pause it becomes the probe."""
        if self._was_cut and self._probe is None:
            self._probe, self._probe_until = request, self._clocks.monotonic() + PROBE_LIMIT_S

    def end(self, request: object, *, answered: bool) -> None:
        """Record that a request has ended, or that its answer has begun."""
        if self._probe is request:
            self._probe = None
            self._was_cut = self._was_cut and not answered


class ModelGate:
    """The breaker and the pauses of one model: one for all owners, and one for each owner that was asked to wait.

    A limit of the key concerns all owners. An overloaded or failing server asks only the owner whose request it met,
    so that others find out by themselves whether it answers them.
    """

    def __init__(self, breaker: Breaker, clocks: Clocks) -> None:
        self.breaker, self.pause = breaker, Pause(clocks)
        self.last_error: str | None = None
        self._clocks = clocks
        self._owners: OrderedDict[Holder, Pause] = OrderedDict()

    def left_s(self, owner: Holder) -> float:
        """Return the seconds until this owner may send a request."""
        own = self._owners.get(owner)
        return max(self.pause.left_s, own.left_s if own is not None else 0.0)

    def ask(self, pause_s: float, owner: Holder, *, of_key: bool) -> None:
        """Record a requested pause, for this owner or, if it is a limit of the key, for all."""
        if of_key:
            self.pause.ask(pause_s)
            return
        own = self._owners.setdefault(owner, Pause(self._clocks))
        own.ask(pause_s)
        self._owners.move_to_end(owner)
        while len(self._owners) > MAX_PAUSED_OWNERS:
            self._owners.popitem(last=False)

    def begin(self, request: object, owner: Holder) -> None:
        """Record that a request of this owner is sent."""
        for pause in self._pauses(owner):
            pause.begin(request)

    def end(self, request: object, owner: Holder, *, answered: bool) -> None:
        """Record that a request of this owner has ended, or that its answer has begun."""
        for pause in self._pauses(owner):
            pause.end(request, answered=answered)

    def _pauses(self, owner: Holder) -> tuple[Pause, ...]:
        own = self._owners.get(owner)
        return (self.pause,) if own is None else (self.pause, own)


class Gates:
    """The gates of one endpoint and its models, of which the least recently called are dropped beyond a limit."""

    def __init__(self, family: Family, recorder: Recorder, clocks: Clocks) -> None:
        self._family, self._recorder, self._clocks = family, recorder, clocks
        self.endpoint = Breaker(
            family.name,
            recorder=recorder,
            failures=(ProviderUnreachable,),
            answers=(ProviderError,),
            clock=clocks.monotonic,
            rand=clocks.rand,
        )
        self._models: OrderedDict[str, ModelGate] = OrderedDict()

    def of(self, model: Model) -> ModelGate:
        """Return the gate of a model."""
        gate = self._models.get(model.wire_name)
        if gate is None:
            breaker = Breaker(
                model.label,
                recorder=self._recorder,
                failures=(ProviderUnavailable, ProviderBroken),
                answers=(ProviderRefused, ProviderAuthFailed, ProviderLimited),
                neutral=(ProviderUnreachable,),
                clock=self._clocks.monotonic,
                rand=self._clocks.rand,
            )
            gate = self._models[model.wire_name] = ModelGate(breaker, self._clocks)
        self._models.move_to_end(model.wire_name)
        while len(self._models) > MAX_MODELS:
            self._models.popitem(last=False)
        return gate

    @asynccontextmanager
    async def passing(self, model: Model) -> AsyncIterator[Attempt]:
        """Pass one request through both breakers. Raises `BreakerOpen`; `Breaker` documents the counting."""
        async with self.endpoint.attempt() as outer, self.of(model).breaker.attempt(outer) as attempt:
            yield attempt

    @property
    def state(self) -> BreakerState:
        """The endpoint's state, or the state of its models if all that were called have the same."""
        if self.endpoint.state != "closed" or not self._models:
            return self.endpoint.state
        states = {gate.breaker.state for gate in self._models.values()}
        return states.pop() if len(states) == 1 else "closed"

    @property
    def retry_after_s(self) -> float:
        """Seconds until the endpoint, or the first of its models, may be called."""
        waits = (max(gate.breaker.retry_after_s, gate.pause.left_s) for gate in self._models.values())
        return max(self.endpoint.retry_after_s, min(waits, default=0.0))

    def failing(self) -> list[str]:
        """Return the names of models whose gates are closed while the endpoint's is open to others."""
        return [name for name, gate in self._models.items() if gate.breaker.state != "closed"]
