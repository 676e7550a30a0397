"""Without git a directory has the same files as with it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exai.files.paths import Roots
from exai.files.sources.bounds import Bounds
from exai.files.sources.git.repository import Git
from exai.files.sources.listing import TreeLister
from tests.integration.sources.conftest import Tree

FILES = (
    "a.py",
    "a.log",
    "b c.txt",
    "build/a.py",
    "src/a.py",
    "src/a.log",
    "src/build/b.log",
    "src/deep/a.py",
    "src/deep/build",
    "#x",
    "!y",
)
PARTS = st.sampled_from(
    ["*", "a.py", "*.log", "build", "src", "deep", "?.py", "[ab].py", "[!a].*", "b c.txt", "\\#x", "\\!y"]
)
PATTERNS = st.builds(
    lambda negation, anchor, parts, between, end: negation + anchor + between.join(parts) + end,
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "/", "**/"]),
    st.lists(PARTS, min_size=1, max_size=3),
    st.sampled_from(["/", "/", "/**/"]),
    st.sampled_from(["", "/", " ", "/**"]),
)
LINES = st.lists(st.one_of(PATTERNS, st.sampled_from(["", "# comment", "  ", "#x", "\\", "/", "!"])), max_size=5)


def listed(tree: Tree) -> list[str]:
    roots = Roots([tree.top])
    bounds = Bounds(time.monotonic, time.monotonic() + 60)
    return TreeLister(roots, Git(roots, bounds), bounds).list(tree.top).files


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LINES, LINES)
def test_rules_mean_what_they_mean_to_git(tree: Tree, rules: list[str], inner_rules: list[str]) -> None:
    for name in FILES:
        tree.write(name)
    tree.write(".gitignore", "\n".join(rules))
    tree.write("src/.gitignore", "\n".join(inner_rules))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        by_walking = listed(tree)
    tree.git("init", "-q", "-b", "main")
    try:
        assert listed(tree) == by_walking
    finally:
        shutil.rmtree(tree.top / ".git")


def test_directories_that_projects_never_review_are_not_walked(tree: Tree) -> None:
    tree.write("a.py")
    tree.write("node_modules/m/i.js")
    tree.write("lib/.venv/x.py")
    tree.write(".git/config", "")
    roots = Roots([tree.top])
    bounds = Bounds(time.monotonic, time.monotonic() + 60)
    found = TreeLister(roots, Git(roots, bounds), bounds).list(Path(tree.top))
    assert found.files == ["a.py"]
    assert found.left_out == ["node_modules/ (dependencies or caches)", "lib/.venv/ (dependencies or caches)"]
