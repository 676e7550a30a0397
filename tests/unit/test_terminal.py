"""`exai chat`: assembling a prompt."""

from __future__ import annotations

import io

import pytest

from exai.cli.chat import read_prompt
from exai.errors import InvalidArgument
from exai.settings.load import load_settings

SETTINGS = load_settings({"HOME": "/h", "EXAI_LIMITS__MESSAGE_BYTES": "1024"}, None)


@pytest.mark.parametrize(
    ("words", "typed", "prompt"),
    [
        (("what", "is", "two"), "not read", "what is two"),
        ((), "from a pipe\n", "from a pipe"),
        (("-",), "from a pipe\n", "from a pipe"),
        (("summarise", "this:", "-"), "a text\n", "summarise this:\n\na text"),
        (("-", "What", "of", "it?"), "a text\n", "a text\n\nWhat of it?"),
    ],
)
def test_words_and_standard_input_make_the_prompt(words: tuple[str, ...], typed: str, prompt: str) -> None:
    """Standard input is read only where it is asked for: an inherited pipe may never end."""
    assert read_prompt(words, io.StringIO(typed), SETTINGS) == prompt


@pytest.mark.parametrize("words", [(), ("-",), ("  ",)])
def test_empty_prompt_is_refused_with_the_way_to_write_one(words: tuple[str, ...]) -> None:
    """Nothing is asked of a model for nothing."""
    with pytest.raises(InvalidArgument, match="is empty") as caught:
        read_prompt(words, io.StringIO(" \n"), SETTINGS)
    assert "exai chat" in caught.value.cure


def test_endless_input_is_read_up_to_the_limit() -> None:
    """Every read has a limit."""
    source = io.StringIO("x" * 100_000)
    with pytest.raises(InvalidArgument, match="is longer than"):
        read_prompt((), source, SETTINGS)
    assert source.tell() == 1025
