"""`exai bench --door` on real sockets: everything is measured, and a server that fails a call ends the run.

How long anything takes is never asserted.
"""

from __future__ import annotations

import json

import pytest

from exai.bench.door.client import HttpCaller, WebSocketCaller, call_all, open_callers
from exai.bench.door.report import door_as_json, door_as_text
from exai.bench.door.run import CALL_HTTP, CALL_WEBSOCKET, DoorPlan, run_door
from exai.bench.door.server import open_door
from exai.cli import main as cli
from exai.errors import StartupError

SMALL = DoorPlan(rounds=1, calls=((2, 20),), idle=5, settling_s=0.0, idle_s=0.1, crowd=3, crowd_calls=30)


async def test_a_run_measures_every_target_and_says_so() -> None:
    """A target that was not looked at would be no target."""
    named: list[str] = []
    report = await run_door(SMALL, lambda _, name: named.append(name))
    assert [each.operation for each in report.comparisons] == [CALL_WEBSOCKET, CALL_HTTP]
    assert report.crowd.least_share <= 1 <= report.crowd.most_share
    shown = json.loads(json.dumps(door_as_json(report)))
    assert len(shown["targets"]) == 6
    assert all(each["verdict"] in ("met", "missed") for each in shown["targets"])
    text = door_as_text(report)
    assert "bare echo" in text and "bare uvicorn" in text
    assert all(each["promise"] in text for each in shown["targets"])
    assert named[-1] == "done"


async def test_a_call_that_fails_ends_the_run() -> None:
    """Errors are fast; counted as answers they would improve the figures."""
    wrong = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"no_such_tool"}}'
    async with open_door() as port:
        for kind in (WebSocketCaller, HttpCaller):
            async with open_callers(kind, port, 2, wrong) as callers:
                with pytest.raises(StartupError, match="a call was not answered"):
                    await call_all(callers, 10)


def test_options_for_servers_do_not_go_with_the_door(capsys: pytest.CaptureFixture[str]) -> None:
    """The door's bench has none."""
    assert cli.main(["bench", "--door", "--here"]) == 2
    assert "--door" in capsys.readouterr().err
