"""A stand-in for `valkey-cli`, which the package of the embedded server lacks: sends one command, prints its reply."""

from __future__ import annotations

import sys

import redis


def lines(reply: object) -> list[str]:
    if isinstance(reply, list):
        return [line for each in reply for line in lines(each)]
    return [reply.decode() if isinstance(reply, bytes) else str(reply)]


def main() -> None:
    port, *command = sys.argv[1:]
    # Without the callbacks that change replies into Python's values.
    with redis.Redis(port=int(port), protocol=2) as client:
        client.response_callbacks.clear()
        print("\n".join(lines(client.execute_command(*command))))


if __name__ == "__main__":
    main()
