"""A file by lines: short and long, in every encoding; the pages together are the text."""

from __future__ import annotations

import pytest

from exai.errors import InvalidArgument
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER
from tests.integration.blobs.conftest import Stored

TEXTS = {
    "short": "one\ntwo\r\nthree",
    "ends with a line feed": "a\nb\n",
    "other separators are characters": "a\u2028b\x0cc\rd\ne",
    "long": "".join(f"{n} aé数😀\n" for n in range(150_000)) + "end",
    "one long line": "x" * 1_500_000 + "\nlast\n",
}


@pytest.mark.parametrize("stored", ["postgres", "directory", "supabase"], indirect=True)
async def test_pages_of_lines_are_the_text(stored: Stored) -> None:
    """The offset of each page is its place in the characters of the text. A bucket is read as any other store."""
    for text in TEXTS.values():
        for codec in ("utf-8", "utf-8-sig", "utf-16"):
            await check_pages(stored, text, codec)


async def check_pages(stored: Stored, text: str, codec: str) -> None:
    (file,) = await stored.files.put(LOCAL_OWNER, [FileContent("a.txt", text.encode(codec))])
    pieces, line = [], 1
    while True:
        page = await stored.files.read_lines(LOCAL_OWNER, file.id, line, 40_000, 300_000)
        assert page.offset == sum(map(len, pieces))
        assert page.lines <= 40_000
        assert len(page.text) <= 300_000 or page.lines == 1
        pieces.append(page.text)
        line += page.lines
        if page.is_last:
            break
    assert "".join(pieces) == text
    with pytest.raises(InvalidArgument, match="beyond the end"):
        await stored.files.read_lines(LOCAL_OWNER, file.id, line, 1, 100)


async def test_lines_of_a_binary_file_are_refused(stored: Stored) -> None:
    """The error says how to read it."""
    (file,) = await stored.files.put(LOCAL_OWNER, [FileContent("a.bin", bytes(range(256)))])
    with pytest.raises(InvalidArgument, match="by offset"):
        await stored.files.read_lines(LOCAL_OWNER, file.id, 1, 1, 100)


async def test_beginning_of_a_line_that_is_longer_than_any_answer(stored: Stored) -> None:
    """Not all of it is held; the rest is read by offset."""
    text = "first\n" + "é" * 4_000_000
    (file,) = await stored.files.put(LOCAL_OWNER, [FileContent("a.txt", text.encode())])
    page = await stored.files.read_lines(LOCAL_OWNER, file.id, 2, 10, 1_000)
    assert (page.offset, page.lines, page.is_last) == (6, 0, False)
    assert len(page.text) < 1_000_000
    part = await stored.files.read_part(LOCAL_OWNER, file.id, page.offset + len(page.text), 5)
    assert part.text == "ééééé"
