"""Find the claim that is to be judged, and a judge that did not make it.

Invariant: the judge sees the claim and the conversation's evidence (questions, files, findings), never the other
answers of the conversation, whose reasoning it would repeat, nor the instructions of other questions. No later model
sees those of the judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from exai.conversations import ConversationStore
from exai.conversations.turns.instructions import with_instructions
from exai.errors import InvalidArgument, NotConfigured
from exai.models import DERIVED_KINDS, Message
from exai.providers.registry import Providers
from exai.workflows.requests import WorkflowRequest
from exai.workflows.rows import WORKFLOW

CLAIM_OF: Final = "claim_seq"
"""The field of a question's metadata with the number of the answer that it has judged."""

SAME_MODEL: Final = "the claim was judged by the model that made it, because no other model is configured"


@dataclass(frozen=True, slots=True)
class JudgedClaim:
    """A claim to judge. `question` is stored; `shown` is shown to the judge after it, then its `instructions`."""

    instructions: str
    question: str
    shown: str
    judge: str | None
    metadata: dict[str, Any]
    notes: tuple[str, ...]

    def select(self, history: Sequence[Message]) -> Sequence[Message]:
        """Return the evidence in a history, with the claim in its question."""
        evidence = [with_instructions(message, None) for message in history if message.role != "assistant"]
        newest = max(evidence, key=lambda message: message.seq)
        others = [message for message in evidence if message.seq != newest.seq]
        claim = f"\n\n<claim>\n{self.shown}\n</claim>" if self.shown else ""
        return [*others, with_instructions(newest._replace(content=newest.content + claim), self.instructions)]


class Challenges:
    """Finds claims and judges; one read of a conversation's newest page for each, which the cache mostly has."""

    def __init__(self, conversations: ConversationStore, providers: Providers) -> None:
        self._conversations, self._providers = conversations, providers

    async def find(self, workflow: str, request: WorkflowRequest) -> JudgedClaim:
        """Return the claim of a request: its prompt, else the newest answer that is none of this workflow's own.

        Raises `InvalidArgument` if there is neither.
        """
        newest = await self._newest_answer(workflow, request)
        if request.prompt is None and newest is None:
            raise InvalidArgument("prompt", "is missing, and no answer was found to judge", "Give the claim as prompt")
        judge, notes = self._judge(request.model, newest)
        if request.prompt is not None or newest is None:
            return JudgedClaim(workflow, f"Judge this claim: {request.prompt}", "", judge, {}, notes)
        question = f"Judge message {newest.seq} of this conversation."
        return JudgedClaim(workflow, question, newest.content, judge, {CLAIM_OF: newest.seq}, notes)

    async def _newest_answer(self, workflow: str, request: WorkflowRequest) -> Message | None:
        if request.continuation_id is None:
            return None
        page = await self._conversations.read(request.owner, request.continuation_id)
        judged = {message.turn_id for message in page.messages if message.metadata.get(WORKFLOW) == workflow}
        answers = (
            message
            for message in reversed(page.messages)
            if message.role == "assistant"
            and message.kind not in (*DERIVED_KINDS, "partial", "failed")
            and (message.turn_id is None or message.turn_id not in judged)
        )
        return next(answers, None)

    def _judge(self, wanted: str | None, claim: Message | None) -> tuple[str | None, tuple[str, ...]]:
        """Return the model to ask, and a note if it is the one that made the claim."""
        author = self._name(claim.metadata.get("model")) if claim else None
        if author is None:
            return wanted, ()
        if wanted is not None:
            return wanted, (SAME_MODEL.partition(",")[0],) if self._name(wanted) == author else ()
        provider = claim.metadata.get("provider") if claim else None
        others = [each for each in self._providers.models() if each.configured and each.name != author]
        others.sort(key=lambda each: (each.provider == provider, not each.default))
        return (others[0].name, ()) if others else (None, (SAME_MODEL,))

    def _name(self, model: object) -> str | None:
        """Return the name under which a model is configured; another client's name stays as it is."""
        if not isinstance(model, str):
            return None
        try:
            return self._providers.resolve(model).name
        except (InvalidArgument, NotConfigured):
            return model
