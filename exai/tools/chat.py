"""The `chat` tool: one question to a model, stored in a conversation and continued by its continuation id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field

from exai.conversations import ChatRequest, ChatResult, ChatService
from exai.errors import InvalidArgument
from exai.files.origins import GivenFiles
from exai.files.service import FileService
from exai.files.sources import ChangedFile, SourceReader, SourceRequest, SourcesRead
from exai.files.sources.entries import path_of, range_of
from exai.files.sources.globs import is_glob
from exai.mcp.core.protocol import ClientInfo
from exai.mcp.features.results import ToolOutput
from exai.mcp.features.tools import Arguments, CallContext, ToolSpec
from exai.models import ContinuationId, WebSource
from exai.tools.answers import CacheArgument, OriginOutput
from exai.tools.limits import ALWAYS_LOADED, NO_CLIENT, answer_limit, size_of, take_rows, take_text
from exai.tools.progress import AnswerProgress

LISTED: Final = 0.2
"""Largest share of an answer that the pages found by a search take."""


class ChatArguments(Arguments):
    """Arguments of `chat`."""

    prompt: str = Field(description="The question or instruction.")
    model: str | None = Field(None, description="Model or alias, see listmodels. Left out: the configured default.")
    continuation_id: ContinuationId | None = Field(None, description="Continue this conversation. Left out: a new one.")
    system: str | None = Field(None, description="System prompt; applies to the conversation until replaced.")
    idempotency_key: str | None = Field(
        None, description="A call repeated with the same key is one turn and one model call."
    )
    expected_revision: int | None = Field(None, ge=0, description="Refuse if the conversation has another revision.")
    max_output_tokens: int | None = Field(None, ge=1, description="Limit of the answer, reasoning included.")
    thinking: Literal["off", "low", "high", "max"] | None = Field(None, description="Amount of reasoning.")
    web_search: bool = Field(False, description="Let the model search the web, if its provider can.")
    cache: CacheArgument = Field(
        "off", description="use: reuse an answer given to the same prompt; refresh: replace it."
    )
    files: list[str] | None = Field(
        None, description="Paths, directories, globs, path:10-80 or file_ids; the server reads them."
    )
    reread: bool = Field(False, description="Read changed files of the conversation again.")


@dataclass
class SourceOutput:
    """A page that a search of the web found."""

    title: str
    url: str

    @classmethod
    def of(cls, source: WebSource) -> Self:
        """Make the output for a page."""
        return cls(source.title, source.url)


@dataclass
class ChangedFileOutput:
    """A file that the model was shown as stored: changed, gone, outside or unknown on disk."""

    path: str
    state: str
    file_id: str

    @classmethod
    def of(cls, changed: ChangedFile) -> Self:
        """Make the output for a file."""
        return cls(changed.path, changed.state, changed.file_id)


@dataclass
class UsageOutput:
    """Token counts as the provider reported them."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int


@dataclass
class ChatOutput(ToolOutput):
    """Answer of `chat`, and of other tools that ask a model."""

    content: str
    next_offset: Annotated[
        int | None, Field(description="Where a long answer continues; null when content is complete.")
    ]
    continuation_id: str
    model: str
    provider: str
    seq: Annotated[int, Field(description="Number of the answer in its conversation.")]
    revision: int
    usage: UsageOutput
    finish_reason: str
    duration_ms: float
    duplicate: Annotated[bool, Field(description="True when a call with this idempotency key was answered before.")]
    prompt_tokens_left: Annotated[int | None, Field(description="Estimated room left in the model's window.")]
    left_out: Annotated[int, Field(description="Number of older messages that did not fit the model's window.")]
    partial: Annotated[bool, Field(description="True when the model may have said more than content holds.")]
    unread_events: Annotated[int, Field(description="Number of parts of the model's stream that could not be read.")]
    instead_of: Annotated[
        str | None, Field(description="Model that was asked first and could not answer; notes say why.")
    ]
    sources: list[SourceOutput]
    from_cache: Annotated[OriginOutput | None, Field(description="Set if the answer was not asked for now.")]
    changed_files: Annotated[
        list[ChangedFileOutput], Field(description="Files shown as stored that differ from those on disk.")
    ]
    notes: list[str]

    @classmethod
    def of(cls, result: ChatResult, client: ClientInfo = NO_CLIENT) -> Self:
        """Make the output for the result of a turn; a long answer is cut to what the client shows."""
        usage, limit = result.usage, answer_limit(client)
        sources = take_rows(result.sources, SourceOutput.of, limit.share(LISTED))
        changed = take_rows(result.changed_files, ChangedFileOutput.of, limit.share(LISTED))
        content, next_offset = take_text(result.content, 0, limit - size_of([sources, changed, result.notes]))
        return cls(
            content=content,
            next_offset=next_offset,
            continuation_id=result.continuation_id,
            model=result.model,
            provider=result.provider,
            seq=result.seq,
            revision=result.revision,
            usage=UsageOutput(usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens),
            finish_reason=result.finish_reason,
            duration_ms=round(result.duration_ms, 1),
            duplicate=result.duplicate,
            prompt_tokens_left=result.prompt_tokens_left,
            left_out=result.left_out,
            partial=result.partial,
            unread_events=result.unread_events,
            instead_of=result.instead_of,
            sources=sources,
            from_cache=OriginOutput.of(result.origin),
            changed_files=changed,
            notes=_notes(result, next_offset, len(result.sources) - len(sources)),
        )

    def as_text(self) -> str:
        """Return the answer, which model gave it if another one was asked, and the pages that a search found."""
        parts = [self.content]
        if self.instead_of is not None:
            begun = f"{self.model} answered instead of"
            parts += [f"({note})" for note in self.notes if note.startswith(begun)]
        if self.sources:
            parts.append("\n".join(["Sources:", *(f"- {each.title} {each.url}" for each in self.sources)]))
        return "\n\n".join(parts)


def chat_tool(chat: ChatService, files: FileService, sources: SourceReader) -> ToolSpec:
    """Make the `chat` tool."""

    async def handle(arguments: ChatArguments, context: CallContext) -> ChatOutput:
        progress = AnswerProgress(context)
        request = _request(arguments, context)
        again = found = SourcesRead()

        async def prepare() -> ChatRequest:
            nonlocal again, found
            given = GivenFiles(())
            try:
                given = await files.resolve(context.owner, request.named, context.directory)
            except InvalidArgument as error:
                if not _names_several(request.named, error):
                    raise
                material = SourceRequest(
                    tuple(request.named), directory=Path(context.directory) if context.directory else None
                )
                found = await sources.read(context.owner, material)
                given = GivenFiles(found.files, found.sources)
            if arguments.reread and arguments.continuation_id is not None:
                again = await sources.reread(context.owner, arguments.continuation_id)
            prompt = "\n\n".join(filter(None, (request.prompt, found.left_out_text)))
            return replace(
                request,
                prompt=prompt,
                files=given.ids,
                reread=again.files,
                sources={**given.sources, **again.sources},
                prepare=None,
            )

        if request.named or arguments.reread:
            request = replace(request, prepare=prepare)
        result = await chat.run(request, progress.on_delta, progress.on_begun, context.preparing)
        said = (
            *(f"read: {each}" for each in found.read),
            *(f"left out: {each}" for each in found.left_out),
            *found.notes,
        )
        notes = (*said, *(f"read again: {each}" for each in again.read), *again.left_out, *again.notes, *result.notes)
        return ChatOutput.of(replace(result, notes=notes), context.client)

    return ToolSpec(
        name="chat",
        title="Chat with a model",
        description=(
            "Ask Kimi, GLM or another model a question, or for a second opinion, with files, images or a search of the "
            "web. The exchange is stored; pass the returned continuation_id to continue it at any time, from any "
            "client. If next_offset is not null, the answer continues: call conversation_get with the "
            "continuation_id, the seq, and next_offset as char_offset."
        ),
        arguments=ChatArguments,
        output=ChatOutput,
        handler=handle,
        open_world=True,
        joins_identical=True,
        answer_from=ChatOutput.of,
        timeout_s=None,
        meta=ALWAYS_LOADED,
    )


def _notes(result: ChatResult, next_offset: int | None, unlisted: int) -> list[str]:
    notes = list(result.notes)
    if unlisted:
        notes.append(f"{unlisted:,} more sources are left out; conversation_get has them in the metadata of the answer")
    if result.finish_reason == "length":
        notes.append("the answer was cut by the output limit; ask the model to go on, or allow more output tokens")
    elif result.finish_reason == "content_filter":
        notes.append("the provider's content filter ended the answer")
    if next_offset is not None:
        notes.append(
            f"this is only the beginning; conversation_get with this continuation_id, seq {result.seq} and "
            f"char_offset {next_offset} has the rest"
        )
    return notes


def _names_several(entries: Sequence[str], error: InvalidArgument) -> bool:
    """Return whether files were named by a directory, a glob or a range of lines, which are not one whole file."""
    paths = [path_of(each) for each in entries]
    return "regular file" in error.problem or any(is_glob(path) or range_of(path) for path in paths)


def _request(arguments: ChatArguments, context: CallContext) -> ChatRequest:
    return ChatRequest(
        owner=context.owner,
        prompt=arguments.prompt,
        model=arguments.model,
        continuation_id=arguments.continuation_id,
        system=arguments.system,
        idempotency_key=arguments.idempotency_key,
        expected_revision=arguments.expected_revision,
        max_output_tokens=arguments.max_output_tokens,
        thinking=arguments.thinking,
        named=tuple(arguments.files or ()),
        web_search=arguments.web_search,
        cache=arguments.cache,
    )
