"""The protocol's tasks, implemented by turns: a task is a turn, and its handle is the turn's id.

A task stores nothing beyond its turn, so it costs no additional statement, survives its daemon, is visible to every
daemon, and is kept exactly as long as its conversation. Invariant: the result of a completed task equals the
answer that the call itself would have returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from exai.conversations import ChatResult, ChatService
from exai.conversations.turns.result import TurnOutcome
from exai.errors import ShuttingDown
from exai.mcp.core import versions
from exai.mcp.core.jsonrpc import INTERNAL_ERROR, RpcError
from exai.mcp.core.protocol import ClientInfo
from exai.mcp.features.results import ToolOutput, call_result, failed_result
from exai.mcp.features.tasks import Task
from exai.models import Owner
from exai.tools.limits import NO_CLIENT

AnswerFrom = Callable[[ChatResult, ClientInfo], ToolOutput]
"""Makes the output of a tool for a client."""

Answers = Mapping[str, AnswerFrom]
"""Functions that make a tool's output, by the names of the tools whose calls can be tasks."""


class TurnTasks:
    """The turns of the tools in `answers`, as tasks."""

    def __init__(self, chat: ChatService, answers: Answers) -> None:
        self._chat, self._answers = chat, answers

    async def get(self, owner: Owner, task_id: str, client: ClientInfo = NO_CLIENT) -> Task | None:
        """Return this owner's task with its result for `client`, or None: 1 database round trip."""
        outcome = await self._chat.result(owner, task_id)
        if outcome is None or outcome.tool not in self._answers:
            return None
        answer = self._answers[outcome.tool]
        return _task(outcome, lambda result: answer(result, client))

    async def cancel(self, owner: Owner, task_id: str) -> bool:
        """End a task early unless it has ended. Returns False if there is none: 1 database round trip."""
        return await self._chat.cancel(owner, task_id)


def _task(outcome: TurnOutcome, answer: Callable[[ChatResult], ToolOutput]) -> Task:
    name = outcome.continuation_id
    since, at = outcome.started_at, outcome.ended_at or outcome.started_at
    task = Task(outcome.turn_id, "working", since, at, f"the model is being asked, in conversation {name}")
    if outcome.result is not None:
        return replace(task, status="completed", message="", result=call_result(answer(outcome.result)))
    if outcome.stage == "failed":
        return _failed(task, dict(outcome.error or {}))
    if outcome.stage == "cancelled":
        return replace(task, status="cancelled", message=(outcome.error or {}).get("message", ""))
    if outcome.stage == "lost":
        problem = (
            "no answer was stored, because the daemon that asked the model is gone or could not store it; the question "
            f"is kept in conversation {name}. Call again to ask it again"
        )
        return _broken(task, RpcError(INTERNAL_ERROR, problem))
    return task


def _failed(task: Task, error: Mapping[str, Any]) -> Task:
    """Return a failure in the form of the call's own: most are tool results, the rest are protocol errors."""
    if error.get("code") == ShuttingDown.code:
        return _broken(task, RpcError(versions.SHUTTING_DOWN, str(ShuttingDown()), error))
    if "message" not in error:
        problem = "internal error; the logs of the daemon that asked the model have it"
        return _broken(task, RpcError(INTERNAL_ERROR, problem))
    result = failed_result(error)
    return replace(task, status="completed", message="", result=result)


def _broken(task: Task, error: RpcError) -> Task:
    return replace(task, status="failed", message=error.message, error=error)
