"""The memory of an import does not depend on the size of its source."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import ROOT, environment
from tests.support.sources import chain, chatgpt, claude_line, codex_line

SMALL_MB, LARGE_MB = 40, int(os.environ.get("EXAI_TEST_IMPORT_MB", "500"))
MOST_MB = 80
"""Maximum of memory beyond that of the same command for an empty source; a part of a source may have 64 MB."""

MEASURED = (
    "import re, sys; from pathlib import Path; from exai.cli.main import main; status = main(sys.argv[1:]); "
    "print('peak', re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]); sys.exit(status)"
)


def write_codex(path: Path, size_mb: int) -> Path:
    """Write a session whose lines and compacted histories repeat the same images."""
    images = [base64.b64encode(bytes([seed]) * 200_000).decode() for seed in range(5)]
    parts = [{"type": "input_image", "image_url": f"data:image/png;base64,{image}"} for image in images]
    with path.open("w") as file:
        file.write(json.dumps(codex_line("session_meta", {"id": "large"})) + "\n")
        place = 0
        while file.tell() < size_mb * 1_000_000:
            item = {"type": "message", "role": "user", "id": f"i{place}", "content": [parts[place % 5]]}
            file.write(json.dumps(codex_line("response_item", item)) + "\n")
            file.write(json.dumps(codex_line("compacted", {"replacement_history": parts})) + "\n")
            place += 1
    return path


def write_claude(path: Path, size_mb: int) -> Path:
    """Write a session that is mostly reports of progress and long outputs of tools."""
    output = "".join(f"output {place}\n" for place in range(20_000))
    with path.open("w") as file:
        place = 0
        while file.tell() < size_mb * 1_000_000:
            file.write(json.dumps(claude_line(f"m{place}", None, [{"type": "tool_result", "content": output}])) + "\n")
            file.write(json.dumps({"type": "progress", "uuid": f"p{place}", "data": output}) + "\n")
            place += 1
    return path


def write_chatgpt(path: Path, size_mb: int) -> Path:
    """Write an archive of one file, half of it one conversation."""

    def pieces() -> Iterator[str]:
        text, done, place = "word " * 4_000, 0, 0
        yield '[{"conversation_id": "huge", "title": "t", "mapping": {'
        while done < size_mb * 500_000:
            comma = "," if place else ""
            parent = json.dumps(f"n{place - 1}" if place else None)
            content = json.dumps({"content_type": "text", "parts": [text]})
            message = f'{{"author": {{"role": "user"}}, "content": {content}}}'
            piece = f'{comma}"n{place}": {{"parent": {parent}, "message": {message}}}'
            done, place = done + len(piece), place + 1
            yield piece
        yield "}}"
        while done < size_mb * 1_000_000:
            piece = json.dumps(chatgpt(f"c{place}", chain([text] * 10)))
            done, place = done + len(piece), place + 1
            yield f",{piece}"
        yield "]"

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("conversations.json", "w", force_zip64=True) as file:
            for piece in pieces():
                file.write(piece.encode())
    return path


def peak_mb(home: Path, *arguments: str, **variables: str) -> int:
    """Run a command; returns its greatest memory."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        env=environment({"PYTHONPATH": str(ROOT), **variables}), cwd=home, capture_output=True, timeout=1_500,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    sys.stdout.write(done.stdout.decode())
    return int(done.stdout.split()[-1]) // 1024


SOURCES = {"codex": write_codex, "claude-code": write_claude, "chatgpt": write_chatgpt}


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
@pytest.mark.parametrize("kind", SOURCES)
def test_a_rehearsal_needs_no_more_memory_for_a_larger_source(kind: str, tmp_path: Path) -> None:
    ending = ".zip" if kind == "chatgpt" else ".jsonl"
    small = SOURCES[kind](tmp_path / f"small{ending}", 1)
    large = SOURCES[kind](tmp_path / f"large{ending}", SMALL_MB)
    first, second = [peak_mb(tmp_path, "import", "--dry-run", str(path)) for path in (small, large)]

    assert second - first < MOST_MB // 5


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
@pytest.mark.parametrize("kind", SOURCES)
def test_hundreds_of_megabytes_are_imported_in_bounded_memory(
    kind: str, tmp_path: Path, postgres_url: str, redis_url: str
) -> None:
    """Twice: the second import stores nothing."""
    ending = ".zip" if kind == "chatgpt" else ".jsonl"
    small = SOURCES[kind](tmp_path / f"small{ending}", 1)
    large = SOURCES[kind](tmp_path / f"large{ending}", LARGE_MB)
    variables = {"EXAI_DATABASE__URL": postgres_url, "EXAI_CACHE__URL": redis_url}
    peaks = {
        "rehearsal": peak_mb(tmp_path, "import", "--dry-run", str(large)),
        "small": peak_mb(tmp_path, "import", str(small), "--owner", "small", **variables),
        "import": peak_mb(tmp_path, "import", str(large), **variables),
        "again": peak_mb(tmp_path, "import", str(large), **variables),
    }
    print(f"\n{kind}: {LARGE_MB} MB, {peaks} MB of memory")

    assert peaks["import"] - peaks["small"] < MOST_MB
    assert peaks["again"] - peaks["small"] < MOST_MB
