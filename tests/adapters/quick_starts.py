"""The examples of docs/adapters.md, run on the daemon of a test."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs/adapters.md"
DAEMON = "http://127.0.0.1:8079"


async def run_quick_start(name: str, address: str, **names: Any) -> dict[str, Any]:
    """Run an example with the names that it leaves to its reader, and return its names."""
    found = re.search(rf"^```python {name}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None
    assert DAEMON in found[1]
    code = compile(found[1].replace(DAEMON, address), name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.isawaitable(result):
        await result
    return names
