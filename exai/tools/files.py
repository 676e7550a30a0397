"""The file tools: store, read, list, link and delete files."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from exai.errors import InvalidArgument
from exai.files.loading import FileContent, FilePath
from exai.files.parts import FilePart
from exai.files.paths import joined
from exai.files.service import FileService
from exai.mcp.features.results import ToolOutput
from exai.mcp.features.texts import items
from exai.mcp.features.tools import TRANSFER_TIMEOUT_S, Arguments, CallContext, ToolSpec
from exai.models import PAGE_MESSAGES, ContinuationId, FileId, Owner, StoredFile
from exai.tools.limits import LARGE_ANSWERS, Size, answer_limit, size_of, take_rows, take_text
from exai.validation import MAX_LIST, utf8_of

MAX_PAGE_CHARS = 200_000
MAX_PAGE_LINES = 100_000
_URL_ALPHABET = str.maketrans("-_", "+/")
LINE = ("file_id", "name", "media_type", "size_bytes", "created_at")
"""Fields of a file in the text of a list."""


class PutArguments(Arguments):
    """Arguments of `file_put`."""

    KEEPS_EMPTY = frozenset({"content"})

    name: str | None = Field(None, description="File name; required with content, by default that of path.")
    content: str | None = Field(None, description="The content, as text.")
    content_base64: str | None = Field(None, description="The content in base64, if it is not text.")
    path: str | None = Field(None, description="Or a path on the daemon's machine, below an allowed root.")
    media_type: str | None = Field(None, description="Such as text/markdown; default: by the name.")

    @model_validator(mode="before")
    @classmethod
    def _without_an_empty_content(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Drop an empty content beside another one: some clients fill in every optional argument."""
        if given.get("content") == "" and (given.get("content_base64") or given.get("path")):
            return {name: value for name, value in given.items() if name != "content"}
        return given


@dataclass
class FileOutput(ToolOutput):
    """A stored file."""

    file_id: str
    name: str
    media_type: str
    size_bytes: int
    sha256: str
    created_at: str

    @classmethod
    def of(cls, file: StoredFile, **more: Any) -> Self:
        """Make the output for a file; `more` holds the fields that a subclass adds."""
        return cls(
            file_id=file.id,
            name=file.name,
            media_type=file.media_type,
            size_bytes=file.size_bytes,
            sha256=file.sha256,
            created_at=file.created_at.isoformat(),
            **more,
        )


@dataclass
class PutOutput(FileOutput):
    """Answer of `file_put`."""

    created: Annotated[
        bool, Field(description="False when this content was stored before, with this name and media type.")
    ]

    def as_text(self) -> str:
        """Say whether this call stored the content."""
        return "The file is stored." if self.created else "This content had been stored before."


class FileGetArguments(Arguments):
    """Arguments of `file_get`."""

    file_id: FileId
    offset: int = Field(0, ge=0, description="In characters of a text, in bytes of other contents.")
    line: int | None = Field(None, ge=1, description="Or the first line of a text.")
    lines: int | None = Field(None, ge=1, le=MAX_PAGE_LINES, description="Number of lines; with line.")
    limit: int | None = Field(None, ge=1, le=MAX_PAGE_CHARS, description="Left out: what clients show.")


@dataclass
class FileGetOutput(FileOutput):
    """Answer of `file_get`. A note states the encoding of a text, and bytes that could not be decoded."""

    encoding: Literal["text", "base64"]
    charset: Annotated[
        str | None, Field(description="Encoding from which the text was decoded; null for other contents.")
    ]
    notes: list[str]
    content: str
    next_offset: Annotated[int | None, Field(description="Where the next part begins; null when this is the last.")]
    next_line: Annotated[int | None, Field(description="The next line, if lines were asked for and more follow.")] = (
        None
    )

    def as_text(self) -> str:
        """Return the part of the content."""
        return self.content


class FileListArguments(Arguments):
    """Arguments of `file_list`."""

    continuation_id: ContinuationId | None = Field(None, description="Only files of this conversation.")
    limit: int = Field(PAGE_MESSAGES, ge=1, le=MAX_LIST)
    cursor: str | None = Field(None, description="next_cursor of the previous page.")


@dataclass
class FileListOutput(ToolOutput):
    """Answer of `file_list`."""

    files: Annotated[list[FileOutput], Field(description="Newest first.")]
    next_cursor: str | None

    def as_text(self) -> str:
        """Return one line for each file."""
        return items(map(vars, self.files), LINE) or "There are no files."


class LinkArguments(Arguments):
    """Arguments of `file_link`."""

    continuation_id: ContinuationId
    file_ids: list[FileId] = Field(min_length=1, max_length=MAX_LIST)


@dataclass
class LinkOutput(ToolOutput):
    """Answer of `file_link`."""

    continuation_id: str
    linked: int

    def as_text(self) -> str:
        """State the number of links that did not exist before."""
        return f"{self.linked} new links."


class FileDeleteArguments(Arguments):
    """Arguments of `file_delete`."""

    file_id: FileId


@dataclass
class FileDeleteOutput(ToolOutput):
    """Answer of `file_delete`."""

    file_id: str
    deleted: Literal[True] = True

    def as_text(self) -> str:
        """Confirm the deletion."""
        return "The file is deleted."


def file_tools(files: FileService) -> tuple[ToolSpec, ...]:
    """Make the file tools."""
    return (_put_tool(files), _get_tool(files), _list_tool(files), _link_tool(files), _delete_tool(files))


def _put_tool(files: FileService) -> ToolSpec:
    async def handle(arguments: PutArguments, context: CallContext) -> PutOutput:
        given = [arguments.content, arguments.content_base64, arguments.path]
        if sum(each is not None for each in given) != 1:
            raise InvalidArgument("content", "one of content, content_base64 and path is needed", "Give exactly one")
        try:
            file = await put(arguments, context.owner, context.directory)
        except InvalidArgument as error:
            raise _as_argument(error, "content" if arguments.path is None else "path") from None
        return PutOutput.of(file, created=file.created)

    async def put(arguments: PutArguments, owner: Owner, directory: str) -> StoredFile:
        if arguments.path is not None:
            path = joined(directory, arguments.path)
            (file,) = await files.put_paths(owner, [FilePath(path, arguments.name, arguments.media_type)])
            return file
        if arguments.name is None:
            raise InvalidArgument("name", "is missing", "Give the file's name")
        (file,) = await files.put(owner, [FileContent(arguments.name, bytes_of(arguments), arguments.media_type)])
        return file

    return ToolSpec(
        name="file_put",
        title="Store a file",
        description="Store a file. Pass the file_id to chat, conversation_append or file_link.",
        arguments=PutArguments,
        output=PutOutput,
        handler=handle,
        lists_output=True,
        idempotent=True,
        timeout_s=TRANSFER_TIMEOUT_S,
    )


def _get_tool(files: FileService) -> ToolSpec:
    async def handle(arguments: FileGetArguments, context: CallContext) -> FileGetOutput:
        shown = answer_limit(context.client)
        limit = shown.chars if arguments.limit is None else min(arguments.limit, MAX_PAGE_CHARS)
        if arguments.line is not None or arguments.lines is not None:
            return await lines_of(arguments, context, answer_limit(context.client, max(shown.chars, limit)), limit)
        part = await files.read_part(context.owner, arguments.file_id, arguments.offset, limit)
        within = answer_limit(context.client, max(shown.chars, limit))
        encoding, content, next_offset = _shown(part, arguments.offset, within)
        return FileGetOutput.of(
            part.file,
            encoding=encoding,
            charset=None if part.text is None else part.file.encoding,
            notes=[part.note] if part.note else [],
            content=content,
            next_offset=next_offset,
        )

    async def lines_of(arguments: FileGetArguments, context: CallContext, within: Size, limit: int) -> FileGetOutput:
        if arguments.offset:
            raise InvalidArgument("offset", "counts characters, and line lines", "Give one of them")
        first, most = arguments.line or 1, arguments.lines or MAX_PAGE_LINES
        found = await files.read_lines(context.owner, arguments.file_id, first, most, limit)
        content, rest = take_text(found.text, 0, within, "offset")
        next_line = None if found.is_last else found.first + found.lines
        if rest is not None:
            # Whole lines, or the beginning of a line that is longer than an answer.
            content = content[: content.rfind("\n") + 1] or content
            next_line = found.first + content.count("\n") if content.endswith("\n") else None
        is_last = found.is_last and len(content) == len(found.text)
        return FileGetOutput.of(
            found.file,
            encoding="text",
            charset=found.file.encoding,
            notes=[found.note] if found.note else [],
            content=content,
            next_offset=None if is_last else found.offset + len(content),
            next_line=next_line,
        )

    return ToolSpec(
        name="file_get",
        title="Read a file",
        description="Read a stored file; a long one in parts, by offset or by line.",
        arguments=FileGetArguments,
        output=FileGetOutput,
        handler=handle,
        lists_output=True,
        read_only=True,
        meta=LARGE_ANSWERS,
    )


def _list_tool(files: FileService) -> ToolSpec:
    async def handle(arguments: FileListArguments, context: CallContext) -> FileListOutput:
        page = await files.list(
            context.owner,
            continuation_id=arguments.continuation_id,
            limit=arguments.limit,
            cursor=arguments.cursor,
        )
        shown = take_rows(page.files, FileOutput.of, answer_limit(context.client))
        return FileListOutput(files=shown, next_cursor=page.cursor_after(len(shown)))

    return ToolSpec(
        name="file_list",
        title="List files",
        description="List stored files, newest first.",
        arguments=FileListArguments,
        output=FileListOutput,
        handler=handle,
        lists_output=True,
        read_only=True,
    )


def _link_tool(files: FileService) -> ToolSpec:
    async def handle(arguments: LinkArguments, context: CallContext) -> LinkOutput:
        linked = await files.link(context.owner, arguments.continuation_id, arguments.file_ids)
        return LinkOutput(continuation_id=arguments.continuation_id, linked=linked)

    return ToolSpec(
        name="file_link",
        title="Link files",
        description="Link files to a conversation, all or none; existing links stay.",
        arguments=LinkArguments,
        output=LinkOutput,
        handler=handle,
        idempotent=True,
    )


def _delete_tool(files: FileService) -> ToolSpec:
    async def handle(arguments: FileDeleteArguments, context: CallContext) -> FileDeleteOutput:
        await files.delete(context.owner, arguments.file_id)
        return FileDeleteOutput(file_id=arguments.file_id)

    return ToolSpec(
        name="file_delete",
        title="Delete a file",
        description="Delete a file and its links to conversations.",
        arguments=FileDeleteArguments,
        output=FileDeleteOutput,
        handler=handle,
        destructive=True,
    )


def _as_argument(error: InvalidArgument, content: str) -> InvalidArgument:
    """Return an error of the service about its list of files as one about the arguments of the only file."""
    if not error.field.startswith("files"):
        return error
    field = error.field.partition(".")[2]
    cure = error.cure.removesuffix(", or a file_id")
    return InvalidArgument(field if field in ("name", "media_type") else content, error.problem, cure)


def bytes_of(arguments: PutArguments) -> bytes:
    """Return the content of the arguments as bytes. Raises InvalidArgument."""
    if arguments.content is not None:
        return utf8_of("content", arguments.content)
    try:
        return _decoded(arguments.content_base64 or "")
    except (binascii.Error, ValueError):
        raise InvalidArgument("content_base64", "is not base64", "Use the standard alphabet with padding") from None


def _decoded(text: str) -> bytes:
    """Decode base64 as programs write it: wrapped, in the URL-safe alphabet, without padding, or in a data: URL."""
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise ValueError(head)
    text = "".join(text.split()).translate(_URL_ALPHABET)
    return base64.b64decode(text if text.endswith("=") else text + "=" * (-len(text) % 4), validate=True)


def _shown(part: FilePart, offset: int, within: Size) -> tuple[Literal["text", "base64"], str, int | None]:
    """Return the encoding, the part that fits, and the next offset, in characters of a text and otherwise in bytes."""
    if part.text is None:
        take = min(len(part.data), within.chars * 3 // 4)
        while take > 3 and (excess := within.excess(size_of(base64.b64encode(part.data[:take]).decode()))) > 1:
            take = max(3, min(take - 3, int(take / excess)) // 3 * 3)
        more = part.next_offset if take == len(part.data) else offset + take
        return "base64", base64.b64encode(part.data[:take]).decode(), more
    content, rest = take_text(part.text, 0, within, "offset")
    return "text", content, part.next_offset if rest is None else offset + rest
