"""Run workflows: record a step, or ask a model with a workflow's instructions; both are rows of the conversation.

Invariant: nothing about a workflow is kept in the process between two calls. Every call is complete in itself, so a
client that never comes back leaves valid rows, and any daemon continues.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from exai.conversations import AppendRequest, ChatRequest, ChatResult, ChatService, ConversationStore
from exai.conversations.requests import Guidance
from exai.conversations.titles import opening
from exai.conversations.turns.beginning import OnBegun
from exai.conversations.turns.instructions import INSTRUCTIONS
from exai.files.sources import SourceReader, SourceRequest, SourcesRead
from exai.models import OnDelta
from exai.providers.registry import Providers
from exai.settings.load import LimitSettings
from exai.workflows.challenge import Challenges
from exai.workflows.definitions import Workflow, load_workflows
from exai.workflows.findings import parse_findings
from exai.workflows.requests import WorkflowRequest, WorkflowResult
from exai.workflows.rows import (
    answer_rows,
    facts_of_call,
    number_findings,
    preceding_rows,
    question_of,
    recorded_rows,
    result_of_turn,
    step_metadata,
)

MATERIAL_SHARE: Final = 0.6
"""Share of a model's window that the files of one call may fill; the rest is left to the conversation."""


class WorkflowService:
    """Runs the workflows. Built by `exai.app.open_app`; safe for any number of tasks of one event loop."""

    def __init__(
        self,
        chat: ChatService,
        conversations: ConversationStore,
        providers: Providers,
        *,
        sources: SourceReader,
        limits: LimitSettings,
    ) -> None:
        self._workflows = load_workflows()
        self._chat, self._conversations = chat, conversations
        self._providers, self._sources, self._limits = providers, sources, limits
        self._challenges = Challenges(conversations, providers)

    async def run(
        self,
        name: str,
        request: WorkflowRequest,
        on_delta: OnDelta | None = None,
        on_begun: OnBegun | None = None,
    ) -> WorkflowResult:
        """Run one call of the workflow `name`, beside the reading of its files.

        Recording a step is 1 database round trip, asking a model 2, and for the workflow that judges claims the read
        of the newest page before. Raises as `ChatService.run`, and `InvalidArgument` if files or a diff were named of
        which nothing could be read.
        """
        workflow = self._workflows[name]
        request.validate(self._limits, needs_prompt=workflow.header.prompt is None)
        if not request.ask_model:
            return await self._record(workflow, request)
        if request.diff is None and workflow.header.diff_default is not None:
            request = replace(request, diff=workflow.header.diff_default)
        return await self._ask(workflow, request, on_delta, on_begun)

    def result_of(self, name: str, turn: ChatResult) -> WorkflowResult:
        """Return the result of a stored turn of the workflow `name`, as its caller would have received it."""
        return result_of_turn(self._workflows[name], turn)

    async def _record(self, workflow: Workflow, request: WorkflowRequest) -> WorkflowResult:
        found = await self._read(request)
        appended = await self._conversations.append(
            AppendRequest(
                owner=request.owner,
                messages=recorded_rows(workflow, request, found),
                continuation_id=request.continuation_id,
                title=opening(request.prompt or ""),
                idempotency_key=request.idempotency_key,
                expected_revision=request.expected_revision,
                files=found.files,
                sources=found.sources,
                tool=workflow.name,
                counts_steps=True,
                identity=request.identity(),
            )
        )
        return WorkflowResult(
            workflow=workflow.name,
            content=f"Step {appended.step} of {workflow.name} recorded.",
            next=workflow.header.next.recorded,
            continuation_id=appended.continuation_id,
            seq=appended.last_seq,
            step=appended.step,
            model=None,
            findings=number_findings((), parse_findings(request.findings)),
            read=found.read,
            left_out=found.left_out,
            notes=found.notes,
            duplicate=appended.duplicate,
        )

    async def _ask(
        self, workflow: Workflow, request: WorkflowRequest, on_delta: OnDelta | None, on_begun: OnBegun | None
    ) -> WorkflowResult:
        claim = await self._challenges.find(workflow.name, request) if workflow.header.prompt is not None else None
        model = request.model if claim is None else claim.judge
        found = await self._read(request, model)
        guidance = Guidance(
            instructions=workflow.instructions,
            identity=request.identity(),
            preceding=preceding_rows(workflow, request),
            metadata=step_metadata(workflow, request, found)
            | (claim.metadata if claim else {INSTRUCTIONS: workflow.name}),
            effort=workflow.header.effort,
            read_answer=partial(answer_rows, workflow, request),
            select=claim.select if claim else None,
            facts=facts_of_call(workflow, request, found, claim.notes if claim else ()),
        )
        turn = await self._chat.run(
            ChatRequest(
                owner=request.owner,
                prompt=claim.question if claim else question_of(request, found.left_out_text),
                model=model,
                continuation_id=request.continuation_id,
                idempotency_key=request.idempotency_key,
                expected_revision=request.expected_revision,
                title=opening(request.prompt) if request.prompt else None,
                files=found.files,
                sources=found.sources,
                tool=workflow.name,
                guidance=guidance,
                cache=request.cache,
            ),
            on_delta,
            on_begun,
        )
        return result_of_turn(workflow, turn)

    async def _read(self, request: WorkflowRequest, model: str | None = None) -> SourcesRead:
        """Read the files and the diff of a call, as `SourceReader.read` does."""
        reread = request.continuation_id if request.reread else None
        if not request.files and request.diff is None and reread is None:
            return SourcesRead()
        room_tokens = self._providers.sizing.room(await self._providers.find(model), None)
        budget_tokens = int(room_tokens * MATERIAL_SHARE)
        return await self._sources.read(
            request.owner, SourceRequest(request.files, request.diff, request.directory, budget_tokens, reread)
        )
