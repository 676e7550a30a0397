"""Control characters are shown instead of sent to the terminal."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exai.cli.terminal_text import printable, shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("\x1b]52;c;ZXZpbA==\x07", "␛]52;c;ZXZpbA==␇"),
        ("\x1b[2Jgone", "␛[2Jgone"),
        ("\x9b31m and \x9d0;title\x9c", "\ufffd31m and \ufffd0;title\ufffd"),
        ("safe\rEVIL", "safe␍EVIL"),
        ("\b\b\x7f\x00", "␈␈␡␀"),
        ("user\u202ecod.exe", "user\ufffdcod.exe"),
        ("\u2066a\u2069\u2028b", "\ufffda\ufffd\ufffdb"),
        ("tab\tline\r\nend\r", "tab\tline\nend"),
        ("می‌خواهم 👨‍👩‍👧 é \u200f", "می‌خواهم 👨‍👩‍👧 é \u200f"),
    ],
)
def test_control_characters_become_signs(text: str, written: str) -> None:
    """ESC, OSC 52, C1 and overrides of the writing direction; joiners and marks of languages stay."""
    assert printable(text) == written
    assert shown(text, Terminal()) == written


def test_pipes_and_files_get_the_text_as_it_is() -> None:
    """A program reads it."""
    assert shown("\x1b[2J\r", io.StringIO()) == "\x1b[2J\r"


@given(st.text())
def test_nothing_but_tab_and_line_feed_controls_a_terminal(text: str) -> None:
    """For any text of a model."""
    written = printable(text)
    assert all(char in "\t\n" or not (ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0) for char in written)
    assert printable(written) == written
