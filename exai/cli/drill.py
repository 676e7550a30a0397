"""`exai drill breaker`: shows how the circuit breaker of a model reacts to a provider that fails and recovers.

The provider is a stand-in on a loopback port of this process; client, breaker and clock are those of the daemon.
Invariant: no daemon, database, configured provider or file is touched, and nothing is left when the drill has ended.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final, NamedTuple

from exai.cli.command import FAILED, OK, run
from exai.errors import ExaiError
from exai.logs import configure_logging
from exai.models import CompletionRequest, Prompt
from exai.monitoring.metrics import MetricsRecorder
from exai.providers.base import Clocks
from exai.providers.opening import open_providers
from exai.providers.registry import Providers
from exai.resilience import OPEN_JITTER, OPEN_MAX_S
from exai.settings.load import LimitSettings, LogSettings, ProvidersSettings

MODEL: Final = "drill"
CALLS: Final = 5
CROWD: Final = 20
MOST_FAILURES: Final = 20
POLL_S: Final = 0.1
DECISION_LIMIT_S: Final = 2.0
"""Time for calls that a half open breaker should refuse at once."""

LONGEST_WAIT_S: Final = OPEN_MAX_S * (1 + OPEN_JITTER)


@dataclass(frozen=True, slots=True)
class DrillStep:
    """What happened in one step: calls by outcome, how many reached the provider, and the state afterwards."""

    step: str
    is_as_promised: bool
    state: str
    answered: int
    failed: int
    refused: int
    reached_provider: int
    median_refusal_ms: float | None
    waited_s: float

    def __str__(self) -> str:
        """Return one line."""
        word = "PASS" if self.is_as_promised else "FAIL"
        state = self.state.replace("_", " ")
        line = (
            f"{word}  {self.step:<34}  {state:<9}  {self.answered:>2} answered, {self.failed} failed, "
            f"{self.refused:>2} refused; {self.reached_provider} reached the provider"
        )
        line += f"; waited {self.waited_s:.1f} s" if self.waited_s else ""
        return line if self.median_refusal_ms is None else f"{line}; a refusal takes {self.median_refusal_ms:.1f} ms"


class _Expected(NamedTuple):
    answered: int
    failed: int
    refused: int
    state: str


def breaker(options: argparse.Namespace, clocks: Clocks | None = None) -> int:
    """Run the drill, and print each step. Returns the exit status."""
    configure_logging(LogSettings(level="error"))
    return run(_print_steps(clocks or Clocks(), as_json=options.format == "json"))


async def _print_steps(clocks: Clocks, *, as_json: bool) -> int:
    steps = []
    async for step in drill_breaker(clocks):
        steps.append(step)
        if not as_json:
            print(step, flush=True)
    is_as_promised = all(step.is_as_promised for step in steps)
    if as_json:
        print(json.dumps({"passed": is_as_promised, "steps": [asdict(step) for step in steps]}, indent=2))
    return OK if is_as_promised else FAILED


async def drill_breaker(clocks: Clocks) -> AsyncIterator[DrillStep]:
    """Yield the steps from closed to open to half open, and to closed again, up to one that is not as promised."""
    async with _provider() as provider:
        settings = ProvidersSettings.model_validate(
            {"endpoints": {MODEL: {"base_url": provider.url, "models": [MODEL]}}, "max_attempts": 1}
        )
        opening = open_providers(settings, recorder=MetricsRecorder(), limits=LimitSettings(), clocks=clocks)
        async with opening as providers:
            async for step in _Drill(providers, provider, clocks).steps():
                yield step
                if not step.is_as_promised:
                    break


class _Drill:
    def __init__(self, providers: Providers, provider: _Provider, clocks: Clocks) -> None:
        self._providers, self._provider, self._clocks = providers, provider, clocks
        self._numbers = itertools.count()

    @property
    def _state(self) -> str:
        return next(each.breaker for each in self._providers.status() if each.name == MODEL)

    async def steps(self) -> AsyncIterator[DrillStep]:
        """Let the provider work, fail and work again."""
        yield await self.step("the provider works", _Expected(CALLS, 0, 0, "closed"))
        self._provider.fails = True
        yield await self.fail_until_open("the provider fails")
        yield await self.step("it is not asked", _Expected(0, 0, CROWD, "open"))
        waited_s = await self.wait_until_half_open()
        yield await self.probe("one probe fails", waited_s, _Expected(0, 1, CROWD - 1, "open"))
        self._provider.fails = False
        waited_s = await self.wait_until_half_open()
        yield await self.probe("one probe succeeds", waited_s, _Expected(1, 0, CROWD - 1, "closed"))
        yield await self.step("all calls pass", _Expected(CALLS, 0, 0, "closed"))

    async def step(self, name: str, expected: _Expected) -> DrillStep:
        """Make calls one after the other."""
        before = len(self._provider.questions)
        calls = [await self._call() for _ in range(expected.answered + expected.refused)]
        return self._judge(name, calls, before, expected)

    async def fail_until_open(self, name: str) -> DrillStep:
        """Make calls until the breaker opens."""
        before = len(self._provider.questions)
        calls: list[DrillCall] = []
        while self._state == "closed" and len(calls) < MOST_FAILURES:
            calls.append(await self._call())
        return self._judge(name, calls, before, _Expected(0, len(calls), 0, "open"))

    async def probe(self, name: str, waited_s: float, expected: _Expected) -> DrillStep:
        """Make calls at the same time while the provider keeps its answer back until the others are decided."""
        before = len(self._provider.questions)
        self._provider.may_answer.clear()
        tasks = [asyncio.create_task(self._call()) for _ in range(CROWD)]
        undecided = set(tasks)
        while len(undecided) > 1:
            ended, undecided = await asyncio.wait(
                undecided, timeout=DECISION_LIMIT_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not ended:
                break
        self._provider.may_answer.set()
        return self._judge(name, await asyncio.gather(*tasks), before, expected, waited_s)

    async def wait_until_half_open(self) -> float:
        """Wait for the pause to end; return its length."""
        waited_s = 0.0
        while self._state != "half_open" and waited_s < LONGEST_WAIT_S:
            await self._clocks.sleep(POLL_S)
            waited_s += POLL_S
        return waited_s

    async def _call(self) -> DrillCall:
        question = f"drill {next(self._numbers)}"
        began = time.perf_counter()
        try:
            request = CompletionRequest(MODEL, [Prompt("user", question)])
            await self._providers.complete(self._providers.resolve(MODEL), request, None)
        except ExaiError:
            outcome = "failed" if question in self._provider.questions else "refused"
        else:
            outcome = "answered"
        return DrillCall(outcome, time.perf_counter() - began)

    def _judge(
        self, name: str, calls: Sequence[DrillCall], before: int, expected: _Expected, waited_s: float = 0.0
    ) -> DrillStep:
        outcomes = [call.outcome for call in calls]
        answered, failed, refused = (outcomes.count(each) for each in ("answered", "failed", "refused"))
        seen = _Expected(answered, failed, refused, self._state)
        reached = len(self._provider.questions) - before
        is_as_promised = seen == expected and reached == seen.answered + seen.failed
        refusals = [call.took_s for call in calls if call.outcome == "refused"]
        median_ms = round(median(refusals) * 1000, 3) if refusals else None
        return DrillStep(
            name,
            is_as_promised,
            seen.state,
            seen.answered,
            seen.failed,
            seen.refused,
            reached,
            median_ms,
            round(waited_s, 1),
        )


class DrillCall(NamedTuple):
    """How a call ended: answered, failed or refused."""

    outcome: str
    took_s: float


class _Provider:
    """An OpenAI-compatible server that answers, or fails while `fails` is set."""

    def __init__(self) -> None:
        self.url = ""
        self.fails = False
        self.questions: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request of a connection."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            if head.startswith("POST"):
                size = int(next(line for line in head.lower().splitlines() if line.startswith("content-length:"))[15:])
                self.questions.append(json.loads(await reader.readexactly(size))["messages"][-1]["content"])
                await self.may_answer.wait()
                status, body = ("500 Internal Server Error", FAILURE) if self.fails else ("200 OK", ANSWER)
            else:
                status, body = "200 OK", MODELS
            answer = json.dumps(body).encode()
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n"
                "Connection: close\r\n\r\n".encode()
                + answer
            )
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


FAILURE: Final[dict[str, Any]] = {"error": {"message": "this provider fails for the drill", "type": "server_error"}}
MODELS: Final[dict[str, Any]] = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
ANSWER: Final[dict[str, Any]] = {
    "id": "drill",
    "object": "chat.completion",
    "model": MODEL,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


@asynccontextmanager
async def _provider() -> AsyncIterator[_Provider]:
    provider = _Provider()
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    try:
        provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        yield provider
    finally:
        provider.may_answer.set()
        server.close()
        await server.wait_closed()
