"""Images are known by their bytes, and hostile headers are none."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exai.files.images import ImageFacts, image_of

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAMAAAACCAIAAAASFvFNAAAAEElEQVR4nGP4z8AARAwQCgAf7gP9i18U1AAAAABJRU5ErkJggg=="
)
GIF = b"GIF89a\x05\x00\x04\x00\x80\x00\x00"
JPEG = (
    b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    b"\xff\xff\xe1\x00\x04ab\xff\xc2\x00\x11\x08\x00\x10\x00\x20\x03\x01\x11\x00\x02\x11\x00\x03\x11\x00"
)
WEBP = {
    b"VP8X": b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (639).to_bytes(3, "little") + (479).to_bytes(3, "little"),
    b"VP8L": b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f" + ((639) | (479 << 14)).to_bytes(4, "little"),
    b"VP8 ": b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\0\0\0\x9d\x01\x2a\x80\x02\xe0\x01",
}


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        (PNG, ImageFacts("image/png", 3, 2)),
        (GIF, ImageFacts("image/gif", 5, 4)),
        (JPEG, ImageFacts("image/jpeg", 32, 16)),
        *((data, ImageFacts("image/webp", 640, 480)) for data in WEBP.values()),
    ],
)
def test_kind_and_size(data: bytes, facts: ImageFacts) -> None:
    assert image_of(data) == facts


@pytest.mark.parametrize("data", [b"", b"BM", PNG[:18], PNG[:16] + b"\0" * 8, b"\xff\xd8\xff" * 3, b"<svg/>", b"RIFF"])
def test_other_contents_are_none(data: bytes) -> None:
    assert image_of(data) is None


@given(st.sampled_from([PNG, GIF, JPEG, *WEBP.values()]), st.integers(0, 60), st.binary(max_size=8))
def test_damaged_headers_end(data: bytes, place: int, noise: bytes) -> None:
    """Without an error, and with a size that is positive."""
    found = image_of(data[:place] + noise + data[place + len(noise) :])
    assert found is None or (found.width > 0 and found.height > 0)
