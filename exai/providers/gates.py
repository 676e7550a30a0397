"""Decide whether a model may be called: by the breaker of its endpoint, its own breaker, and a Retry-After.

Failed connections concern every model of an endpoint. Server errors and Retry-After concern one model, so that a
failing model does not block the others.

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
from exai.models import Recorder
from exai.providers.base import Clocks, Family, Model
from exai.resilience import Attempt, Breaker, BreakerState

MAX_MODELS: Final = 256
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
    """The breaker and the pause of one model."""

    def __init__(self, breaker: Breaker, pause: Pause) -> None:
        self.breaker, self.pause = breaker, pause
        self.last_error: str | None = None


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
            gate = self._models[model.wire_name] = ModelGate(breaker, Pause(self._clocks))
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
