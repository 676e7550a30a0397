"""`exai chat`: a conversation with a model at a terminal or in a pipe.

Invariant: standard output holds answers and nothing else, so that it can be piped; messages about them,
above all the continuation id, go to standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TextIO

from exai.app import App, open_app
from exai.cli.browse import Output, check_owner, list_newest, newest_id, owner_option, whole_id
from exai.cli.command import with_few_connections
from exai.cli.terminal_text import shown
from exai.conversations import ChatRequest
from exai.errors import ConfigError, ExaiError, InvalidArgument
from exai.files.sources import SourcesRead
from exai.models import LOCAL_OWNER, CacheUse, ContinuationId, Delta, Owner
from exai.program import program
from exai.settings.load import Settings

PROMPT = "> "


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """The options of the command line; `words` are the prompt, where `-` stands for standard input.

    `program` is the command to call this program again.
    """

    words: tuple[str, ...] = ()
    continuation_id: str | None = None
    model: str | None = None
    list_only: bool = False
    program: str = "exai"
    is_last: bool = False
    """Continue the newest conversation."""

    owner: Owner = LOCAL_OWNER
    cache: CacheUse = "off"
    reread: bool = False
    """Read the files of the conversation that have changed on disk again, with each question."""


@dataclass(frozen=True, slots=True)
class Streams:
    """The streams to read and write, which tests replace."""

    input: TextIO
    output: TextIO
    error: TextIO


async def run_chat(settings: Settings, options: ChatOptions, streams: Streams) -> int:
    """Carry out the options and return the exit status. Raises ExaiError."""
    if options.reread and not (options.continuation_id or options.is_last):
        raise ConfigError("--reread", "needs a conversation with files", "Give --continue ID or --last")
    interactive = not options.words and not options.list_only and streams.input.isatty()
    prompt = None if interactive or options.list_only else read_prompt(options.words, streams.input, settings)
    async with open_app(with_few_connections(settings)) as app:
        await check_owner(app, settings, options.owner)
        if options.list_only:
            await list_newest(app, options.owner, Output(streams.output, streams.error))
            return 0
        talk = _Talk(app, options, streams, await _meant(app, options))
        await (talk.ask_until_end() if prompt is None else talk.ask_once(prompt))
    return 0


async def _meant(app: App, options: ChatOptions) -> ContinuationId | None:
    """Return the conversation to continue, or None for a new one."""
    if options.is_last:
        return await newest_id(app, options.owner)
    if options.continuation_id is None:
        return None
    return await whole_id(app, options.owner, options.continuation_id, options.program)


def read_prompt(words: tuple[str, ...], source: TextIO, settings: Settings) -> str:
    """Join the words to a prompt; standard input is read in place of `-`, or if there are no words.

    Raises InvalidArgument for an empty prompt, or one over the message limit.
    """
    limit = settings.limits.message_bytes
    parts: list[str] = []
    spoken: list[str] = []
    for word in words or ("-",):
        if word == "-":
            parts += [" ".join(spoken), _read(source, limit + 1).strip()]
            spoken = []
        else:
            spoken.append(word)
    prompt = "\n\n".join(part for part in (*parts, " ".join(spoken)) if part)
    if not prompt.strip():
        raise InvalidArgument(
            "prompt", "is empty", f'Write it after the command, {program()} chat "..."; - reads standard input'
        )
    if len(prompt) > limit:
        raise InvalidArgument(
            "prompt", f"is longer than {limit:,} bytes", "Shorten it, or raise EXAI_LIMITS__MESSAGE_BYTES"
        )
    return prompt


def _read(source: TextIO, size: int) -> str:
    try:
        return source.read(size)
    except UnicodeDecodeError as error:
        problem = f"standard input is not {error.encoding}"
        raise InvalidArgument("prompt", problem, "Convert it, or set PYTHONIOENCODING to what it is") from None


class _Talk:
    """One conversation, from its first question to the id that continues it."""

    def __init__(
        self, app: App, options: ChatOptions, streams: Streams, continuation_id: ContinuationId | None
    ) -> None:
        self._app, self._options, self._streams = app, options, streams
        self._continuation_id = continuation_id

    async def ask_once(self, prompt: str) -> None:
        try:
            await self._ask(prompt)
        finally:
            self._say_how_to_continue()

    async def ask_until_end(self) -> None:
        """Ask the typed questions, one per line, until the input ends; a failed question does not end the loop."""
        self._say("Type a question; Ctrl-D ends.")
        try:
            async with _typed_lines() as lines:
                async for line in lines:
                    if not line.strip():
                        continue
                    try:
                        await self._ask(line)
                    except ExaiError as error:
                        self._say(f"exai: {error}")
            # End the line with the empty prompt.
            self._say("")
        finally:
            self._say_how_to_continue()

    async def _ask(self, prompt: str) -> None:
        output = self._streams.output
        written = ""
        thinking_said = not output.isatty()

        async def on_delta(delta: Delta) -> None:
            nonlocal written, thinking_said
            if delta.note:
                self._say(f"({delta.note})")
            if delta.reasoning and not thinking_said:
                thinking_said = True
                self._say("(thinking)")
            if delta.content:
                written = delta.content[-1]
                output.write(shown(delta.content, output))
                output.flush()

        request = ChatRequest(self._options.owner, prompt, model=self._options.model, cache=self._options.cache)
        request = replace(request, continuation_id=self._continuation_id)
        try:
            again = await self._read_again()
            result = await self._app.chat.run(replace(request, reread=again.files, sources=again.sources), on_delta)
            self._continuation_id = result.continuation_id
            if not written:
                # A repeated answer, which had been stored before, arrives whole, without streaming.
                written = result.content[-1:]
                output.write(shown(result.content, output))
            notes = result.notes
        except ExaiError as error:
            if error.continuation_id is not None:
                self._continuation_id = ContinuationId(error.continuation_id)
            raise
        finally:
            if written and written != "\n":
                output.write("\n")
            output.flush()
        for note in notes:
            self._say(f"(note: {note})")

    async def _read_again(self) -> SourcesRead:
        """Read changed files of the conversation again, if that is asked for, and name them."""
        if not self._options.reread or self._continuation_id is None:
            return SourcesRead()
        again = await self._app.sources.reread(self._options.owner, self._continuation_id)
        for note in (*(f"read again: {each}" for each in again.read), *again.left_out, *again.notes):
            self._say(f"(note: {note})")
        return again

    def _say(self, text: str) -> None:
        print(shown(text, self._streams.error), file=self._streams.error, flush=True)

    def _say_how_to_continue(self) -> None:
        if self._continuation_id:
            owner = owner_option(self._options.owner)
            self._say(f"continue with: {self._options.program} chat{owner} --continue {self._continuation_id}")


@asynccontextmanager
async def _typed_lines() -> AsyncIterator[AsyncIterator[str]]:
    """Yield the lines typed at the terminal, edited with readline, without blocking the event loop.

    They are read by a thread, since `input` cannot be interrupted. At the end the thread is left blocked, and the
    terminal is restored to the state in which readline would have left it.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | None] = asyncio.Queue(maxsize=1)
    wanted = threading.Semaphore(0)

    def read() -> None:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives `input` its line editing
        while wanted.acquire():
            try:
                line = input(PROMPT)
            except (EOFError, KeyboardInterrupt, ValueError):
                line = None
            # The loop is closed if the program was interrupted meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(lines.put_nowait, line)
            if line is None:
                return

    async def each_line() -> AsyncIterator[str]:
        while True:
            wanted.release()
            line = await lines.get()
            if line is None:
                return
            yield line

    with _restored_terminal():
        threading.Thread(target=read, name="typed lines", daemon=True).start()
        yield each_line()


@contextlib.contextmanager
def _restored_terminal() -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    import termios

    descriptor = sys.stdin.fileno()
    state = termios.tcgetattr(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, state)
