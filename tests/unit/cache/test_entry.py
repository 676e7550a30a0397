"""Keys, headers and pages: what is decoded equals what was encoded."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exai.cache.entry import (
    Origin,
    cache_keys,
    decode_header,
    encode_entry,
    encode_header,
    same_json,
)
from exai.models import ContinuationId, Conversation, ConversationId, ConversationKey, Message, Owner
from exai.pages import JOINT, Undecodable, Unencodable, decode_page, encode_page

OWNER, NAME = Owner("me"), ContinuationId("thread")
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
ORIGIN = Origin(b"generation", 1_000_000, "epoch-1")

texts = st.text(st.characters(exclude_categories=["Cs"]))
times = st.datetimes(timezones=st.just(UTC))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
metadata = st.dictionaries(texts, values, max_size=3)
messages = st.builds(
    Message,
    seq=st.integers(1, 2**53),
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=texts,
    created_at=times,
    kind=texts,
    turn_id=st.none() | texts,
    metadata=metadata,
)
conversations = st.builds(
    Conversation,
    id=texts.map(ConversationId),
    continuation_id=st.just(NAME),
    owner=st.just(OWNER),
    title=st.none() | texts,
    metadata=metadata,
    last_seq=st.integers(0, 2**53),
    revision=st.integers(0, 2**53),
    created_at=times,
    updated_at=times,
    tags=st.lists(texts, max_size=3).map(tuple),
    parent_id=st.none() | texts.map(ConversationId),
    parent_seq=st.none() | st.integers(0, 2**53),
)


def message(seq: int, content: str = "words", **fields: object) -> Message:
    return Message(seq, "user", content, NOW)._replace(**fields)


def conversation(title: str | None = None) -> Conversation:
    return Conversation(ConversationId("id"), NAME, OWNER, title, {}, 1, 1, NOW, NOW)


class TestPages:
    @given(st.lists(messages, max_size=5))
    def test_page_comes_back_as_it_was(self, page: list[Message]) -> None:
        """P24 of the old system: a hit must not return other types than a miss."""
        decoded = decode_page(encode_page(page))
        assert decoded == tuple(page)
        assert all(type(each) is Message for each in decoded)

    @given(st.lists(messages, min_size=1, max_size=5))
    def test_joint_is_found_between_messages_only(self, page: list[Message]) -> None:
        """Scripts cut pages there without reading them."""
        assert encode_page(page).count(JOINT) == len(page) - 1

    @given(messages, messages)
    def test_pages_can_be_joined_by_scripts(self, first: Message, second: Message) -> None:
        """What APPLY does with a delta."""
        assert decode_page(encode_page([first]) + JOINT + encode_page([second])) == (first, second)

    def test_empty_page_is_a_page(self) -> None:
        """P32 of the old system: an empty conversation was a miss for ever."""
        assert decode_page(encode_page([])) == ()

    @pytest.mark.parametrize(
        "odd",
        [
            message(1, "\ud800"),
            message(1, metadata={"big": 2**64}),
            message(1, metadata={1: "key"}),
            message(1, metadata={"value": object()}),
        ],
    )
    def test_what_cannot_make_the_journey_is_refused(self, odd: Message) -> None:
        """It is then not cached, rather than changed."""
        with pytest.raises(Unencodable):
            encode_page([message(1), odd])

    @pytest.mark.parametrize(
        "blob", [b"not JSON", b"[1]", b'[1,"user","text","no time","message",null,{}]', b"{}", b"1"]
    )
    def test_what_this_release_did_not_write_is_not_read(self, blob: bytes) -> None:
        """A broken entry becomes a miss."""
        with pytest.raises(Undecodable):
            decode_page(blob)


class TestHeaders:
    @given(conversations)
    def test_header_comes_back_as_it_was(self, conversation: Conversation) -> None:
        """With the key's and the entry's own facts put back."""
        assert (
            decode_header(encode_header(conversation), ConversationKey(OWNER, NAME), conversation.revision)
            == conversation
        )

    def test_time_of_another_zone_is_the_same_time(self) -> None:
        """Postgres answers in UTC; nothing depends on it."""
        local = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
        assert decode_page(encode_page([message(1, created_at=local)]))[0].created_at == NOW

    @pytest.mark.parametrize("blob", [b"", b"[]", b"{}", b"null"])
    def test_what_this_release_did_not_write_is_not_read(self, blob: bytes) -> None:
        """A broken entry becomes a miss."""
        with pytest.raises(Undecodable):
            decode_header(blob, ConversationKey(OWNER, NAME), 1)


class TestEntries:
    def test_longer_page_keeps_its_newest_messages(self) -> None:
        """And is then not complete."""
        fields = encode_entry(conversation(), tuple(message(seq) for seq in range(1, 61)), True, ORIGIN, 1_000_000)
        entry = as_dict(fields)
        assert (entry["count"], entry["older"]) == (50, 1)
        assert [each.seq for each in decode_page(entry["page"])] == list(range(11, 61))

    def test_entry_just_small_enough_is_made_and_one_byte_less_room_is_too_little(self) -> None:
        """The limit is of header and page together."""
        page = (message(1), message(2))
        size = len(encode_header(conversation())) + len(encode_page(page))
        assert encode_entry(conversation(), page, True, ORIGIN, size) is not None
        assert encode_entry(conversation(), page, True, ORIGIN, size - 1) is None

    def test_header_that_cannot_be_encoded_makes_no_entry(self) -> None:
        """Nor does a page."""
        assert encode_entry(conversation("\ud800"), (), True, ORIGIN, 1_000) is None


class TestPlaces:
    @given(texts, texts, texts, texts)
    def test_two_conversations_never_share_a_key(self, owner: str, name: str, other: str, other_name: str) -> None:
        """Isolation of owners rests on it."""
        one = cache_keys(ConversationKey(Owner(owner), ContinuationId(name)), 16)
        two = cache_keys(ConversationKey(Owner(other), ContinuationId(other_name)), 16)
        assert (one.entry == two.entry) == ((owner, name) == (other, other_name))

    @given(texts, texts, st.sampled_from([1, 16]))
    def test_keys_of_a_conversation_share_one_slot(self, owner: str, name: str, groups: int) -> None:
        """A script may access keys of one slot only; the hash tag is in the first braces."""
        where = cache_keys(ConversationKey(Owner(owner), ContinuationId(name)), groups)
        tags = {re.search(r"\{([^}]*)\}", key)[1] for key in (where.entry, where.lease, where.watermark)}  # type: ignore[index]
        assert tags == {f"g{where.group}"}

    def test_places_never_change(self) -> None:
        """Daemons of two releases share one Redis; this format's keys are fixed."""
        where = cache_keys(ConversationKey(Owner("a b"), ContinuationId("c:d/é")), 16)
        assert where.entry == "exai:2:{g9}:a%20b:c%3Ad%2F%C3%A9:e"
        assert where.lease == "exai:2:{g9}:a%20b:c%3Ad%2F%C3%A9:z"
        assert where.watermark == "exai:2:{g9}:watermark"


def as_dict(fields: object) -> dict[str, object]:
    assert isinstance(fields, tuple)
    return dict(zip(fields[::2], fields[1::2], strict=True))


class TestSameJson:
    @pytest.mark.parametrize(
        ("one", "other", "same"),
        [
            ({"a": [4.392276549653794e16]}, {"a": [43922765496537940]}, True),
            ({"a": 1e300, "b": 0.5}, {"b": 0.5, "a": 1e300}, True),
            ({"a": 1}, {"a": True}, False),
            ({"a": 1}, {"a": 2}, False),
            ({"a": 2**60}, {"a": 2**60 + 1}, False),
            ({"a": 1}, {"b": 1}, False),
            ([1, [None]], [1, [None, None]], False),
        ],
    )
    def test_numbers_are_compared_by_value(self, one: object, other: object, same: bool) -> None:
        """A float that comes back from the database in full is no difference; anything else is."""
        assert same_json(one, other) is same
