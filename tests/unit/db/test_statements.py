"""The named statements: unique names, one statement each, every parameter cast."""

from __future__ import annotations

import re

import pytest

from exai.db.driver.statements import load_statements, parse_statements


def test_every_parameter_is_cast_in_the_text() -> None:
    """The driver remembers parameter types per connection, so the text has to fix them."""
    for statement in load_statements().values():
        assert not re.findall(r"\$\d+(?!\d|::)", statement.text), statement.name


def test_no_statement_selects_a_star() -> None:
    """A column added by a later migration must not change a remembered row description."""
    for statement in load_statements().values():
        assert not re.search(r"\*", re.sub(r"count\(\*\)|'[^']*'", "", statement.text)), statement.name


def test_statements_are_split_at_their_names_and_lose_their_comments() -> None:
    """The text is parsed by the server for each call, so comments are removed."""
    source = (
        "-- name: a\n-- repeat: read\n-- Purpose.\nselect 1::int;\n\n-- name: b\n-- repeat: never\nselect\n  2::int\n"
    )
    first, second = parse_statements(source)
    assert (first.name, first.repeat, first.text) == ("a", "read", "select 1::int")
    assert (second.name, second.repeat, second.text) == ("b", "never", "select\n  2::int")


@pytest.mark.parametrize(
    "body", ["-- repeat: sometimes\nselect 1", "-- repeat: read\n", "-- repeat: read\nselect 1; select 2"]
)
def test_a_broken_statement_is_refused_at_start(body: str) -> None:
    """A defect in a file must not wait for its first use."""
    with pytest.raises(ValueError, match="statement a"):
        parse_statements(f"-- name: a\n{body}\n")
