"""Globs match as a shell's do, in time that no pattern can make long."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exai.errors import InvalidArgument
from exai.files.sources.globs import alternatives, fixed_part, is_glob, matches

NAMES = st.text("ab.*[]-", min_size=1, max_size=4)
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)
SIMPLE = st.lists(st.one_of(st.just("**"), st.text("ab.*?", min_size=1, max_size=4)), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("pattern", "path", "is_match"),
    [
        ("*.py", "a.py", True),
        ("*.py", "d/a.py", False),
        ("**/*.py", "a.py", True),
        ("**/*.py", "d/e/a.py", True),
        ("d/**", "d/e/a.py", True),
        ("d/**", "d", False),
        ("**", "a", True),
        ("d/**/a.py", "d/a.py", True),
        ("d/*/a.py", "d/e/f/a.py", False),
        ("[id].tsx", "[id].tsx", True),
        ("[id].tsx", "i.tsx", True),
        ("?.py", "ab.py", False),
        ("**/**/a", "a", True),
        ("a**", "abc", True),
    ],
)
def test_examples(pattern: str, path: str, is_match: bool) -> None:
    assert matches(pattern, path) == is_match


@given(PATHS)
def test_every_path_matches_itself(path: str) -> None:
    assert matches(path, path)


@given(SIMPLE, PATHS)
def test_equals_a_regular_expression_of_the_same_meaning(parts: list[str], path: str) -> None:
    """Written independently: with backtracking, for short texts."""
    whole = ""
    for place, part in enumerate(parts):
        if part == "**":
            whole += "(?:[^/]+/)*[^/]+" if place == len(parts) - 1 else "(?:[^/]+/)*"
        else:
            literal = "".join({"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char)) for char in part)
            whole += literal + ("" if place == len(parts) - 1 else "/")
    names = path.split("/")
    by_text = any(part in names for part in parts if part != "**")
    assert matches("/".join(parts), path) == bool(re.fullmatch(whole, path)) or by_text


def test_hostile_pattern_takes_few_steps() -> None:
    """A regular expression with backtracking would not end."""
    assert not matches("/".join(["**"] * 30 + ["b"]), "/".join(["a"] * 60))
    assert not matches("*a" * 40 + "b", "a" * 400)


@given(st.text("ab{},*", max_size=20))
def test_braces_are_expanded_as_often_as_they_say(pattern: str) -> None:
    found = alternatives("files[0]", pattern)
    assert found
    assert all("{" not in each or not re.search(r"\{[^{}]*,[^{}]*\}", each) for each in found)


def test_too_many_alternatives_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        alternatives("files[0]", "{a,b}" * 10)


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        ("a/b/*.py", ("a/b", "*.py")),
        ("*.py", ("", "*.py")),
        ("/*.py", ("/", "*.py")),
        ("/a/**/b", ("/a", "**/b")),
    ],
)
def test_directory_before_the_first_magic_part(pattern: str, parts: tuple[str, str]) -> None:
    assert fixed_part(pattern) == parts
    assert is_glob(pattern)
