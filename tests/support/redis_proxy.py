"""A fault proxy that also reads the Redis commands that pass through it.

Invariant: `commands` lists every command a client sent, in order, each as its words.
"""

from __future__ import annotations

import hiredis

from tests.support.fault_proxy import FaultProxy, Link


class RedisProxy(FaultProxy):
    """`commands` since the start or the last `reset_counters`."""

    def __init__(self, upstream: tuple[str, int] | str, *, path: str | None = None) -> None:
        super().__init__(upstream, path=path)
        self.commands: list[list[bytes]] = []
        self._readers: dict[Link, hiredis.Reader] = {}

    @property
    def url(self) -> str:
        """For the client."""
        return f"unix://{self.path}" if self.path is not None else f"redis://{self.host}:{self.port}/0"

    def names(self) -> list[str]:
        """The first word of each command."""
        return [command[0].decode() for command in self.commands]

    def reset_counters(self) -> None:
        super().reset_counters()
        self.commands.clear()

    def saw_request(self, link: Link, data: bytes) -> None:
        # Commands are arrays of strings, which the reader of replies understands as well.
        reader = self._readers.setdefault(link, hiredis.Reader())
        reader.feed(data)
        while (command := reader.gets()) is not False:
            self.commands.append(command)
