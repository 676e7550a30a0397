"""Prompts by which users ask a model, continue a conversation or find an earlier one.

Invariant: a prompt shows its owner what the tools would show, and none calls a model by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

import orjson

from exai.conversations import ConversationStore
from exai.errors import InvalidArgument, NotFound
from exai.mcp.core.jsonrpc import Json
from exai.mcp.core.protocol import CallContext, Feature
from exai.mcp.features.prompts import PromptArgument, PromptRegistry, PromptSpec
from exai.mcp.features.tools import ToolSpec
from exai.models import ContinuationId, Owner, Page
from exai.tools.conversations.outputs import ConversationOutput, take_messages
from exai.tools.limits import size_limit

CONVERSATION = "exai://conversations/"
JSON_TYPE = "application/json"
SHOWN_CHARS = 30_000
"""Maximum size of a conversation's newest messages in a prompt; the tools return the rest."""

PROMPTS: Mapping[str, tuple[str, str, tuple[PromptArgument, ...]]] = {
    "ask": (
        "Ask a model",
        "Ask Kimi, GLM or another configured model; the exchange is stored.",
        (PromptArgument("question", "The question; may name the model to ask."),),
    ),
    "continue": (
        "Continue a conversation",
        "Continue a stored conversation from its newest message.",
        (PromptArgument("continuation_id", "The id, and after it the next question."),),
    ),
    "find": (
        "Find earlier conversations",
        "Search all stored messages and titles.",
        (PromptArgument("words", "The words to search for."),),
    ),
}
"""One argument each: Claude Code splits the input at spaces and assigns one word to each argument."""

WHAT = PromptArgument("prompt", "What is wanted; the id of a conversation to continue may come first.", required=False)
"""The argument of the prompts of tools."""

CUT_WORDS = (
    "(The client may have passed on only the first word of what I typed. If <command-args> or the command shows more "
    "words, all of them are meant.)"
)


def conversation_uri(continuation_id: ContinuationId) -> str:
    """Return the URI of a conversation as a resource."""
    return CONVERSATION + quote(continuation_id, safe="")


def prompts_of_tools(tools: Iterable[ToolSpec]) -> Sequence[PromptSpec]:
    """Make a prompt for each tool that asks a model as an expert."""
    return [_prompt_of(spec) for spec in tools if spec.answer_from is not None and spec.name != "chat"]


def _prompt_of(spec: ToolSpec) -> PromptSpec:
    async def render(given: Mapping[str, str], _context: CallContext) -> Sequence[Json]:
        words = (
            f"Use the tool {spec.name} of EXAI for the following. Name the files that it needs; it reads them itself. "
            "If the id of a conversation comes first, pass it as continuation_id. Do what next in the answer says, and "
            "tell me the outcome and the continuation_id."
        )
        asked = given.get(WHAT.name, "").strip()
        return [_said(f"{words}\n\n{_whole(asked) if asked else 'It is about what we are working on.'}")]

    return PromptSpec(spec.name, spec.title, spec.description, render, (WHAT,))


def prompt_feature(conversations: ConversationStore, tools: Iterable[ToolSpec]) -> Feature:
    """Make the feature with the prompts, of which some are tools."""

    async def ask(given: Mapping[str, str], _context: CallContext) -> Sequence[Json]:
        words = (
            "Use the tool chat of EXAI to ask the following, with its default model unless one is named, and tell me "
            "the answer and its continuation_id:"
        )
        return [_said(f"{words}\n\n{_whole(given['question'])}")]

    async def go_on(given: Mapping[str, str], context: CallContext) -> Sequence[Json]:
        page, question = await _find(conversations, context.owner, given["continuation_id"].strip())
        name = page.conversation.continuation_id
        messages, next_before_seq = take_messages(page, size_limit(SHOWN_CHARS))
        conversation = ConversationOutput.of(page.conversation).as_json()
        facts = {**conversation, "next_before_seq": next_before_seq, "messages": messages}
        resource = {"uri": conversation_uri(name), "mimeType": JSON_TYPE, "text": orjson.dumps(facts).decode()}
        question = question or (
            "If <command-args> or the command shows words after the continuation_id, they are my question. Otherwise "
            "sum up in a few sentences where it stands, and wait for my question."
        )
        words = f"Go on with this conversation; EXAI's tools know it by the continuation_id {name}.\n\n{question}"
        return [_shown({"type": "resource", "resource": resource}), _said(words)]

    async def find(given: Mapping[str, str], _context: CallContext) -> Sequence[Json]:
        words = "Use EXAI's conversation_search to find what was said about the following, and tell me what was found"
        return [_said(f"{words}, with the continuation_id of each conversation:\n\n{_whole(given['words'])}")]

    render = {"ask": ask, "continue": go_on, "find": find}
    own = [
        PromptSpec(name, title, description, render[name], arguments)
        for name, (title, description, arguments) in PROMPTS.items()
    ]
    return PromptRegistry([*own, *prompts_of_tools(tools)]).feature()


async def _find(conversations: ConversationStore, owner: Owner, typed: str) -> tuple[Page, str]:
    """Return the named conversation, and the question that a client may have put into the same argument."""
    try:
        return await conversations.read(owner, ContinuationId(typed)), ""
    except (NotFound, InvalidArgument):
        name, _, question = typed.partition(" ")
        if not question:
            raise
        return await conversations.read(owner, ContinuationId(name)), question.strip()


def _whole(words: str) -> str:
    """Return the typed text; a single word gets the note that it may be the first of several."""
    return words if len(words.split()) > 1 else f"{words}\n\n{CUT_WORDS}"


def _said(text: str) -> Json:
    return _shown({"type": "text", "text": text})


def _shown(content: Json) -> Json:
    return {"role": "user", "content": content}
