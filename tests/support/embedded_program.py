"""A program that uses embedded servers, to be run, watched and killed by tests.

It needs the standard library and `exai.embedded` alone, so that any interpreter and any user can run it. One JSON
argument says what to do; it prints one JSON line when the servers answer, or why they do not, and ends when its
standard input does.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exai.embedded.launcher import start_embedded
from exai.errors import StartupError

CLONE_NEWUSER = 0x10000000


async def serve(plan: dict[str, Any]) -> None:
    pg_bin = Path(plan["pg_bin"]) if plan.get("pg_bin") else None
    wanted = {name: plan.get(name, True) for name in ("postgres", "valkey", "durable")}
    async with start_embedded(Path(plan["data_dir"]), pg_bin=pg_bin, **wanted) as embedded:
        print(json.dumps(asdict(embedded) | {"data_dir": str(embedded.data_dir)}), flush=True)
        # Not a thread of the default executor: that would be waited for after an interrupt.
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(0, ended.set)
        await ended.wait()


def forbid_user_namespaces() -> None:
    """Be root of a namespace that maps all users and allows no other, as root is in most containers."""
    ready, go = os.pipe()
    pid = os.getpid()
    mapper = os.fork()
    if mapper == 0:
        os.read(ready, 1)
        for kind in ("uid", "gid"):
            Path(f"/proc/{pid}/{kind}_map").write_text("0 0 65536")
        os._exit(0)
    assert ctypes.CDLL(None).unshare(CLONE_NEWUSER) == 0
    os.write(go, b"!")
    assert os.waitpid(mapper, 0)[1] == 0
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


def main() -> None:
    plan: dict[str, Any] = json.loads(sys.argv[1])
    # A suite that runs in the background is started with interrupts ignored, and this program would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if plan.get("no_namespaces"):
        forbid_user_namespaces()
    if plan.get("file_max_bytes"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan["file_max_bytes"],) * 2)
    try:
        if plan.get("in_thread"):
            thread = threading.Thread(target=lambda: asyncio.run(serve(plan)))
            thread.start()
            thread.join()
        else:
            asyncio.run(serve(plan))
    except StartupError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
