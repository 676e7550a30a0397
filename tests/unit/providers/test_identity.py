"""The digest by which an answer is found again."""

from __future__ import annotations

from dataclasses import replace

from exai.models import CompletionRequest, Prompt, PromptImage
from exai.providers.base import ImageLimits, Model
from exai.providers.completion.identity import digest_of, identity_of
from exai.providers.families.kimi import KIMI

MODEL = Model("m", "kimi", "m-1", 8_192, 1_024, temperature=(0.0, 1.0), images=ImageLimits(4, 1_000))
REQUEST = CompletionRequest("m", [Prompt("user", "Hi")])


def test_borders_between_parts_cannot_be_mistaken() -> None:
    """Joined texts would be equal for different parts."""
    groups = [(b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"abc", b""), (b"", b"abc"), (b"a", b"b", b"c")]
    assert len({digest_of(parts) for parts in groups}) == len(groups)


def test_each_thing_that_an_answer_depends_on_changes_the_identity() -> None:
    """The sampling too: omitted, the lowest and the highest temperature are three questions."""
    requests = [
        REQUEST,
        replace(REQUEST, temperature=0.0),
        replace(REQUEST, temperature=1.0),
        replace(REQUEST, max_output_tokens=10),
        replace(REQUEST, web_search=True),
        replace(REQUEST, messages=[Prompt("user", "Hi!")]),
        replace(REQUEST, messages=[Prompt("system", "Hi"), Prompt("user", "Hi")]),
        replace(REQUEST, messages=[Prompt("user", "Hi"), Prompt("assistant", "Hi"), Prompt("user", "Hi")]),
        replace(REQUEST, messages=[Prompt("user", "Hi", (PromptImage("image/png", b"1"),))]),
        replace(REQUEST, messages=[Prompt("user", "Hi", (PromptImage("image/png", b"2"),))]),
    ]
    found = [identity_of(KIMI, "http://a", MODEL, request) for request in requests]
    found.append(identity_of(KIMI, "http://b", MODEL, REQUEST))
    found.append(identity_of(KIMI, "http://a", replace(MODEL, wire_name="m-2"), REQUEST))
    found.append(identity_of(replace(KIMI, name="other"), "http://a", MODEL, REQUEST))
    assert len(set(found)) == len(found)
    assert identity_of(KIMI, "http://a", replace(MODEL, stream_usage=False), REQUEST) == found[0]
