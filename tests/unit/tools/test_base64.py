"""Bytes as programs write them in base64."""

from __future__ import annotations

import base64

import pytest

from exai.errors import InvalidArgument
from exai.tools.files import PutArguments, bytes_of

DATA = bytes(range(256))
PLAIN = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        base64.encodebytes(DATA).decode(),
        base64.encodebytes(DATA).decode().replace("\n", "\r\n"),
        base64.urlsafe_b64encode(DATA).decode(),
        PLAIN.rstrip("="),
        f"data:application/octet-stream;base64,{PLAIN}",
        f" {PLAIN}\n",
    ],
)
def test_every_form_of_base64_is_the_same_bytes(text: str) -> None:
    """`base64 FILE` breaks lines, JavaScript and JWT libraries leave the padding out."""
    assert bytes_of(PutArguments(name="a", content_base64=text)) == DATA


@pytest.mark.parametrize("text", ["a", "abc!", "ab=c", "data:text/plain,abcd", "YWJj=YWJj", "\u00e9\u00e9\u00e9\u00e9"])
def test_what_is_not_base64_is_refused(text: str) -> None:
    """Bytes are never guessed."""
    with pytest.raises(InvalidArgument, match="is not base64"):
        bytes_of(PutArguments(name="a", content_base64=text))
