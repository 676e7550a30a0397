"""Fuzz the core with a coverage-guided fuzzer for a bounded time: `python -m tests.fuzz.core DIRECTORY SECONDS`.

An input is a session, one message per line. The invariants are those of the core: it raises nothing, answers every
request that has a usable id exactly once, and keeps a bounded state. Inputs that reach new code are kept in the
directory, from which the next run starts; an input that breaks an invariant is stored there as `crash-*`.
"""

from __future__ import annotations

import gc
import hashlib
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["exai.mcp"]):
    from exai.mcp.core.connection import MAX_SUBSCRIPTIONS, Connection
    from exai.mcp.core.jsonrpc import parse, request_id
    from exai.mcp.core.protocol import Call, Cancel, Ignore, Send, Start, Surface
    from exai.mcp.core.subscriptions import MAX_SUBSCRIBED_URIS

import orjson

from tests.fuzz.seeds import FINISH, seeds, words
from tests.support.mcp_server import Tools

MAX_IN_FLIGHT = 3
MAX_INPUT_BYTES = 8_192
MAX_RESIDENT_MB = 1_024
WARM_PASSES, PASSES = 5, 20
MAX_SESSIONS = 300
MAX_GROWTH_BYTES = 32_768


def surface() -> Surface:
    """Return a surface with every capability."""
    made = Surface("exai-test", "1", (Tools().registry.feature(),))
    made.capabilities |= {"tools": {"listChanged": True}, "resources": {"subscribe": True, "listChanged": True}}
    return made


SURFACE = surface()


class Peer:
    """One connection, and the calls that its core has started."""

    def __init__(self) -> None:
        self.connection = Connection(SURFACE, max_in_flight=MAX_IN_FLIGHT, reply_max_bytes=100_000)
        self.running: dict[object, Call] = {}

    def say(self, line: bytes) -> None:
        """Send one line and check the resulting action against the invariants."""
        if line == FINISH:
            if self.running:
                self.finish(next(iter(self.running)))
            return
        asked = asked_id(line)
        action = self.connection.accept(parse(line))
        if isinstance(action, Start):
            assert action.call.id == asked
            assert asked not in self.running
            self.running[asked] = action.call
        elif isinstance(action, Send):
            answer = orjson.loads(action.data)
            assert answer["jsonrpc"] == "2.0"
            if "method" in answer:
                assert asked in self.connection.listening
            else:
                assert ("result" in answer) != ("error" in answer)
                assert asked is None or answer["id"] == asked, (asked, answer)
        else:
            assert isinstance(action, Cancel | Ignore)
            assert asked is None
            if isinstance(action, Cancel):
                assert self.connection.complete(self.running.pop(action.id), {"content": []}) is None
        self.check()

    def finish(self, key: object) -> None:
        """Complete a running call, and check that it is answered exactly once."""
        call = self.running.pop(key)
        self.connection.progress(call, 1, "x")
        answered = self.connection.complete(call, {"content": []})
        assert answered is not None
        assert orjson.loads(answered.data)["id"] == call.id
        assert self.connection.complete(call, {"content": []}) is None
        assert self.connection.progress(call, 2, "x") is None

    def check(self) -> None:
        """Check that the connection keeps the running calls, and that its state is within the limits."""
        connection = self.connection
        assert connection.in_flight.keys() == self.running.keys()
        assert len(self.running) <= MAX_IN_FLIGHT
        assert len(connection.listening) <= MAX_SUBSCRIPTIONS
        assert len(connection._subscriptions) <= MAX_SUBSCRIBED_URIS

    def leave(self) -> None:
        """Complete all running calls, and end all subscriptions."""
        for key in list(self.running):
            self.finish(key)
        for change in ("tools", "prompts", "resources"):
            self.connection.list_changed(change)
        ended = self.connection.end_listening()
        assert all("result" in orjson.loads(each) for each in ended)
        assert not self.connection.listening
        self.check()


def asked_id(line: bytes) -> object | None:
    """Return the id of the request on this line, determined without the core; None if it has no usable one."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(value, dict) or value.get("jsonrpc") != "2.0" or not isinstance(value.get("method"), str):
        return None
    found = value.get("id")
    return found if request_id(found) else None


def one(data: bytes) -> None:
    """Run one session on a new connection."""
    peer = Peer()
    for line in data.split(b"\n"):
        peer.say(line)
    peer.leave()


def growth_bytes(sessions: list[bytes]) -> int:
    """Return by how much memory grows when one connection receives all these sessions repeatedly."""
    peer = Peer()
    sizes = []
    tracemalloc.start()
    for passes in (WARM_PASSES, PASSES):
        for _ in range(passes):
            for data in sessions:
                for line in data.split(b"\n"):
                    peer.say(line)
                peer.leave()
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    return sizes[1] - sizes[0]


def main() -> int:
    """Fuzz in a subprocess, which the fuzzer ends; then measure the growth of memory."""
    directory, seconds = Path(sys.argv[1]), int(sys.argv[2])
    corpus = directory / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    entries = sorted('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words())
    (directory / "words").write_text("".join(entries))
    options = (
        f"-max_total_time={seconds}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-rss_limit_mb={MAX_RESIDENT_MB}",
        f"-dict={directory / 'words'}",
        f"-artifact_prefix={directory}{os.sep}",
        "-timeout=10",
        "-verbosity=0",
        "-print_final_stats=1",
        str(corpus),
    )
    done = subprocess.run([sys.executable, "-m", "tests.fuzz.core", "--here", *options], check=False)
    if done.returncode != 0:
        print(f"an invariant broke; the input is in {directory}", file=sys.stderr)
        return 1
    smallest = sorted((path.read_bytes() for path in corpus.iterdir()), key=len)[:MAX_SESSIONS]
    grown = growth_bytes(smallest)
    print(f"one connection grew by {grown} bytes in {PASSES} more passes over {len(smallest)} sessions")
    return int(grown > MAX_GROWTH_BYTES)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        atheris.Setup([sys.argv[0], *sys.argv[2:]], one)
        atheris.Fuzz()
    sys.exit(main())
