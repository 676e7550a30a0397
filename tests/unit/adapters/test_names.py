"""Names of conversations are made of the ids of frameworks: readable, storable, and different for different ids."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from exai.adapters.names import conversation_name, name_prefix, session_name
from exai.validation import MAX_CONTINUATION_CHARS, check_conversation

IDS = st.lists(st.text(alphabet=st.sampled_from("ab/%~2F\0\ud800é"), max_size=200), min_size=4, max_size=4)
SESSIONS = st.text(alphabet=st.characters(), max_size=700)


@given(IDS, IDS)
def test_different_ids_have_different_names_and_every_name_can_be_stored(first: list[str], second: list[str]) -> None:
    assert (conversation_name(*first) == conversation_name(*second)) == (first == second)
    check_conversation("local", conversation_name("prefix", *first[:3]))
    assert conversation_name(*first).startswith(name_prefix(*first[:3]))


@given(SESSIONS)
def test_the_id_of_a_session_is_its_name_if_it_can_be_one(session_id: str) -> None:
    name = session_name(session_id)
    check_conversation("local", name)
    if session_id and session_id.isascii() and session_id.isprintable() and len(session_id) <= MAX_CONTINUATION_CHARS:
        assert name == session_id


def test_the_ids_of_two_sessions_have_one_name_only_if_they_are_equal() -> None:
    long, other = "x" * 600, "x" * 599 + "y"
    names = [session_name(each) for each in (long, other, session_name(long), "", "\0", "\ud800", "%00", "a/b")]
    assert len(set(names)) == len(names)
    assert names[-2:] == ["%00", "a/b"]


def test_a_name_begins_as_that_of_no_other_project() -> None:
    assert not conversation_name("claude", "a/b", "c").startswith(name_prefix("claude", "a"))
    assert not conversation_name("claude", "ab", "c").startswith(name_prefix("claude", "a"))
