"""Kimi, GLM and an endpoint on loopback, each a server of its own, behind one open application."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from exai.app import App, open_app
from exai.db.driver.pool import connect
from exai.models import LOCAL_OWNER
from exai.settings.load import (
    CacheSettings,
    DatabaseSettings,
    EndpointSettings,
    ProviderSettings,
    ProvidersSettings,
    Settings,
)
from exai.workflows.consensus import ConsensusRequest, ConsensusResult
from exai.workflows.consensus.watch import PanelWatch
from tests.support.provider_server import ProviderServer, Received, Reply, glm_answer, kimi_answer
from tests.support.waiting import START_WAIT_S

NO_PASS_S = 3_600.0
KIMI, GLM, LOCAL = "kimi-k3.1-pro", "glm-5.3", "local/judge"
PANEL = (KIMI, GLM)
SYNTHESIS = (
    "## Answer\nUse Postgres.\n## Agreed\nBoth want durability.\n## Disagreements\nA and B on cost.\n"
    "## Dismissed\nB: the price of disks, because it is not in question.\n## Would settle it\nA bill.\n"
    "DIFFER: A, B: cost"
)


def text_sent(request: Received | dict[str, Any]) -> str:
    """Everything a model was sent, its instructions included."""
    body = request.body if isinstance(request, Received) else request
    return "\n".join(message["content"] for message in body["messages"])


def role_of(body: dict[str, Any]) -> str:
    """The role of a call, found in its instructions."""
    first = body["messages"][0]["content"]
    if first.startswith("You decide between answers"):
        return "arbiter"
    return "judge" if first.startswith("You compare answers") else "panel"


def answering(body: dict[str, Any]) -> Reply:
    """Return the model's default answer for each role."""
    model = body["model"]
    answer = glm_answer if model.startswith("glm") else kimi_answer
    if role_of(body) == "arbiter":
        return answer(SYNTHESIS, model=model)
    if role_of(body) == "judge":
        letters = sorted(set(re.findall(r"<answer ([A-Z]) ", text_sent(body))))
        return answer(f"A: good\nRANKING: {' > '.join(letters)}", model=model)
    return answer(f"The answer of {model}.", model=model)


@dataclass
class Stage:
    """The application, and the three servers that it asks."""

    app: App
    kimi: ProviderServer
    glm: ProviderServer
    local: ProviderServer
    said: list[str] = field(default_factory=list)
    on_report: Callable[[], None] = lambda: None

    @property
    def servers(self) -> tuple[ProviderServer, ...]:
        return (self.kimi, self.glm, self.local)

    def chats(self, role: str = "") -> list[Received]:
        """The calls of models so far, of one purpose or all."""
        return [each for server in self.servers for each in server.chats if role in ("", role_of(each.body))]

    async def report(self, sentence: str) -> None:
        self.said.append(sentence)
        self.on_report()

    async def ask(self, **given: Any) -> ConsensusResult:
        """Run one call; `models` is Kimi and GLM if the test does not say."""
        request = ConsensusRequest(LOCAL_OWNER, **{"prompt": "Postgres or SQLite?", "models": PANEL, **given})
        return await self.app.consensus.run(request, PanelWatch(self.report))

    async def turns(self) -> list[dict[str, Any]]:
        """The turns in the database, oldest first."""
        connection = await connect(self.app.database.address, timeout_s=5)
        try:
            rows = await connection.fetch("select * from public.turns order by started_at, id")
        finally:
            await connection.close()
        return [dict(row) for row in rows]

    def without_waiting(self, sleep: Callable[[float], Awaitable[object]]) -> None:
        """Replace the clock's sleep."""
        service = self.app.consensus
        service._asker._clocks = replace(service._asker._clocks, sleep=sleep)


@asynccontextmanager
async def open_stage(
    postgres_url: str, redis_url: str, data_dir: Path, *, only_local: bool = False, **providers: Any
) -> AsyncIterator[Stage]:
    """Open the application on three servers of models."""
    async with AsyncExitStack() as stack:
        kimi, glm, local = [await stack.enter_async_context(ProviderServer(default=answering)) for _ in range(3)]
        key = None if only_local else SecretStr("sk-test")
        given: dict[str, Any] = {
            "kimi": ProviderSettings(api_key=key, base_url=kimi.base_url),
            "glm": ProviderSettings(api_key=key, base_url=glm.base_url),
            "endpoints": {
                "local": EndpointSettings(base_url=local.base_url, models=("judge", "other"), context_window=100_000)
            },
            "arbiter": LOCAL,
            "max_attempts": 1,
        }
        settings = Settings(
            database=DatabaseSettings(url=SecretStr(postgres_url), index_pause_s=NO_PASS_S),
            cache=CacheSettings(url=SecretStr(redis_url), reconcile_interval_s=NO_PASS_S, max_staleness_s=60),
            providers=ProvidersSettings(**{**given, **providers}),
            data_dir=data_dir,
            start_wait_s=START_WAIT_S,
        )
        yield Stage(await stack.enter_async_context(open_app(settings)), kimi, glm, local)


@pytest.fixture
async def stage(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with open_stage(postgres_url, redis_url, tmp_path) as opened:
        yield opened
