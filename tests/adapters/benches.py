"""`bench/adapters.py` in the environment of a framework: it runs, and what it counts on the wire is exact."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.commands import ROOT, environment

LIMIT_S = 300.0
ENVIRONMENT = Path(sys.executable).parents[1]
IS_NEWEST = ENVIRONMENT.name.endswith("-newest")
"""The bench measures the newest release of a framework."""


def run_quick(name: str) -> dict[str, Any]:
    """Run the quick form for one framework, and return what it saw."""
    command = [sys.executable, str(ROOT / "bench" / "adapters.py"), "--environments", str(ENVIRONMENT.parent)]
    done = subprocess.run(
        [*command, "--quick", "--json", "--only", name],
        check=False,
        capture_output=True,
        text=True,
        env=environment({"PYTHONPATH": str(ROOT)}),
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def assert_complete(seen: dict[str, Any], name: str) -> None:
    """Every store was timed in everything, and every target judged."""
    cells = {(each["store"], each["operation"], each["callers"], each["latency_ms"]) for each in seen["cells"]}
    assert cells == {
        (store, operation, callers, latency_ms)
        for store in ("own", "process", "daemon")
        for operation in ("load", "append", "create")
        for callers in (1, 16)
        for latency_ms in (0.0, 10.0)
    }
    assert all(each["figures"]["as_named"] == 1 for each in seen["cells"])
    assert {each["framework"] for each in seen["targets"]} == {name}
    assert len(seen["targets"]) == 12
