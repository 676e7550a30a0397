"""Choose the members of a panel, and an arbiter that is none of them. No call of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exai.errors import ExaiError, InvalidArgument, NotConfigured
from exai.providers.base import Model, ModelInfo
from exai.providers.registry import Providers
from exai.workflows.consensus.requests import MAX_PANEL, MIN_PANEL, ConsensusRequest, Stance

SAME_TWICE = "only one model is configured, so the panel is that model, asked twice"


@dataclass(frozen=True, slots=True)
class PanelSeat:
    """One place of a panel. `problem` is set instead of `model` for a name that cannot be asked."""

    index: int
    name: str
    model: Model | None
    stance: Stance | None
    problem: ExaiError | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """The members; `arbiter` is None if no model off the panel is configured. `strength` orders names, best first."""

    seats: tuple[PanelSeat, ...]
    arbiter: Model | None
    strength: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def strongest(self, names: Sequence[str]) -> str:
        """Return the best of some members."""
        return min(names, key=lambda name: self.strength.index(name) if name in self.strength else len(self.strength))


class PanelChoice:
    """Chooses panels from the configured models. `members` and `arbiter` are the configured ones."""

    def __init__(self, providers: Providers, members: Sequence[str] = (), arbiter: str | None = None) -> None:
        self._providers, self._members, self._arbiter = providers, tuple(members), arbiter

    async def choose(self, request: ConsensusRequest) -> Panel:
        """Return the panel of a request.

        A member that cannot be asked keeps its seat, with the problem, while at least two others can be.
        Raises `InvalidArgument` or `NotConfigured` before anything is spent.
        """
        notes: tuple[str, ...] = ()
        names = request.models or self._members
        field = "models" if request.models else "EXAI_PROVIDERS__PANEL"
        if not names:
            names = self._best_two()
            notes = (SAME_TWICE,) if len(set(names)) == 1 else ()
        if not MIN_PANEL <= len(names) <= MAX_PANEL:
            raise InvalidArgument(field, f"has {len(names)} models", f"Give {MIN_PANEL} to {MAX_PANEL}")
        seats = [await self._seat(index, name, _stance_of(request, index)) for index, name in enumerate(names)]
        problems = [f"{field}[{seat.index}]: {seat.problem}" for seat in seats if seat.problem is not None]
        if len(seats) - len(problems) < MIN_PANEL:
            raise InvalidArgument(field, f"fewer than two of them can be asked: {'; '.join(problems)}", "Name others")
        strength = tuple(info.name for info in self._ordered())
        return Panel(tuple(seats), await self._off_panel(seats), strength, notes)

    async def _seat(self, index: int, name: str, stance: Stance | None) -> PanelSeat:
        try:
            model = await self._providers.prepare(await self._providers.find(name))
        except (InvalidArgument, NotConfigured) as error:
            return PanelSeat(index, name, None, stance, error)
        return PanelSeat(index, model.name, model, stance)

    async def _off_panel(self, seats: Sequence[PanelSeat]) -> Model | None:
        """Return the configured arbiter, else the best model that is neither a member nor a variant of one."""
        if self._arbiter is not None:
            try:
                return await self._providers.prepare(await self._providers.find(self._arbiter))
            except (InvalidArgument, NotConfigured) as error:
                raise NotConfigured(
                    f"the arbiter {self._arbiter}", f"Correct EXAI_PROVIDERS__ARBITER: {error}"
                ) from error
        members = [seat.model.name for seat in seats if seat.model is not None]
        for info in self._ordered():
            if not any(_is_variant(info.name, member) for member in members):
                return await self._providers.prepare(await self._providers.find(info.name))
        return None

    def _best_two(self) -> tuple[str, ...]:
        """Return the default model and the best one of another provider, else another one of the same."""
        first = self._providers.resolve(None)
        others = [info for info in self._ordered() if not _is_variant(info.name, first.name)]
        others.sort(key=lambda info: info.provider == first.provider)
        return (first.name, others[0].name if others else first.name)

    def _ordered(self) -> list[ModelInfo]:
        """Return the models that can be asked, best first: the default, then as listed, those that retire last."""
        infos = [info for info in self._providers.models() if info.configured]
        return sorted(infos, key=lambda info: (not info.default, info.retires is not None))


def _stance_of(request: ConsensusRequest, index: int) -> Stance | None:
    own = request.sides[index] if index < len(request.sides) else None
    if own is not None or request.stances == "none":
        return own
    if request.sides:
        return "weigh"
    return ("for", "against")[index] if index < MIN_PANEL else "weigh"


def _is_variant(name: str, other: str) -> bool:
    """Return whether two names are of one model, perhaps at another speed."""
    return name.startswith(other) or other.startswith(name)
