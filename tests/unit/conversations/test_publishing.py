"""Every commit takes the same step to the cache and to the listeners."""

import ast
from pathlib import Path

import exai

PACKAGE = Path(exai.__file__).parent
PUBLISHING = "conversations/publishing.py"
THREADS = "checkpoints/service.py"
"""Threads of checkpoints have no listeners."""


def calls(method: str, receiver: str) -> set[str]:
    """Return the modules that call this method of an attribute whose name contains `receiver`."""
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == method
                and receiver in ast.unparse(node.func.value)
            ):
                found.add(path.relative_to(PACKAGE).as_posix())
    return found


def test_only_the_publisher_applies_commits_to_the_cache() -> None:
    """A service that did it by hand could forget the listeners, or notify them first."""
    assert calls("apply", "cache") == {PUBLISHING, THREADS}
    assert calls("announce", "notices") == {PUBLISHING}
