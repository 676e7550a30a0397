"""Runs `provider_server.py` as a program of its own, for tests without an event loop and for daemons they start.

Invariant: the program does not outlive its context.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("provider_server.py")
END_LIMIT_S = 20.0


class ProviderProcess:
    """The server as a program of its own, for tests that have no event loop."""

    def __init__(self, origin: str) -> None:
        self.origin, self.base_url = origin, f"{origin}/v1"

    def requests(self) -> list[dict[str, Any]]:
        """Everything it received, in order."""
        return list(self._ask("GET", "/__requests")["requests"])

    def script(self, *replies: Mapping[str, Any]) -> None:
        """Add replies, each as `replies_from_json` reads them."""
        self._ask("POST", "/__script", replies)

    def open_gate(self) -> None:
        """Release every reply that waits for the gate."""
        self._ask("POST", "/__gate")

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.origin + path, data=data, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=5) as response:
            return json.loads(response.read())


@contextmanager
def provider_process(*script: Mapping[str, Any]) -> Iterator[ProviderProcess]:
    """Run the program for as long as the context lasts."""
    process = subprocess.Popen([sys.executable, str(PROGRAM), "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on "), line
        provider = ProviderProcess(line.split()[-1])
        if script:
            provider.script(*script)
        yield provider
    finally:
        process.kill()
        process.communicate(timeout=END_LIMIT_S)
