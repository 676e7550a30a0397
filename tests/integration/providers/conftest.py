"""A provider server, and EXAI's providers pointed at it; limits are short and pauses are recorded, not slept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest

from exai.models import Completion, CompletionRequest, Delta, OnDelta, Prompt
from exai.monitoring.metrics import MetricsRecorder
from exai.providers.base import Clocks
from exai.providers.opening import open_providers
from exai.providers.registry import Providers
from exai.settings.load import LimitSettings, ProvidersSettings
from tests.support.provider_server import ProviderServer

T = TypeVar("T")

LIMIT_S = 5.0
NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
KEY = "sk-test-key-1"


async def soon(awaitable: Awaitable[T]) -> T:
    """Wait for something that must happen, for at most five seconds."""
    return await asyncio.wait_for(awaitable, LIMIT_S)


@dataclass
class Pauses:
    """A clock that sleeping moves; every pause is kept."""

    now: float = 1_000.0
    slept: list[float] = field(default_factory=list)

    async def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)
        self.now += duration_s
        await asyncio.sleep(0)

    @property
    def clocks(self) -> Clocks:
        return Clocks(monotonic=lambda: self.now, now=lambda: NOW, sleep=self.sleep, rand=lambda: 0.5)


@dataclass
class Heard:
    """Collects the pieces; `first` is set by the first one."""

    pieces: list[Delta] = field(default_factory=list)
    first: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, delta: Delta) -> None:
        self.pieces.append(delta)
        self.first.set()


@dataclass
class Asker:
    """EXAI's providers with one server behind each of them."""

    providers: Providers

    async def __call__(self, model: str | None = None, on_delta: OnDelta | None = None, **options: Any) -> Completion:
        messages = options.pop("messages", [Prompt("user", "hello")])
        resolved = self.providers.resolve(model)
        request = CompletionRequest(resolved.name, messages, **options)
        return await soon(self.providers.complete(resolved, request, on_delta))


@pytest.fixture
async def server() -> AsyncIterator[ProviderServer]:
    async with ProviderServer() as running:
        yield running


@pytest.fixture
def recorder() -> MetricsRecorder:
    return MetricsRecorder()


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


OpenProviders = Callable[..., AbstractAsyncContextManager[Providers]]


@pytest.fixture
def opened(server: ProviderServer, recorder: MetricsRecorder, pauses: Pauses) -> OpenProviders:
    """Open providers with these settings beside the server's address."""

    def open_with(limits: LimitSettings | None = None, **settings: Any) -> AbstractAsyncContextManager[Providers]:
        site = {"api_key": KEY, "base_url": server.base_url}
        read = ProvidersSettings.model_validate({"kimi": site, "glm": site, **settings})
        return open_providers(read, recorder=recorder, limits=limits or LimitSettings(), clocks=pauses.clocks)

    return open_with


@pytest.fixture
async def ask(opened: OpenProviders) -> AsyncIterator[Asker]:
    async with opened() as providers:
        await providers.discover()
        yield Asker(providers)


@pytest.fixture
async def ask_impatiently(opened: OpenProviders) -> AsyncIterator[Asker]:
    """With limits that pass quickly, for tests in which one must."""
    async with opened(first_token_timeout_s=0.3, stream_idle_timeout_s=0.3) as providers:
        await providers.discover()
        yield Asker(providers)
