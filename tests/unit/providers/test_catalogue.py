"""Model facts: EXAI's own file, the user's overrides, and errors in either."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from exai.errors import ConfigError
from exai.models import Usage
from exai.providers.base import Family
from exai.providers.catalogue import MAX_FILE_BYTES, Catalogue, load_catalogue
from exai.providers.endpoints import NAMED

OLLAMA = Family("ollama", "http://localhost:11434/v1", "KEY", limit_field="max_tokens", stream_usage=True)
FAMILIES = {**NAMED, "ollama": OLLAMA}


def load(tmp_path: Path, text: str) -> Catalogue:
    path = tmp_path / "models.toml"
    path.write_text(text)
    return load_catalogue(path, FAMILIES)


def problem(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    assert refused.value.setting == "EXAI_PROVIDERS__MODELS_FILE"
    return refused.value.problem


def test_own_catalogue_is_sound_and_has_the_current_models() -> None:
    """The file EXAI ships passes its own checks."""
    catalogue = load_catalogue(None, NAMED)
    assert {"kimi-k3.1-pro", "kimi-k3", "kimi-k2.6", "glm-5.3", "glm-5.2", "glm-4.7"} <= set(catalogue.models)
    assert catalogue.models["kimi-k3"].context_window == 1_048_576
    assert catalogue.models["kimi-k3"].temperature is None
    assert list(catalogue.defaults) == list(NAMED)
    assert (catalogue.defaults["kimi"], catalogue.defaults["glm"]) == ("kimi-k3.1-pro", "glm-5.3")
    assert all(catalogue.models[retired.successor] for retired in catalogue.retired.values())


def test_user_adds_a_model_for_an_endpoint(tmp_path: Path) -> None:
    """New models must not wait for a release of EXAI."""
    catalogue = load(
        tmp_path,
        """
        [thinking.qwen]
        default = "high"
        off = { chat_template_kwargs = { enable_thinking = false } }
        high = {}
        [models."qwen3:32b"]
        provider = "ollama"
        context_window = 32768
        max_output_tokens = 8192
        thinking = "qwen"
        temperature = [0, 1.5]
        price = { input = 0.1, output = 0.30 }
        aliases = ["qwen"]
        """,
    )
    model = catalogue.models["ollama/qwen3:32b"]
    assert (model.provider, model.wire_name, model.context_window) == ("ollama", "qwen3:32b", 32_768)
    assert model.thinking["off"] == {"chat_template_kwargs": {"enable_thinking": False}}
    assert model.temperature == (0.0, 1.5)
    assert model.price is not None
    assert model.price.cached == Decimal("0.1")
    assert catalogue.names["qwen"] == "ollama/qwen3:32b"


def test_user_changes_single_fields_of_a_known_model(tmp_path: Path) -> None:
    """A price or a retirement date changes; everything else stays."""
    own = load_catalogue(None, NAMED).models["kimi-k2.6"]
    changed = load(tmp_path, '[models."kimi-k2.6"]\nretires = 2027-06-30\n').models["kimi-k2.6"]
    assert changed.retires == date(2027, 6, 30)
    assert (changed.context_window, changed.thinking, changed.price) == (own.context_window, own.thinking, own.price)


def test_model_described_anew_is_not_retired_any_more(tmp_path: Path) -> None:
    """A platform may serve a model longer than its maker announced."""
    text = '[models."kimi-latest"]\nprovider = "kimi"\ncontext_window = 131072\n'
    catalogue = load(tmp_path, text)
    assert "kimi-latest" in catalogue.models
    assert "kimi-latest" not in catalogue.retired


MODEL = '[models.mine]\nprovider = "kimi"\ncontext_window = 1000\n'


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        (MODEL + "contxt = 1", "models.mine.contxt", "not permitted"),
        ('[models."my model"]\nprovider = "kimi"', 'models."my model".context_window', "required"),
        (MODEL.replace("1000", "'many'"), "models.mine.context_window", "integer"),
        (MODEL.replace("1000", "10"), "models.mine.context_window", "256"),
        (MODEL + "max_output_tokens = 2000", "models.mine.max_output_tokens", "larger than context_window"),
        (MODEL + "price = { input = -1, output = 1 }", "models.mine.price.input", "greater"),
        (MODEL + "temperature = [0.5]", "models.mine.temperature.1", "required"),
        (MODEL + 'thinking = "deep"', "models.mine.thinking", "no rule 'deep'"),
        (MODEL + 'aliases = ["k3"]', "models.mine.aliases", "already means"),
        (MODEL + 'successor = "nobody"', "models.mine.successor", "no model 'nobody'"),
        (MODEL + "retires = 'soon'", "models.mine.retires", "date"),
        (MODEL.replace("kimi", "kimmi"), "models.mine.provider", "no provider 'kimmi'"),
        ('[defaults]\nkimi = "glm-5"', "defaults.kimi", "no model"),
        ('[defaults]\nkimmi = "glm-5"', "defaults.kimmi", "no provider"),
        ("[thinking.x]\nmedium = {}", "thinking.x.medium", "not permitted"),
        ("[thinking.x]\nlow = { messages = [] }", "thinking.x.low", "messages is set by EXAI"),
        ("[model.mine]\nx = 1", "model", "not permitted"),
        ("models = 7", "models", "dictionary"),
    ],
)
def test_wrong_key_is_named_with_what_is_wrong(tmp_path: Path, text: str, key: str, why: str) -> None:
    """A misspelled fact that is silently ignored is worse than a refusal."""
    said = problem(tmp_path, text)
    assert f"key {key}:" in said
    assert why in said


def test_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """Missing, not TOML, too large."""
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read"):
        load_catalogue(tmp_path / "nowhere.toml", NAMED)
    assert "is not TOML" in problem(tmp_path, "models = ")
    assert "larger than" in problem(tmp_path, "#" * (MAX_FILE_BYTES + 1))


def test_later_prices_are_valid_from_their_day_on(tmp_path: Path) -> None:
    """In any order of the file; before the first one the price is the undated one."""
    file = tmp_path / "models.toml"
    file.write_text(
        '[models."kimi-k3"]\nlater_prices = [{ from = 2027-03-01, input = 5, output = 50 },'
        " { from = 2027-01-01, input = 4, output = 40 }]"
    )
    model = load_catalogue(file, NAMED).models["kimi-k3"]
    days = (date(2026, 12, 31), date(2027, 1, 1), date(2027, 2, 28), date(2027, 3, 1))
    assert [price.input for day in days if (price := model.price_on(day))] == [3, 4, 4, 5]


def test_cost_counts_cached_input_at_its_own_price() -> None:
    """Prices are per million tokens; reasoning is part of the output."""
    price = load_catalogue(None, NAMED).models["kimi-k3.1-pro"].price
    assert price is not None
    usage = Usage(input_tokens=1_000_000, output_tokens=100_000, cached_tokens=400_000, reasoning_tokens=50_000)
    assert price.cost_usd(usage) == Decimal("2.28")
    assert price.cost_usd(Usage()) == 0
    assert price.cost_usd(Usage(input_tokens=1, cached_tokens=5)) == Decimal("0.0000002")
