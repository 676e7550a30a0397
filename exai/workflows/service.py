"""Run workflows: record a step, or ask a model with a workflow's instructions; both are rows of the conversation.

Invariant: nothing about a workflow is kept in the process between two calls. Every call is complete in itself, so a
client that never comes back leaves valid rows, and any daemon continues.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Final

from exai.conversations import AppendRequest, ChatRequest, ChatResult, ChatService, ConversationStore
from exai.conversations.requests import Guidance, OnBegun
from exai.conversations.titles import opening
from exai.conversations.turns.documents import Documents
from exai.conversations.turns.instructions import INSTRUCTIONS
from exai.conversations.turns.preparation import OnPreparing
from exai.files.sources import SourceReader, SourceRequest, SourcesRead
from exai.models import OnDelta
from exai.providers.registry import Providers
from exai.settings.load import LimitSettings
from exai.workflows.challenge import Challenges, JudgedClaim
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

NOT_IN_TIME: Final = "not read before the caller's time limit"
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
        documents: Documents,
        limits: LimitSettings,
    ) -> None:
        self._workflows = load_workflows()
        self._chat, self._conversations = chat, conversations
        self._providers, self._sources, self._limits = providers, sources, limits
        self._documents = documents
        self._challenges = Challenges(conversations, providers)

    async def run(
        self,
        name: str,
        request: WorkflowRequest,
        on_delta: OnDelta | None = None,
        on_begun: OnBegun | None = None,
        on_preparing: OnPreparing | None = None,
    ) -> WorkflowResult:
        """Run one call of the workflow `name`, beside the reading of its files.

        For a caller that can wait no longer, the function that `on_preparing` receives has the turn begun before its
        files are read, or a step recorded without those that are not read yet.

        Recording a step is 1 database round trip, asking a model 2, and for the workflow that judges claims the read
        of the newest page before. Raises as `ChatService.run`, and `InvalidArgument` if files or a diff were named of
        which nothing could be read.
        """
        workflow = self._workflows[name]
        request.validate(self._limits, needs_prompt=workflow.header.prompt is None)
        if not request.ask_model:
            return await self._record(workflow, request, on_preparing)
        if request.diff is None and workflow.header.diff_default is not None:
            request = replace(request, diff=workflow.header.diff_default)
        return await self._ask(workflow, request, on_delta, on_begun, on_preparing)

    def result_of(self, name: str, turn: ChatResult) -> WorkflowResult:
        """Return the result of a stored turn of the workflow `name`, as its caller would have received it."""
        return result_of_turn(self._workflows[name], turn)

    async def _record(
        self, workflow: Workflow, request: WorkflowRequest, on_preparing: OnPreparing | None
    ) -> WorkflowResult:
        found = await self._read_in_time(request, on_preparing)
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
        self,
        workflow: Workflow,
        request: WorkflowRequest,
        on_delta: OnDelta | None,
        on_begun: OnBegun | None,
        on_preparing: OnPreparing | None,
    ) -> WorkflowResult:
        claim = await self._challenges.find(workflow.name, request) if workflow.header.prompt is not None else None
        model = request.model if claim is None else claim.judge
        asked = ChatRequest(
            owner=request.owner,
            prompt=claim.question if claim else question_of(request),
            model=model,
            continuation_id=request.continuation_id,
            idempotency_key=request.idempotency_key,
            expected_revision=request.expected_revision,
            title=opening(request.prompt) if request.prompt else None,
            tool=workflow.name,
            guidance=Guidance(workflow.instructions, request.identity()),
            cache=request.cache,
        )

        async def prepare() -> ChatRequest:
            return self._complete(workflow, request, asked, claim, await self._read(request, model))

        if _names_files(request):
            asked = replace(asked, prepare=prepare)
        else:
            asked = self._complete(workflow, request, asked, claim, SourcesRead())
        return result_of_turn(workflow, await self._chat.run(asked, on_delta, on_begun, on_preparing))

    def _complete(
        self,
        workflow: Workflow,
        request: WorkflowRequest,
        asked: ChatRequest,
        claim: JudgedClaim | None,
        found: SourcesRead,
    ) -> ChatRequest:
        """Return what a model is asked, with the files that were read."""
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
        prompt = asked.prompt if claim else question_of(request, found.left_out_text)
        return replace(asked, prompt=prompt, files=found.files, sources=found.sources, guidance=guidance, prepare=None)

    async def _read_in_time(self, request: WorkflowRequest, on_preparing: OnPreparing | None) -> SourcesRead:
        """Read the files of a step, or note that they were not read before the caller's limit."""
        reading = asyncio.ensure_future(self._read(request))
        late = asyncio.Event()

        async def stop() -> None:
            late.set()

        if on_preparing is not None:
            on_preparing(stop)
        waiting = asyncio.ensure_future(late.wait())
        try:
            await asyncio.wait({reading, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
            again = ("files that have changed",) if request.reread else ()
            named = (*again, *request.files, *(f"diff {each}" for each in (request.diff,) if each))
            return SourcesRead(left_out=tuple(f"{each} ({NOT_IN_TIME})" for each in named))
        finally:
            for each in (reading, waiting):
                each.cancel()
            await asyncio.wait({reading, waiting})

    async def _read(self, request: WorkflowRequest, model: str | None = None) -> SourcesRead:
        """Read the files and the diff of a call, as `SourceReader.read` does."""
        if not _names_files(request):
            return SourcesRead()
        asked = await self._providers.find(model)
        room_tokens = self._providers.sizing.room(asked, None)
        budget_tokens = int(room_tokens * MATERIAL_SHARE)
        return await self._sources.read(
            request.owner,
            SourceRequest(
                request.files,
                request.diff,
                request.directory,
                budget_tokens,
                reread=request.continuation_id if request.reread else None,
                scan_cure=self._documents.scan_cure(asked),
            ),
        )


def _names_files(request: WorkflowRequest) -> bool:
    rereads = request.reread and request.continuation_id is not None
    return bool(request.files) or request.diff is not None or rereads
