"""The `exai bench` command: a table or JSON on standard output, progress on standard error if it is a terminal."""

from __future__ import annotations

import json
import shutil
from typing import TextIO

from exai.bench import cloud, keys, scale
from exai.bench.chat import run as chat
from exai.bench.door import run as door
from exai.bench.door.report import door_as_json, door_as_text
from exai.bench.plan import FULL, QUICK
from exai.bench.report import CLEAR, as_json, as_text, bar
from exai.bench.run import Options, ReportProgress, run_bench


async def bench(
    *, here: bool, quick: bool, latency_ms: float, at_scale: bool, as_json_text: bool, error: TextIO
) -> str:
    """Run the bench and return its output. Raises as `run_bench`."""
    progress = _progress_on(error)
    if at_scale:
        found = await scale.run_scale(scale.QUICK if quick else scale.FULL, here=here, progress=progress)
        return json.dumps(scale.as_json(found), indent=2) if as_json_text else scale.as_text(found)
    report = await run_bench(Options(QUICK if quick else FULL, here=here, latency_ms=latency_ms), progress)
    return json.dumps(as_json(report), indent=2) if as_json_text else as_text(report)


async def bench_cloud(*, here: bool, quick: bool, latency_ms: float, as_json_text: bool, error: TextIO) -> str:
    """Run the bench with a far database and return its output. Raises as `run_cloud`."""
    plan = cloud.QUICK_CLOUD if quick else cloud.FULL_CLOUD
    found = await cloud.run_cloud(
        plan, here=here, latency_ms=latency_ms or cloud.CLOUD_MS, progress=_progress_on(error)
    )
    return json.dumps(cloud.as_json(found), indent=2) if as_json_text else cloud.as_text(found)


async def bench_keys(*, quick: bool, as_json_text: bool, error: TextIO) -> str:
    """Run the bench with keys beside the one without, and return its output. Raises as `run_keys`."""
    report = await keys.run_keys(QUICK if quick else FULL, progress=_progress_on(error))
    return json.dumps(keys.keys_as_json(report), indent=2) if as_json_text else keys.keys_as_text(report)


async def bench_door(*, quick: bool, as_json_text: bool, error: TextIO) -> str:
    """Run the bench of the transports and return its output. Raises as `run_door`."""
    report = await door.run_door(door.QUICK if quick else door.FULL, _progress_on(error))
    return json.dumps(door_as_json(report), indent=2) if as_json_text else door_as_text(report)


async def bench_chat(*, here: bool, quick: bool, as_json_text: bool, error: TextIO) -> str:
    """Run the bench of chats and return its output. Raises as `run_chat`."""
    report = await chat.run_chat(chat.QUICK if quick else chat.FULL, here=here, progress=_progress_on(error))
    return json.dumps(chat.chat_as_json(report), indent=2) if as_json_text else chat.chat_as_text(report)


def _progress_on(error: TextIO) -> ReportProgress:
    on_terminal = error.isatty()

    def progress(share: float, name: str) -> None:
        if on_terminal:
            width = shutil.get_terminal_size().columns - 1
            error.write(CLEAR + (bar(share, name)[:width] if share < 1 else ""))
            error.flush()

    return progress
