"""Another owner during an attack: calls `version` one after the other, from a process of its own.

Run with a port, a token and the id of the daemon's process. Ends at the end of its input, and prints how long its calls
took, how long daemon and client waited for a processor meanwhile, and how many calls were refused.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

PAUSE_S = 0.01
LIMIT_S = 30.0
CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "version", "arguments": {}}}
HANDSHAKE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "bystander", "version": "0"},
    },
}


def opened(port: int, token: str) -> connect:
    return connect(
        f"ws://127.0.0.1:{port}/",
        additional_headers={"Authorization": f"Bearer {token}"},
        open_timeout=LIMIT_S,
        compression=None,
        ping_interval=None,
    )


def queued_s(*threads: Path) -> float:
    """Return how long these threads have been ready to run without a processor, by Linux' scheduler; elsewhere 0."""
    found = 0
    for each in threads:
        with suppress(OSError):
            found += int((each / "schedstat").read_text().split()[1])
    return found / 1e9


def is_served(socket: ClientConnection) -> bool:
    socket.send(json.dumps(CALL))
    answer = json.loads(socket.recv(LIMIT_S))
    while "id" not in answer:
        # Notices of alice's own changes come in between.
        answer = json.loads(socket.recv(LIMIT_S))
    return not answer.get("result", {"isError": True}).get("isError", False)


class Bystander:
    def __init__(self, pid: int) -> None:
        self.ended = threading.Event()
        self.took_s: list[float] = []
        self.queued_s: list[float] = []
        self.refused = 0
        # The event loop of the daemon, which a call passes through as it does through the threads here.
        self._daemon = Path(f"/proc/{pid}/task/{pid}")

    def _queued_s(self) -> float:
        return queued_s(self._daemon, *Path("/proc/self/task").glob("*"))

    def connected(self, port: int, token: str) -> None:
        """Call over one connection until the end, or until it fails."""
        with opened(port, token) as socket:
            socket.send(json.dumps(HANDSHAKE))
            socket.recv(LIMIT_S)
            while not self.ended.is_set():
                began, queued = time.perf_counter(), self._queued_s()
                try:
                    self.refused += not is_served(socket)
                finally:
                    self.took_s.append(time.perf_counter() - began)
                    self.queued_s.append(self._queued_s() - queued)
                if len(self.took_s) == 1:
                    print("ready", flush=True)
                time.sleep(PAUSE_S)

    def main(self, port: int, token: str) -> None:
        threading.Thread(target=lambda: (sys.stdin.read(), self.ended.set()), daemon=True).start()
        while not self.ended.is_set():
            try:
                self.connected(port, token)
            except (OSError, TimeoutError, WebSocketException):
                self.refused += 1
                time.sleep(PAUSE_S)
        print(json.dumps({"took_s": self.took_s, "queued_s": self.queued_s, "refused": self.refused}), flush=True)


if __name__ == "__main__":
    Bystander(int(sys.argv[3])).main(int(sys.argv[1]), sys.argv[2])
