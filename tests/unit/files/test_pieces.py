"""Large content of messages: what is put in comes back identical, and only large content leaves the text."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exai.files.pieces import LEAST_BYTES, TAKEN_OUT, Taken, is_piece, occurrences_of, pieces_of, put_back, take_out
from exai.models import FILE_IDS, LOCAL_OWNER, FileId, Message, NewMessage

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 120
URL = "data:image/png;base64,"
LIMIT = 200_000
FILE_LIMIT = 1_000_000


def encoded(data: bytes = PNG) -> str:
    return base64.b64encode(data).decode()


def lines(text: str, width: int, end: str) -> str:
    return end.join(text[at : at + width] for at in range(0, len(text), width))


def stored(text: str, taken: Taken, metadata: dict[str, Any] | None = None) -> Message:
    """The message as the database returns it."""
    new = taken.applied(NewMessage("user", text, metadata=metadata or {}))
    return Message(1, "user", new.content, datetime.now(UTC), metadata=json.loads(json.dumps(dict(new.metadata))))


def restored(text: str, taken: Taken, metadata: dict[str, Any] | None = None) -> Message:
    return put_back(stored(text, taken, metadata), {piece.id: piece.data for piece in taken.pieces})


SHAPES: dict[str, Callable[[], str]] = {
    "URL in Markdown": lambda: f"see ![it]({URL}{encoded()}) there",
    "URL in JSON": lambda: json.dumps([{"type": "image_url", "image_url": {"url": URL + encoded()}}]),
    "image alone": encoded,
    "image after a sign": lambda: f"src={encoded()}&x=1",
    "lines of 76": lambda: f"Look:\n{lines(encoded(), 76, chr(10))}\nWhat is it?",
    "lines of 64 with CR": lambda: f"{lines(encoded(), 64, chr(13) + chr(10))}\r\n\r\nWhat is it?",
    "lines in JSON": lambda: json.dumps({"data": lines(encoded(), 76, "\n"), "more": "x"}),
    "escaped slashes": lambda: json.dumps({"url": URL + encoded(PNG + b"\xff" * 99)}).replace("/", "\\/"),
    "image with escaped slashes": lambda: encoded(PNG + b"\xff" * 99).replace("/", "\\/"),
    "without padding": lambda: URL + encoded(PNG + b"1").rstrip("="),
    "URL alphabet": lambda: URL + base64.urlsafe_b64encode(PNG + b"\xff\xfe" * 99).decode(),
    "capitals": lambda: "data:image/PNG;BASE64," + encoded(),
    "parameters": lambda: "data:image/png;name=a.png;base64," + encoded(),
    "no type": lambda: "data:;base64," + encoded(),
}
AS_TEXT: dict[str, Callable[[], str]] = {
    "padding in excess": lambda: URL + encoded().rstrip("=") + "AAA==",
    "length of no base64": lambda: encoded()[: LEAST_BYTES + 1],
    "bits after the end": lambda: URL + encoded(PNG + b"1")[:-3] + "/==",
    "uneven lines": lambda: lines(encoded(), 76, "\n")[:40_000] + "\r\n" + "A" * 50,
    "percent encoding": lambda: "before data:image/svg+xml;utf8," + "%3Csvg%3E" * 5_000 + " after",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_image_is_taken_out_as_its_bytes_and_put_back_as_its_text(shape: str) -> None:
    text = SHAPES[shape]()
    taken = take_out(LOCAL_OWNER, text, LIMIT, FILE_LIMIT)
    assert taken is not None
    (piece,) = taken.pieces
    assert piece.data.startswith(PNG)
    assert piece.media_type == "image/png"
    assert len(taken.content) < 1_000
    for part in (piece.name, piece.media_type, str(len(piece.data)), piece.sha256, piece.id):
        assert part in taken.content
    assert restored(text, taken).content == text
    assert is_piece(LOCAL_OWNER, piece.id, piece.sha256, piece.media_type)


@pytest.mark.parametrize("shape", AS_TEXT)
def test_what_is_no_canonical_base64_comes_back_identical(shape: str) -> None:
    text = AS_TEXT[shape]()
    taken = take_out(LOCAL_OWNER, text, LIMIT, FILE_LIMIT)
    assert taken is not None
    assert len(taken.content) < 9_000
    assert restored(text, taken).content == text


def test_size_decides() -> None:
    """A URL of 32,000 bytes is large, one with a byte less is not; nor is other base64."""
    for size, is_large in ((LEAST_BYTES, True), (LEAST_BYTES - 1, False)):
        text = "x " * 20_000 + (URL + encoded())[:size]
        assert (take_out(LOCAL_OWNER, text, LIMIT, FILE_LIMIT) is not None) is is_large
    assert take_out(LOCAL_OWNER, encoded(b"some bytes" * 9_000), LIMIT, FILE_LIMIT) is None
    assert take_out(LOCAL_OWNER, "data: " + "word " * 20_000, LIMIT, FILE_LIMIT) is None
    assert take_out(LOCAL_OWNER, URL + encoded(), LIMIT, 1_000) is None


def test_same_image_twice_is_one_file_and_two_places() -> None:
    text = f"{encoded()} and {URL}{encoded()}"
    taken = take_out(LOCAL_OWNER, text, LIMIT, FILE_LIMIT)
    assert taken is not None
    assert len(taken.pieces) == 2
    assert len(taken.file_ids) == 1
    assert restored(text, taken).content == text


def test_text_beyond_the_limit_keeps_its_beginning() -> None:
    text = "Beginning é. " + "wörd " * 100_000
    taken = take_out(LOCAL_OWNER, text, LIMIT, FILE_LIMIT)
    assert taken is not None
    assert taken.content.startswith("Beginning")
    assert len(taken.content.encode()) < LIMIT
    assert taken.pieces[0].media_type == "text/plain"
    assert restored(text, taken).content == text
    assert take_out(LOCAL_OWNER, text, LIMIT, 1_000) is None


@pytest.mark.parametrize("text", ["\0" + "x" * LIMIT * 2, "\ud800" * LIMIT * 2, None, 7, b"x" * LIMIT * 2])
def test_what_cannot_be_stored_is_left_to_validation(text: object) -> None:
    assert take_out(LOCAL_OWNER, text, LIMIT, FILE_LIMIT) is None


@pytest.mark.parametrize(
    "metadata", [{}, {FILE_IDS: []}, {FILE_IDS: ["a", "b"]}, {FILE_IDS: "no list", "x": [1]}, {FILE_IDS: [1]}]
)
def test_metadata_of_the_caller_comes_back(metadata: dict[str, Any]) -> None:
    text = encoded()
    taken = take_out(LOCAL_OWNER, text, LIMIT, FILE_LIMIT)
    assert taken is not None
    message = stored(text, taken, metadata)
    assert TAKEN_OUT in message.metadata
    assert dict(restored(text, taken, metadata).metadata) == metadata


def damaged(entry: dict[str, Any]) -> list[dict[str, Any]]:
    broken: list[dict[str, Any]] = [
        {**entry, name: value} for name in entry for value in (None, -1, 10**9, "x", [], {})
    ]
    return [*broken, {}, {**entry, "form": {"code": "base64"}}]


def test_metadata_that_another_client_wrote_is_no_reason_to_fail() -> None:
    """What does not fit the content is ignored; a text that looks like a reference stays what it is."""
    text = f"say {encoded()}"
    taken = take_out(LOCAL_OWNER, text, LIMIT, FILE_LIMIT)
    assert taken is not None
    message, found = stored(text, taken), {taken.pieces[0].id: PNG}
    for facts in (None, [], "x", {}, {"pieces": None}, {"pieces": [None]}):
        assert put_back(message._replace(metadata={TAKEN_OUT: facts}), found).content == message.content
    (entry,) = message.metadata[TAKEN_OUT]["pieces"]
    for each in damaged(entry):
        shown = put_back(message._replace(metadata={TAKEN_OUT: {"pieces": [each]}}), found)
        assert isinstance(shown.content, str)
    twice = message._replace(metadata={TAKEN_OUT: {"pieces": [entry, entry]}})
    assert put_back(twice, found) == twice
    assert put_back(message, {}) == message
    plain = message._replace(metadata={})
    assert pieces_of(plain) == ()
    assert put_back(plain, found) == plain


FRAGMENTS = st.one_of(
    st.text(max_size=50),
    st.sampled_from(
        [
            URL,
            "data:image/svg+xml,",
            "data:,",
            encoded(),
            encoded()[:32_010],
            lines(encoded(), 76, "\n"),
            "/9j/",
            "\\/9j\\/",
        ]
    ),
    st.builds(lambda data: URL + encoded(data * 9_000), st.binary(min_size=3, max_size=9)),
    st.builds(lambda data: encoded(PNG + data), st.binary(max_size=9)),
    st.builds(lines, st.just(encoded()), st.integers(1, 1_200), st.sampled_from(["\n", "\r\n", "\\n", " "])),
    st.builds(lambda text: text * 4_000, st.text(min_size=1, max_size=30)),
    st.sampled_from(['<content name="a" type="b" size="1" sha256="c" id="d"/>', "=", "==", "AAAA", "-", "_"]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(FRAGMENTS, min_size=1, max_size=6).map("".join))
def test_any_content_comes_back_identical(text: str) -> None:
    """And what is left fits the limit, unless the text as a whole cannot be stored."""
    taken = take_out(LOCAL_OWNER, text, 60_000, FILE_LIMIT)
    if taken is None:
        return
    assert restored(text, taken).content == text
    assert len(taken.content.encode()) <= 60_000


def test_many_beginnings_cost_no_more_than_the_length_of_the_text() -> None:
    """Each run is looked at once: the number of steps is that of the beginnings."""
    text = ("data:a/b," * 3_000 + " ") * 60
    assert take_out(LOCAL_OWNER, text, len(text), FILE_LIMIT) is None


def forged(entries: list[Any], count: int = 1) -> Message:
    """A message as another client of the database can write it: `count` references, described by `entries`."""
    reference = f'<content name="a" id="{OWN}"/>'
    described = [
        {"at": n * len(reference), "chars": len(reference), "id": OWN, **each} for n, each in enumerate(entries)
    ]
    return Message(1, "user", reference * count, datetime.now(UTC), metadata={TAKEN_OUT: {"pieces": described}})


OWN = FileId("0f1f1a53-5f0e-4f63-9a4e-0c6e4f3f2d10")
FORM = {"code": "base64", "prefix": "", "padding": 0}


@pytest.mark.parametrize(
    "form",
    [
        {**FORM, "padding": 10**30},
        {**FORM, "padding": 10**9},
        {**FORM, "line": 1, "end": "x" * 100_000},
        {**FORM, "line": -1, "end": "\n"},
        {**FORM, "prefix": "x" * 100_000},
        {**FORM, "prefix": ["x"]},
        {**FORM, "code": "other"},
        {"code": "base64"},
        [1],
        "text",
    ],
)
def test_a_forged_form_makes_no_text(form: object) -> None:
    """A few bytes of metadata would become a text of any size."""
    message = forged([{"form": form}])
    assert pieces_of(message) == ()
    assert put_back(message, {OWN: PNG}) == message


def test_forged_references_to_one_file_make_no_text_of_any_size() -> None:
    """Each is counted, and nothing is put back beyond the limit."""
    message = forged([{"form": FORM}] * 500, 500)
    assert pieces_of(message) == (OWN,)
    assert len(occurrences_of(message)) == 500
    assert put_back(message, {OWN: bytes(1_000_000)}) == message
    assert len(put_back(message, {OWN: bytes(3)}).content) == 2_000


@pytest.mark.parametrize("id_", [5, None, ["x"], {"a": 1}, "not-an-id"])
def test_a_forged_id_is_none(id_: object) -> None:
    """The ids are parameters of a statement."""
    message = forged([{"id": id_}])
    message = message._replace(content=message.content.replace(OWN, str(id_)))
    chars = len(message.content)
    message.metadata[TAKEN_OUT]["pieces"][0]["chars"] = chars
    assert pieces_of(message) == ()
