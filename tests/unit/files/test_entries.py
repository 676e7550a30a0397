"""Places in files, as people, compilers and web pages write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exai.files.sources.entries import LineRange, path_of, range_of
from exai.files.sources.filling import lines_of, number


@given(st.text("a/.:#L-", min_size=1, max_size=8), st.integers(1, 10**8), st.integers(1, 10**8))
def test_range_behind_any_path(path: str, one: int, other: int) -> None:
    first, last = sorted((one, other))
    for form in (f"{path}:{one}-{other}", f"{path}#L{one}-L{other}", f"{path}#L{one}-{other}"):
        found = range_of(form)
        assert found is not None
        assert found[1] == LineRange(first, last)
        assert form.startswith(found[0])


@pytest.mark.parametrize("text", ["a.py", "a.py:", ":10", "a.py:x", "a.py:1-", "a.py:-5", "", "a.py:99999999999"])
def test_paths_without_a_range(text: str) -> None:
    assert range_of(text) is None


@given(st.text("ab\n\r\t\f", max_size=60), st.integers(1, 40))
def test_numbered_lines_are_the_lines(text: str, first: int) -> None:
    """Without the numbers it is the same text, and only line feeds end lines."""
    lines = lines_of(text)
    assert "".join(lines) == text
    numbered = number(lines, first)
    plain = [each.removeprefix(f"{first + place}\t") for place, each in enumerate(numbered)]
    assert "".join(plain) == text
    assert all(
        numbered[place].startswith(f"{first + place}\t") for place in range(len(lines)) if (first + place) % 10 == 0
    )


@pytest.mark.parametrize(
    ("given_path", "path"),
    [
        ("C:\\Users\\me\\a b.py", "/mnt/c/Users/me/a b.py"),
        ("d:/x/y.py", "/mnt/d/x/y.py"),
        ("\\\\wsl$\\Ubuntu\\home\\me\\a.py", "/home/me/a.py"),
        ("//wsl.localhost/Ubuntu/home/me", "/home/me"),
        ("file:///home/me/a%20b.py", "/home/me/a b.py"),
        (" a.py ", "a.py"),
    ],
)
def test_paths_of_other_forms(given_path: str, path: str) -> None:
    assert path_of(given_path) == path
