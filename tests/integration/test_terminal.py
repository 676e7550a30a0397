"""`exai chat` with real servers and a scripted provider: its output, and the stored conversation."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from exai.app import open_app
from exai.cli.chat import ChatOptions, Streams, run_chat
from exai.cli.command import MOST_CONNECTIONS
from exai.conversations.formats import ConversationText, MessageText
from exai.conversations.requests import ChatRequest
from exai.errors import ConfigError, InvalidArgument, NotFound, ProviderError
from exai.models import LOCAL_OWNER, NewMessage, Owner
from exai.settings.load import Settings, load_settings
from tests.support.commands import run_exai_as_text
from tests.support.daemon import ROOT, environment
from tests.support.pg_proxy import PgProxy
from tests.support.provider_server import ProviderServer, hang_after_first_token, kimi_answer, kimi_error
from tests.support.waiting import START_WAIT_S, wait_until

LIMIT_S = 30.0
"""For a program of its own to start, which imports everything."""


@pytest.fixture
async def provider() -> AsyncIterator[ProviderServer]:
    async with ProviderServer() as server:
        yield server


@pytest.fixture
def environ(provider: ProviderServer, postgres_url: str, redis_url: str, tmp_path: Path) -> dict[str, str]:
    return {
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_START_WAIT_S": str(START_WAIT_S),
        "EXAI_PROVIDERS__KIMI__API_KEY": "k",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
        "EXAI_PROVIDERS__MAX_ATTEMPTS": "1",
    }


@pytest.fixture
def settings(environ: dict[str, str]) -> Settings:
    return load_settings(environ, None)


async def chat(settings: Settings, *words: str, typed: str = "", **options: object) -> tuple[str, str]:
    """What was written to standard output and to standard error."""
    streams = Streams(io.StringIO(typed), io.StringIO(), io.StringIO())
    assert await run_chat(settings, ChatOptions(words, **options), streams) == 0  # type: ignore[arg-type]
    return streams.output.getvalue(), streams.error.getvalue()  # type: ignore[attr-defined]


def id_in(error: str) -> str:
    found = re.search(r"continue with: exai chat --continue (\S+)", error)
    assert found, error
    return found[1]


async def test_answer_goes_to_standard_output_alone_and_the_id_to_standard_error(
    settings: Settings, provider: ProviderServer
) -> None:
    """The answer can be piped."""
    provider.script(kimi_answer(["It is ", "four."], reasoning=["hm"]))
    out, error = await chat(settings, "two", "and", "two?")
    assert out == "It is four.\n"
    assert id_in(error)
    assert provider.chats[-1].body["messages"] == [{"role": "user", "content": "two and two?"}]


async def test_conversation_goes_on_and_is_listed(settings: Settings, provider: ProviderServer) -> None:
    """The id on standard error is good for the next call, days later."""
    provider.script(kimi_answer(["Four.\n"]), kimi_answer(["Yes."]))
    first = id_in((await chat(settings, typed="two and two?\n"))[1])
    out, error = await chat(settings, "Sure?", continuation_id=first)
    assert (out, id_in(error)) == ("Yes.\n", first)
    assert [each["content"] for each in provider.chats[-1].body["messages"]] == ["two and two?", "Four.\n", "Sure?"]
    out, error = await chat(settings, list_only=True)
    (line,) = out.splitlines()
    assert line.startswith(first)
    assert line.endswith("4 messages  two and two?")
    assert error == ""


async def test_empty_list_says_so_beside_standard_output(settings: Settings) -> None:
    """A program that counts lines counts none."""
    assert await chat(settings, list_only=True) == ("", "no conversations yet\n")


async def stored(
    settings: Settings, continuation_id: str, *contents: str, owner: str = "local", tags: tuple[str, ...] = ()
) -> None:
    about = ConversationText(continuation_id, title=f"Title of {continuation_id}", tags=tags)
    texts = [MessageText(seq, NewMessage("user", each), None, str(seq)) for seq, each in enumerate(contents, 1)]
    async with open_app(settings) as app:
        async for _ in app.transfer.import_text(Owner(owner), iter([about, *texts])):
            pass


def run_command(environ: Mapping[str, str], *arguments: str, encoding: str = "utf-8") -> tuple[int, str, str]:
    """One command as a person calls it, with a terminal of that encoding."""
    done = run_exai_as_text(*arguments, settings=environ, cwd=Path(environ["EXAI_DATA_DIR"]), encoding=encoding)
    return done.returncode, done.stdout, done.stderr


async def test_beginning_of_an_id_is_enough(settings: Settings, provider: ProviderServer) -> None:
    """If only one conversation begins so; an error names those that do."""
    for name in ("abc-1", "abc-2", "xyz"):
        await stored(settings, name, "hello")
    _, error = await chat(settings, "and?", continuation_id="x")
    assert id_in(error) == "xyz"
    with pytest.raises(InvalidArgument, match=r"2 conversations begin with 'abc': abc-[12], abc-[12]"):
        await chat(settings, "and?", continuation_id="abc")
    await stored(settings, "abc", "hello")
    _, error = await chat(settings, "and?", continuation_id="abc")
    assert id_in(error) == "abc", "a whole id is never ambiguous"


async def test_last_conversation_goes_on(settings: Settings, provider: ProviderServer) -> None:
    """Without looking for its id."""
    with pytest.raises(InvalidArgument, match="there is no conversation yet"):
        await chat(settings, "and?", is_last=True)
    await stored(settings, "older", "one")
    await stored(settings, "newer", "two")
    _, error = await chat(settings, "and?", is_last=True)
    assert id_in(error) == "newer"
    assert [each["content"] for each in provider.chats[-1].body["messages"]][-1].endswith("and?")


async def test_conversations_are_searched_and_shown(settings: Settings, environ: dict[str, str]) -> None:
    """With short ids; standard output is the result alone."""
    await stored(settings, "first", "the quick brown fox", "jumps")
    await stored(settings, "second", "over the lazy dog", tags=("animals", "work"))
    status, out, error = await asyncio.to_thread(run_command, environ, "search", "lazy", "dog")
    assert (status, error) == (0, "")
    assert out.splitlines()[0].startswith("second  [1]")
    assert "**lazy**" in out
    assert (await asyncio.to_thread(run_command, environ, "search", "unheard"))[1:] == ("", "nothing was found\n")
    for tags, found in ((("animals", "work"), ["second"]), (("animals", "other"), [])):
        options = [part for tag in tags for part in ("--tag", tag)]
        _, out, _ = await asyncio.to_thread(run_command, environ, "search", "the", *options)
        assert [line.split()[0] for line in out.splitlines()[::2]] == found
    status, out, error = await asyncio.to_thread(run_command, environ, "show", "fi")
    assert (status, error) == (0, "")
    assert out.splitlines()[0].startswith("first")
    assert out.index("the quick brown fox") < out.index("jumps")
    status, out, error = await asyncio.to_thread(run_command, environ, "show", "first", "--limit", "1")
    assert "jumps" in out
    assert "quick" not in out
    assert "the 1 newest" in error
    status, out, error = await asyncio.to_thread(run_command, environ, "show", "nothing")
    assert (status, out) == (1, "")
    assert "chat --list" in error


@pytest.mark.direct
async def test_a_command_of_one_user_opens_few_connections(
    settings: Settings, environ: dict[str, str], postgres_url: str
) -> None:
    """A hosted database has few, and each takes time at the start; fewer are opened if the setting says so."""
    await stored(settings, "first", "the quick brown fox")
    for size, opened in (("10", MOST_CONNECTIONS), ("1", 1)):
        for arguments in (("show", "first"), ("chat", "--list")):
            async with PgProxy(postgres_url) as proxy:
                given = {**environ, "EXAI_DATABASE__URL": proxy.url, "EXAI_DATABASE__POOL_SIZE": size}
                assert (await asyncio.to_thread(run_command, given, *arguments))[0] == 0
                assert proxy.connects == opened


async def test_operator_names_the_owner(settings: Settings, environ: dict[str, str], tmp_path: Path) -> None:
    """For every command on conversations; no owner sees another's."""
    await stored(settings, "mine", "a secret word", owner="alice")
    file = str(tmp_path / "mine.jsonl")
    for arguments in (("chat", "--list"), ("search", "secret"), ("show", "mine"), ("export", "mine", file)):
        status, out, _ = await asyncio.to_thread(run_command, environ, *arguments)
        assert "mine" not in out
        status, out, _ = await asyncio.to_thread(run_command, environ, *arguments, "--owner", "alice")
        assert status == 0
        assert "mine" in out or Path(file).exists()
    status, out, _ = await asyncio.to_thread(run_command, environ, "import", file, "--owner", "bob")
    assert status == 0
    assert "mine" in (await asyncio.to_thread(run_command, environ, "show", "mine", "--owner", "bob"))[1]
    status, _, error = await asyncio.to_thread(run_command, environ, "show", "mine", "--owner", "")
    assert (status, "--owner" in error) == (2, True)


async def test_owner_without_conversations_is_an_error_and_asks_no_model(
    settings: Settings, environ: dict[str, str], provider: ProviderServer, tmp_path: Path
) -> None:
    """A typing error must not look like an empty store, nor begin a conversation that its owner will not see."""
    await stored(settings, "mine", "a secret word", owner="alice")
    file = tmp_path / "mine.jsonl"
    for arguments in (
        ("chat", "--list"),
        ("chat", "--last", "hello"),
        ("chat", "--continue", "mine", "hello"),
        ("chat", "hello"),
        ("search", "secret"),
        ("show", "mine"),
        ("export", "mine", str(file)),
    ):
        status, out, error = await asyncio.to_thread(run_command, environ, *arguments, "--owner", "alise")
        assert (status, out) == (1, "")
        assert "there is no conversation of owner 'alise'" in error
        assert "correct --owner" in error
    assert provider.chats == []
    assert not file.exists()


async def test_owner_of_a_token_may_begin_at_the_terminal(
    environ: dict[str, str], settings: Settings, provider: ProviderServer
) -> None:
    """The owner is known, although nothing is stored yet."""
    known = {**environ, "EXAI_SERVER__TOKENS": '{"alice": "a-token-of-alice-0123"}'}
    status, out, _ = await asyncio.to_thread(run_command, known, "chat", "--list", "--owner", "alice")
    assert (status, out) == (0, "")
    status, out, error = await asyncio.to_thread(run_command, known, "chat", "hello", "--owner", "alice")
    assert (status, len(provider.chats)) == (0, 1)
    assert "--owner alice --continue" in error


@pytest.mark.parametrize("encoding", ["cp1252", "gbk", "ascii"])
async def test_every_terminal_shows_what_it_can(
    encoding: str, settings: Settings, environ: dict[str, str], provider: ProviderServer
) -> None:
    """No character of a conversation ends a command."""
    provider.script(kimi_answer(["é 中文 👍 ☂"]))
    status, _, error = await asyncio.to_thread(run_command, environ, "chat", "hello", encoding=encoding)
    assert status == 0, error
    await stored(settings, "umbrella", "☂ 中文 é 👍")
    for arguments in (
        ("show", "umbrella"),
        ("search", "中文"),
        ("chat", "--list"),
        ("export", "umbrella"),
        ("doctor",),
    ):
        status, _, error = await asyncio.to_thread(run_command, environ, *arguments, encoding=encoding)
        assert "Traceback" not in error
        assert status == 0, error


async def test_model_is_the_one_asked_for(settings: Settings, provider: ProviderServer) -> None:
    """The value of --model is sent to the provider."""
    await chat(settings, "hello", model="kimi-k3")
    assert provider.chats[-1].body["model"] == "kimi-k3"


async def test_unknown_conversation_is_an_error_and_asks_no_model(settings: Settings, provider: ProviderServer) -> None:
    """A misspelled id must not start a conversation of its own, nor be offered as one to continue."""
    streams = Streams(io.StringIO(), io.StringIO(), io.StringIO())
    with pytest.raises(NotFound, match="`exai chat --list` lists"):
        await run_chat(settings, ChatOptions(("hello",), "no-such-id"), streams)
    assert streams.error.getvalue() == ""  # type: ignore[attr-defined]
    assert provider.chats == []


async def test_provider_failure_after_a_part_ends_the_line_and_says_how_to_continue(
    settings: Settings, provider: ProviderServer
) -> None:
    """The printed part stays readable, and the question is stored."""
    first = id_in((await chat(settings, "hello"))[1])
    provider.script(kimi_error(400, "invalid_request_error"))
    streams = Streams(io.StringIO(), io.StringIO(), io.StringIO())
    with pytest.raises(ProviderError):
        await run_chat(settings, ChatOptions(("again",), first), streams)
    assert id_in(streams.error.getvalue()) == first  # type: ignore[attr-defined]


async def test_first_question_that_fails_says_how_to_continue(settings: Settings, provider: ProviderServer) -> None:
    """The question is stored with the failure, so its conversation is named."""
    provider.script(kimi_error(400, "invalid_request_error"))
    streams = Streams(io.StringIO(), io.StringIO(), io.StringIO())
    with pytest.raises(ProviderError) as caught:
        await run_chat(settings, ChatOptions(("hello",)), streams)
    name = id_in(streams.error.getvalue())  # type: ignore[attr-defined]
    assert name == caught.value.continuation_id
    (line,) = (await chat(settings, list_only=True))[0].splitlines()
    assert line.startswith(name)
    assert line.endswith("(failed)  hello")
    await chat(settings, "again", continuation_id=name)
    assert "(failed)" not in (await chat(settings, list_only=True))[0]


async def test_commands_to_repeat_name_the_owner(settings: Settings, provider: ProviderServer) -> None:
    """Without the owner, the printed command would not find the conversation."""
    for owner in ("alice", "alice b"):
        await stored(settings, "known", "hello", owner=owner)
    _, error = await chat(settings, "hello", owner=Owner("alice b"))
    assert "continue with: exai chat --owner 'alice b' --continue " in error
    with pytest.raises(NotFound, match="`exai chat --owner alice --list` lists"):
        await chat(settings, "hello", continuation_id="no-such-id", owner=Owner("alice"))


def listen_to_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Program:
    """`exai chat` at a terminal of its own."""

    def __init__(self, environ: Mapping[str, str], cwd: Path) -> None:
        self.terminal, self._far_end = pty.openpty()
        os.set_blocking(self.terminal, False)
        self.text = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "exai", "chat"],
            stdin=self._far_end,
            stdout=self._far_end,
            stderr=self._far_end,
            env=environment({"PYTHONPATH": str(ROOT), "TERM": "dumb", **environ}),
            cwd=cwd,
            start_new_session=True,
            # A suite that runs in the background is started with interrupts ignored, and a child would inherit that.
            preexec_fn=listen_to_interrupts,  # noqa: PLW1509 - no other thread holds a lock here
        )

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self._far_end)[3] & termios.ECHO)

    async def shows(self, pattern: str) -> None:
        def shown() -> bool:
            try:
                self.text += os.read(self.terminal, 65_536).decode()
            except BlockingIOError:
                pass
            return re.search(pattern, self.text) is not None

        await wait_until(shown, lambda: f"{pattern!r} was not shown in {self.text!r}", LIMIT_S)

    async def ends(self) -> int:
        await wait_until(lambda: self.process.poll() is not None, lambda: "it did not end", LIMIT_S)
        assert self.process.returncode is not None
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.terminal)
        os.close(self._far_end)


@pytest.fixture
async def program(environ: dict[str, str], tmp_path: Path) -> AsyncIterator[Program]:
    program = Program(environ, tmp_path)
    yield program
    program.close()


async def test_person_at_a_terminal_talks_line_by_line(program: Program, provider: ProviderServer) -> None:
    """One conversation, errors do not end it, Ctrl-D does, and the terminal is left as it was."""
    provider.script(kimi_answer(["Four."]), kimi_error(400, "invalid_request_error"), kimi_answer(["As I said."]))
    await program.shows("> ")
    program.type("two and two?\n")
    await program.shows(r"Four\.\r\n> ")
    program.type("again?\n")
    await program.shows(r"exai: kimi[^\r]*\r\n> ")
    program.type("sure?\n")
    await program.shows(r"As I said\.\r\n> ")
    program.type("\x04")
    await program.shows(r"continue with: [^\r]+ -m exai chat --continue \S+\r\n")
    assert await program.ends() == 0
    assert program.echoes()
    contents = [message["content"] for message in provider.chats[-1].body["messages"]]
    assert contents[0] == "two and two?"
    assert contents[-1] == "sure?"


async def test_terminal_is_not_controlled_by_an_answer(program: Program, provider: ProviderServer) -> None:
    """OSC 52 would put a text of the model into the clipboard of its reader."""
    provider.script(kimi_answer(["Look: \x1b]52;c;ZXZpbA==\x07 ", "\x9b31m\u202e done."]))
    await program.shows("> ")
    program.type("hello\n")
    await program.shows(r"done\.\r\n> ")
    assert "␛]52;c;ZXZpbA==␇" in program.text
    assert "\x1b]52" not in program.text
    assert "\x9b" not in program.text
    assert "\u202e" not in program.text
    program.type("\x04")
    assert await program.ends() == 0


async def test_interrupt_at_the_prompt_ends_quietly_with_130(program: Program) -> None:
    """Ctrl-C is no error; the terminal must echo again afterwards."""
    await program.shows("> ")
    program.process.send_signal(signal.SIGINT)
    assert await program.ends() == 130
    assert "Traceback" not in program.text
    assert program.echoes()


async def test_interrupt_while_waiting_for_an_answer_ends_quietly_with_130(
    program: Program, provider: ProviderServer
) -> None:
    """The provider's call is ended with it."""
    provider.script(hang_after_first_token())
    await program.shows("> ")
    program.type("hello\n")
    request = await asyncio.wait_for(provider.arrived(1), LIMIT_S)
    program.process.send_signal(signal.SIGINT)
    assert await program.ends() == 130
    await asyncio.wait_for(request.gone.wait(), LIMIT_S)
    assert "Traceback" not in program.text


def test_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    """`exai config | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "exai", "config"],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment({"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}),
        cwd=tmp_path,
        timeout=LIMIT_S,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


async def test_changed_file_of_a_continued_conversation_is_read_again_on_demand(
    provider: ProviderServer, environ: dict[str, str], tmp_path: Path
) -> None:
    """Without the option the model is shown it as stored; without a conversation there is nothing to read again."""
    root = tmp_path / "root"
    root.mkdir()
    path = root / "a.py"
    path.write_text("old = 1\n")
    places = {"EXAI_DATA_DIR": str(tmp_path / "data"), "EXAI_FILES__ROOTS": str(root)}
    settings = load_settings({**environ, **places}, None)
    async with open_app(settings) as app:
        given = await app.files.resolve(LOCAL_OWNER, [str(path)])
        request = ChatRequest(LOCAL_OWNER, "Why?", files=given.ids, sources=given.sources)
        name = (await app.chat.run(request)).continuation_id
    path.write_text("new = 2, longer\n")

    def sent() -> str:
        return str(provider.chats[-1].body["messages"])

    _, said = await chat(settings, "And now?", continuation_id=name)
    assert "has changed on disk" in said
    assert ("old = 1" in sent(), "new = 2" in sent()) == (True, False)
    _, said = await chat(settings, "And now?", continuation_id=name, reread=True)
    assert "read again: a.py" in said
    assert "new = 2" in sent()
    with pytest.raises(ConfigError, match="--reread"):
        await chat(settings, "And now?", reread=True)
