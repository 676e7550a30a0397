"""Whether a model may be asked now: the breaker of its endpoint, its own breaker, and the pause it asked for.

Connections that fail concern every model of an endpoint; errors of the server and requests for a pause concern one, so
that a model that fails does not take the others with it. Invariant: after a pause that was cut short, and while a
breaker is half open, one request finds out for all.
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
"""The longest time for which a Retry-After is believed; then one request tries."""

PROBE_LIMIT_S: Final = 120.0
PROBE_WAIT_S: Final = 1.0


class Pause:
    """For how long a model is to be left alone."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self._until = self._probe_until = clocks.monotonic()
        self._was_cut = False
        self._probe: object | None = None

    @property
    def left_s(self) -> float:
        """Seconds until a request may be sent, also while another one finds out whether it may."""
        now = self._clocks.monotonic()
        if now < self._until:
            return self._until - now
        return PROBE_WAIT_S if self._probe is not None and now < self._probe_until else 0.0

    def ask(self, pause_s: float) -> None:
        """Note what the provider asked for."""
        kept_s = min(pause_s, MAX_PAUSE_S)
        self._was_cut = self._was_cut or kept_s < pause_s
        self._until = max(self._until, self._clocks.monotonic() + kept_s)

    def begin(self, request: object) -> None:
        """Note that a request is sent; after a pause that was cut short it is the one that finds out."""
        if self._was_cut and self._probe is None:
            self._probe, self._probe_until = request, self._clocks.monotonic() + PROBE_LIMIT_S

    def end(self, request: object, *, answered: bool) -> None:
        """Note that a request has ended, or has been answered so far."""
        if self._probe is request:
            self._probe = None
            self._was_cut = self._was_cut and not answered


class ModelGate:
    """What is known of one model."""

    def __init__(self, breaker: Breaker, pause: Pause) -> None:
        self.breaker, self.pause = breaker, pause
        self.last_error: str | None = None


class Gates:
    """The gates of one endpoint and of its models; those asked longest ago are forgotten beyond a number."""

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
        """Let one request through both breakers. Raises `BreakerOpen`; see `Breaker` for what its end means."""
        async with self.endpoint.attempt() as outer, self.of(model).breaker.attempt(outer) as attempt:
            yield attempt

    @property
    def state(self) -> BreakerState:
        """The endpoint's state, or that of its models if all that were asked agree."""
        if self.endpoint.state != "closed" or not self._models:
            return self.endpoint.state
        states = {gate.breaker.state for gate in self._models.values()}
        return states.pop() if len(states) == 1 else "closed"

    @property
    def retry_after_s(self) -> float:
        """Seconds until the endpoint, or the first of its models, may be asked."""
        waits = (max(gate.breaker.retry_after_s, gate.pause.left_s) for gate in self._models.values())
        return max(self.endpoint.retry_after_s, min(waits, default=0.0))

    def failing(self) -> list[str]:
        """Name the models that are left alone while others are asked."""
        return [name for name, gate in self._models.items() if gate.breaker.state != "closed"]
