"""The size of a prompt, as learned from token counts and refusals."""

from __future__ import annotations

import pytest

from exai.errors import ProviderTooLong
from exai.providers.base import Model
from exai.providers.completion.failures import read_failure
from exai.providers.completion.sizing import MAX_FACTOR, Sizing
from exai.providers.completion.windows import TooLong, too_long

MODEL = Model("local/m", "local", "m", 8_000, 8_000)


def refused(limit: int | None = None, sent: int | None = None) -> ProviderTooLong:
    return ProviderTooLong("local", "too long", limit_tokens=limit, sent_tokens=sent)


def test_answer_room_is_kept_but_never_more_than_half_the_window() -> None:
    """A huge max_output_tokens must not leave a prompt without room."""
    assert Sizing().limit(MODEL, None) == 8_000 - 1_024
    assert Sizing().limit(MODEL, 7_900) == 4_000


def test_history_leaves_a_tenth_of_the_window_free() -> None:
    """The estimate of a single text errs by about that much in both directions."""
    assert Sizing().room(MODEL, None) == int((8_000 - 1_024) * 0.9)
    assert Sizing().room(MODEL, 7_900) == 3_600


def test_text_with_more_tokens_than_estimated_gets_less_room() -> None:
    """The mean of the counts is taken, within limits: one odd count must not halve the window."""
    sizing = Sizing()
    sizing.learn(MODEL, 3_000, 3_600)
    assert sizing.limit(MODEL, None) == int((8_000 - 1_024) / 1.2)
    for _ in range(20):
        sizing.learn(MODEL, 3_000, 12_000)
    assert sizing.limit(MODEL, None) == int((8_000 - 1_024) / 1.5)


def test_room_changes_in_steps() -> None:
    """A room that changed with each count would move the oldest message sent, and end the provider's cached prefix."""
    sizing, rooms = Sizing(), set()
    for counted in (3_010, 3_040, 3_090, 3_020, 3_070, 3_060):
        sizing.learn(MODEL, 3_000, counted)
        rooms.add(sizing.room(MODEL, None))
    assert len(rooms) == 1


def test_what_was_learned_is_reported_with_its_spread() -> None:
    """An operator sees how far the estimate is from the counts of each model."""
    sizing = Sizing()
    for counted in (3_300, 2_700, 3_300, 2_700):
        sizing.learn(MODEL, 3_000, counted)
    (learned,) = sizing.learned("local")
    assert (learned.model, learned.counts) == ("local/m", 4)
    assert 0.9 < learned.factor < 1.1
    assert 0.05 < learned.spread < 0.2
    assert sizing.learned("kimi") == ()


def test_only_a_prompt_near_the_limit_needs_the_providers_count() -> None:
    """A count is one more request."""
    sizing = Sizing()
    room = sizing.room(MODEL, None)
    assert not sizing.is_near_limit(MODEL, int(room * 0.89), None)
    assert sizing.is_near_limit(MODEL, int(room * 0.91), None)
    refused = sizing.exceeds(MODEL, 7_000, None)
    assert refused is not None
    assert "7,000" in str(refused)
    assert sizing.exceeds(MODEL, 6_900, None) is None


def test_more_room_is_given_only_after_several_counts() -> None:
    """English has fewer tokens than estimated; one prompt does not prove it."""
    sizing = Sizing()
    for _ in range(2):
        sizing.learn(MODEL, 3_000, 2_100)
        assert sizing.limit(MODEL, None) == 8_000 - 1_024
    sizing.learn(MODEL, 3_000, 2_100)
    assert sizing.limit(MODEL, None) > 8_000


def test_short_prompts_and_missing_counts_teach_nothing() -> None:
    """A template of fifty tokens around a word."""
    sizing = Sizing()
    sizing.learn(MODEL, 10, 60)
    sizing.learn(MODEL, 5_000, 0)
    assert sizing.factor(MODEL) == 1


def test_refusal_with_numbers_teaches_window_and_factor() -> None:
    """The server's numbers replace the assumed ones."""
    sizing = Sizing()
    assert sizing.less_room(MODEL, 6_000, refused(4_096, 9_000), None) == int((4_096 - 1_024) * 0.9 / 1.5)
    assert sizing.window(MODEL) == 4_096


def test_each_refusal_without_numbers_leaves_less() -> None:
    """So that the number of tries is bounded."""
    sizing = Sizing()
    room, rooms = sizing.room(MODEL, None), []
    for _ in range(5):
        room = sizing.less_room(MODEL, room, refused(), None)
        rooms.append(room)
    assert rooms == sorted(set(rooms), reverse=True)
    assert rooms[-1] < 8_000 / 4
    assert sizing.factor(MODEL) <= MAX_FACTOR


def test_what_a_refusal_taught_fades_with_accepted_prompts() -> None:
    """One page of hexadecimal digits must not halve a conversation for ever."""
    sizing = Sizing()
    sizing.less_room(MODEL, 5_000, refused(None, 10_000), None)
    before = sizing.factor(MODEL)
    for _ in range(20):
        sizing.learn(MODEL, 3_000, 3_000)
    assert before == 2
    assert sizing.factor(MODEL) == pytest.approx(1.05)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            400,
            {
                "error": {
                    "code": "context_length_exceeded",
                    "message": "This model's maximum context length is 8192 tokens. However, your messages resulted in "
                    "10021 tokens. Please reduce the length of the messages.",
                }
            },
            TooLong(8_192, 10_021),
        ),
        (
            400,
            {
                "object": "error",
                "message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens "
                "(4000 in the messages, 1000 in the completion).",
                "type": "BadRequestError",
                "code": 400,
            },
            TooLong(4_096, 5_000),
        ),
        (
            400,
            {
                "error": {
                    "code": 400,
                    "message": "the request exceeds the available context size, try increasing it",
                    "type": "exceed_context_size_error",
                    "n_prompt_tokens": 9_000,
                    "n_ctx": 4_096,
                }
            },
            TooLong(4_096, 9_000),
        ),
        (400, {"error": {"code": "1261", "message": "Prompt exceeds max length"}}, TooLong(None, None)),
        (
            400,
            {
                "error": {
                    "type": "invalid_request_error",
                    "message": "Invalid request: Your request exceeded model token limit: 262144",
                }
            },
            TooLong(262_144, None),
        ),
        (
            400,
            {
                "type": "error",
                "error": {
                    "type": "invalid_request_error",
                    "message": "prompt is too long: 210000 tokens > 200000 maximum",
                },
            },
            TooLong(200_000, 210_000),
        ),
        (
            400,
            [
                {
                    "error": {
                        "code": 400,
                        "message": "The input token count (1200000) exceeds the maximum number of tokens allowed "
                        "(1048576).",
                        "status": "INVALID_ARGUMENT",
                    }
                }
            ],
            TooLong(1_048_576, 1_200_000),
        ),
        (400, {"error": {"message": "Range of input length should be [1, 30720]"}}, TooLong(30_720, None)),
        (
            400,
            {
                "message": "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum "
                "context length"
            },
            TooLong(32_768, 40_000),
        ),
        (
            400,
            {
                "error": "Trying to keep the first 4567 tokens when context the overflows. However, the model is "
                "loaded with context length of only 4096 tokens, which is not enough."
            },
            TooLong(4_096, None),
        ),
        (
            400,
            {"error": "This model's maximum prompt length is 131072 but the request contains 150000 tokens."},
            TooLong(131_072, 150_000),
        ),
        (500, {"error": {"message": "the input length exceeds the context length"}}, TooLong(None, None)),
        (413, "", TooLong(None, None)),
        (
            400,
            {"message": "too many tokens: the tokens in the prompt cannot exceed 128000 - received 140000."},
            TooLong(128_000, 140_000),
        ),
        (
            422,
            {"error": "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000"},
            TooLong(4_095, 5_000),
        ),
        (400, {"error": {"message": "Total input tokens 9000 exceed max_seq_len 8192"}}, TooLong(8_192, 9_000)),
        (400, {"error": {"message": "Prompt length 9000 is greater than max_seq_len 8192"}}, TooLong(8_192, 9_000)),
        (
            400,
            {"error": {"message": "Messages have 9000 tokens, which exceeds the max limit of 8192 tokens."}},
            TooLong(8_192, 9_000),
        ),
        (400, {"error": {"message": "Current length is 9012 while limit is 8192"}}, None),
        (
            400,
            {"error": {"code": "context_length_exceeded", "message": "Current length is 9012 while limit is 8192"}},
            TooLong(8_192, 9_012),
        ),
        (400, {"error": {"message": "输入内容超出模型最大长度限制"}}, TooLong(None, None)),
        (
            400,
            {"error": {"message": "max_tokens: 100000 is greater than the maximum number of output tokens 8192"}},
            None,
        ),
        (400, {"error": {"message": "max_completion_tokens exceeds the model's maximum output length of 4096"}}, None),
        (
            422,
            {"detail": [{"loc": ["body", "messages"], "msg": "Input is too long for requested model."}]},
            TooLong(None, None),
        ),
        (400, {"error": {"message": "temperature must be at most 1"}}, None),
        (400, {"error": {"message": "max_tokens is too large"}}, None),
        (429, {"error": {"message": "tokens per minute limit: 6000, context length 5000"}}, None),
        (400, {"error": {"message": "roles must alternate"}}, None),
    ],
)
def test_refusal_for_length_is_recognised_in_every_servers_words(status: int, body: object, expected: object) -> None:
    """OpenAI, vLLM, llama.cpp, GLM, Kimi, Anthropic, Gemini, DashScope, Mistral, LM Studio, xAI, Ollama, Cohere."""
    assert too_long(read_failure(body, status=status)) == expected
