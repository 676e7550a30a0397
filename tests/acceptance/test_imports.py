"""Imports by the command and by an upload of the page, into a daemon's store."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import fresh
from tests.support.backend import Backend
from tests.support.daemon import ROOT, Daemon, environment, start_daemon
from tests.support.sources import chain, chatgpt, claude_line, write_json, write_lines

UPLOAD = {"content-type": "application/octet-stream"}
MOST_BYTES = 100_000


@pytest.fixture(scope="module")
def settings(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    for url in fresh(backend.databases, migrated=True):
        yield {
            "EXAI_DATA_DIR": str(tmp_path_factory.mktemp("data")),
            "EXAI_DATABASE__URL": url,
            "EXAI_CACHE__URL": "off",
            "EXAI_FILES__IMPORT_MAX_BYTES": str(MOST_BYTES),
        }


@pytest.fixture(scope="module")
def daemon(settings: dict[str, str]) -> Iterator[Daemon]:
    with start_daemon(settings) as running:
        yield running


def run(settings: dict[str, str], home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "exai", *arguments],
        env=environment({"PYTHONPATH": str(ROOT), **settings}), cwd=home, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(each.partition("data: ")[2]) for each in answer.text.split("\n\n") if each]


def upload(daemon: Daemon, name: str, content: bytes, **headers: str) -> httpx.Response:
    return httpx.post(
        f"http://127.0.0.1:{daemon.port}/import", params={"name": name}, content=content, headers={**UPLOAD, **headers}
    )


def test_the_command_imports_reports_and_repeats(settings: dict[str, str], tmp_path: Path) -> None:
    session = [claude_line("a", None, "hi"), claude_line("b", "a", "ho", "assistant")]
    write_lines(tmp_path / ".claude" / "projects" / "-w" / "session-1.jsonl", [*session, "{broken"])
    write_json(tmp_path / "x" / "conversations.json", [chatgpt("c", chain(["one", "two"]))])
    home = {**settings, "HOME": str(tmp_path)}
    rehearsal = run(home, tmp_path, "import", "claude-code", "--dry-run")
    first = run(home, tmp_path, "import", "claude-code")
    second = run(home, tmp_path, "import", str(tmp_path / ".claude"), "x", "--json")
    report = json.loads(second.stdout)

    assert "2 messages and 0 files can be imported; nothing was stored" in rehearsal.stdout, rehearsal.stderr
    assert "1 conversation with 2 messages: 2 messages stored" in first.stdout, first.stderr
    assert "-w/session-1.jsonl, line 3: is not JSON" in first.stdout
    assert (report["conversations"], report["stored"], report["damaged"]) == (2, 2, 1)
    assert report["sources"] == {"claude-code": 1, "chatgpt": 1}
    assert (rehearsal.returncode, first.returncode, second.returncode) == (0, 0, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="ends the command by a signal")
def test_the_mirror_imports_what_is_added_until_it_is_stopped(settings: dict[str, str], tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p" / "s.jsonl", [claude_line("m1", None, "hi", sessionId="mirrored")])
    process = subprocess.Popen(
        [sys.executable, "-m", "exai", "import", "claude-code", "p", "--watch"],
        env=environment({"PYTHONPATH": str(ROOT), **settings}), cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "claude-code: 1 file read\n"
        assert "1 message stored" in process.stdout.readline()
        with path.open("a") as file:
            file.write(json.dumps(claude_line("m2", "m1", "ho", "assistant", sessionId="mirrored")) + "\n")
        assert process.stdout.readline() == "claude-code: 1 file read\n"
        assert "2 messages: 1 message stored; the others were there already" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_command_says_what_it_cannot_import(settings: dict[str, str], tmp_path: Path) -> None:
    write_json(tmp_path / "other.json", {"a": 1})
    for arguments, words in (
        (("other.json",), "other.json: is not recognised"),
        (("chatgpt", "missing.zip"), "there is no file 'missing.zip'"),
        (("langgraph", "postgresql://127.0.0.1/x", "--watch"), "PATH: is an address"),
        (("codex", "postgresql://127.0.0.1/x"), "PATH: is an address"),
        (("open-webui",), "PATH: is missing"),
        (("chatgpt", "other.json", "--as", "x"), "--format, --as"),
    ):
        done = run(settings, tmp_path, "import", *arguments)
        assert done.returncode != 0
        assert words in done.stdout + done.stderr


def test_an_upload_is_imported_with_a_report(daemon: Daemon) -> None:
    content = json.dumps([chatgpt("uploaded", chain(["one", "two"])), 7]).encode()
    answers = [upload(daemon, "../../conversations.json", content) for _ in range(2)]
    reports = [events_of(each)[-1]["report"] for each in answers]

    assert [each["stored"] for each in reports] == [2, 0]
    assert reports[0]["problems"][0].startswith("conversations.json, line 1")
    assert answers[0].headers["content-type"].startswith("text/event-stream")


def test_an_upload_may_have_a_name_that_no_file_here_can_have(daemon: Daemon) -> None:
    content = json.dumps([chatgpt("named", chain(["one"]))]).encode()
    answer = upload(daemon, "\u6587" * 200 + ".json", content)

    assert events_of(answer)[-1]["report"]["stored"] == 1


def test_a_broken_archive_is_named_as_it_was_uploaded(daemon: Daemon) -> None:
    """Not by the place at which the daemon keeps it meanwhile."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("conversations.json", "[]")
    content = packed.getvalue()
    start = content.rindex(b"PK\x01\x02")
    broken = content[:start] + b"XXXX" + content[start + 4 :]
    error = events_of(upload(daemon, "export.zip", broken))[-1]["error"]

    assert error.startswith("PATH: export.zip cannot be read")
    assert "exai-import-" not in error
    empty = events_of(upload(daemon, "empty.zip", b"PK\x05\x06" + b"\0" * 18))[-1]["report"]
    assert empty["problems"] == ["empty.zip: has no file that can be imported"]


def test_uploads_that_are_not_one_are_refused(daemon: Daemon) -> None:
    large = upload(daemon, "x.json", b"[" + b" " * (MOST_BYTES * 2) + b"]")
    typed = upload(daemon, "x.json", b"[]", **{"content-type": "text/plain"})
    foreign = upload(daemon, "x.json", b"[]", origin="https://evil.example")
    unknown = events_of(upload(daemon, "x.bin", b"\0\1"))[-1]["report"]

    assert large.status_code == 413
    assert "EXAI_FILES__IMPORT_MAX_BYTES" in large.text
    assert typed.status_code == 415
    assert foreign.status_code == 403
    assert unknown["problems"] == ["x.bin: is not recognised as an export; name its kind if it is one"]
