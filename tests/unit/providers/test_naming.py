"""From names to models, without I/O; the test sets the calendar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from exai.errors import InvalidArgument, NotConfigured
from exai.providers.base import Clocks
from exai.providers.catalogue import UNKNOWN_WINDOW, load_catalogue
from exai.providers.discovery import Discovery
from exai.providers.endpoints import read_sites
from exai.providers.naming import ModelNames
from exai.settings.load import ProvidersSettings

KIMI_KEY = {"kimi": {"api_key": "sk-1"}}
GLM_KEY = {"glm": {"api_key": "g-1"}}
BOTH = {**KIMI_KEY, **GLM_KEY}


def names(
    settings: Mapping[str, Any],
    *,
    today: str = "2026-11-21",
    discovered: Mapping[str, Mapping[str, int | None]] = {},
    lists: Mapping[str, Sequence[str]] = {},
) -> ModelNames:
    read = ProvidersSettings.model_validate(settings)
    sites = read_sites(read)
    clocks = Clocks(now=lambda: datetime.fromisoformat(today).replace(hour=12, tzinfo=UTC))
    discoveries = {
        name: Discovery(
            site.family, site.base_url, site.key, httpx.AsyncClient(verify=False), clocks, dict(discovered[name])
        )
        for name, site in sites.items()
        if name in discovered
    }
    for name, listed in lists.items():
        site, windows = sites[name], dict.fromkeys(listed)
        made = Discovery(site.family, site.base_url, site.key, httpx.AsyncClient(verify=False), clocks, windows)
        made.listed, made.is_described = frozenset(listed), True
        discoveries[name] = made
    catalogue = load_catalogue(read.models_file, {name: site.family for name, site in sites.items()})
    return ModelNames(sites, catalogue, discoveries, default_model=read.default_model, clocks=clocks)


def endpoint(*models: str, **more: Any) -> dict[str, Any]:
    return {"base_url": "http://localhost:1/v1", "models": models, **more}


@pytest.mark.parametrize("name", ["kimi-k3", "KIMI-K3", " k3 ", "kimi/kimi-k3", "kimi/k3", "Kimi/K3"])
def test_name_alias_and_prefixed_name_mean_one_model(name: str) -> None:
    """Names are addressed in any case and by alias."""
    assert names(BOTH).resolve(name).name == "kimi-k3"


def test_nothing_configured_names_the_exact_variables() -> None:
    """An error has a cure."""
    with pytest.raises(NotConfigured) as refused:
        names({}).resolve(None)
    for variable in (
        "EXAI_PROVIDERS__KIMI__API_KEY",
        "KIMI_API_KEY",
        "EXAI_PROVIDERS__GLM__API_KEY",
        "GLM_API_KEY",
        "EXAI_PROVIDERS__ENDPOINTS",
    ):
        assert variable in str(refused.value)


def test_model_of_a_provider_without_key_names_its_variables_and_what_there_is() -> None:
    """Known, but not to be had here."""
    with pytest.raises(NotConfigured) as refused:
        names(KIMI_KEY).resolve("glm-5.3")
    assert "GLM_API_KEY" in str(refused.value)
    assert "kimi-k3.1-pro" in str(refused.value)


def test_unknown_name_is_refused_with_the_nearest_and_the_list() -> None:
    """A model that guesses a name can correct itself."""
    with pytest.raises(InvalidArgument) as refused:
        names(BOTH).resolve("kimi-k31-pro")
    assert refused.value.field == "model"
    assert "Nearest: kimi-k3.1-pro" in refused.value.cure
    assert "Available: " in refused.value.cure
    assert "glm-5.3" in refused.value.cure


@pytest.mark.parametrize("name", ["gpt-17", "kimi/glm-5.3", "nowhere/model", "x" * 500, "a\nb", "kimi/", "/"])
def test_nonsense_is_refused_not_guessed(name: str) -> None:
    """Nothing falls back in silence."""
    with pytest.raises(InvalidArgument):
        names(BOTH).resolve(name)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (BOTH, "kimi-k3.1-pro"),
        (GLM_KEY, "glm-5.3"),
        ({**GLM_KEY, "default_model": "glm-4.7"}, "glm-4.7"),
        ({"endpoints": {"local": endpoint("llama3", "qwen3")}}, "local/llama3"),
        ({**GLM_KEY, "endpoints": {"local": endpoint("llama3")}}, "glm-5.3"),
        ({**GLM_KEY, "endpoints": {"local": endpoint("llama3")}, "default_model": "llama3"}, "local/llama3"),
    ],
)
@pytest.mark.parametrize("asked", [None, "", "auto"])
def test_default_model_is_the_configured_one_else_kimis_glms_or_the_first_endpoints(
    settings: dict[str, Any], expected: str, asked: str | None
) -> None:
    """Stated in the registry's docstring."""
    assert names(settings).resolve(asked).name == expected


def test_endpoint_without_any_known_model_asks_for_a_default() -> None:
    """There is nothing to choose from until its list is known."""
    with pytest.raises(NotConfigured, match="EXAI_PROVIDERS__DEFAULT_MODEL"):
        names({"endpoints": {"local": endpoint()}}).resolve(None)
    assert (
        names({"endpoints": {"local": endpoint()}}, discovered={"local": {"m": None}}).resolve(None).name == "local/m"
    )


def test_endpoint_model_is_addressed_with_its_endpoint_or_bare() -> None:
    """The server receives its own name for the model, in its case, with slashes."""
    both = names({"endpoints": {"vllm": endpoint("Qwen/Qwen3-32B", context_window=40_960)}})
    for name in ("vllm/Qwen/Qwen3-32B", "qwen/qwen3-32b", "VLLM/qwen/Qwen3-32b"):
        model = both.resolve(name)
        assert (model.name, model.wire_name) == ("vllm/Qwen/Qwen3-32B", "Qwen/Qwen3-32B")
        assert model.context_window == 40_960


def test_bare_name_of_two_endpoints_is_ambiguous() -> None:
    """Only the caller can know which is meant."""
    two = names({"endpoints": {"one": endpoint("m"), "two": endpoint("m")}})
    with pytest.raises(InvalidArgument, match="one/m or two/m"):
        two.resolve("m")
    assert two.resolve("two/m").provider == "two"


def test_endpoint_may_serve_a_catalogued_name_when_its_own_provider_is_off() -> None:
    """A proxy that serves kimi-k3; with a Kimi key the name means Kimi."""
    proxy = {"endpoints": {"proxy": endpoint("kimi-k3")}}
    assert names(proxy).resolve("kimi-k3").name == "proxy/kimi-k3"
    assert names({**proxy, **KIMI_KEY}).resolve("kimi-k3").provider == "kimi"


def test_listed_models_of_an_endpoint_are_all_it_has() -> None:
    """A list that was given is used as given."""
    with pytest.raises(InvalidArgument):
        names({"endpoints": {"local": endpoint("llama3")}}).resolve("local/llama4")


def test_endpoint_without_a_list_is_trusted_with_any_name_of_its_own() -> None:
    """Its server will say; metrics do not repeat the invented name."""
    model = names({"endpoints": {"local": endpoint()}}).resolve("local/whatever:7b")
    assert (model.wire_name, model.known, model.label) == ("whatever:7b", False, "local/*")
    assert model.context_window == UNKNOWN_WINDOW


def test_endpoint_without_a_list_is_named_where_a_model_is_unknown() -> None:
    """There is nothing else to say that is available."""
    with pytest.raises(InvalidArgument) as refused:
        names({"endpoints": {"local": endpoint()}}).resolve("gpt-9")
    assert refused.value.cure == "Available: local/MODEL"


def test_discovered_window_is_used_unless_one_was_configured() -> None:
    """vLLM publishes max_model_len; a setting has precedence."""
    discovered = {"local": {"m": 32_768}}
    assert names({"endpoints": {"local": endpoint()}}, discovered=discovered).resolve("m").context_window == 32_768
    configured = {"endpoints": {"local": endpoint(context_window=16_384)}}
    assert names(configured, discovered=discovered).resolve("m").context_window == 16_384


def test_described_endpoint_model_has_the_facts_of_the_models_file(tmp_path: Path) -> None:
    """The user's file knows more than a list of names."""
    path = tmp_path / "models.toml"
    path.write_text('[models.m]\nprovider = "local"\ncontext_window = 9000\naliases = ["mine"]\n')
    settings = {"endpoints": {"local": endpoint("m")}, "models_file": path}
    assert [names(settings).resolve(name).context_window for name in ("m", "local/m", "mine")] == [9_000] * 3
    assert [model.name for model in names(settings).listed() if model.provider == "local"] == ["local/m"]


def test_announced_last_day_refuses_only_a_model_that_its_provider_does_not_list() -> None:
    """The K2 series is announced to end with the year; the provider may serve it longer, and decides."""
    late = "2027-01-01"
    for served in ({}, {"kimi": ["kimi-k3.1-pro", "kimi-k2.6"]}):
        asked = names(KIMI_KEY, today=late, lists=served)
        assert asked.resolve("kimi-k2.6").successor == "kimi-k3.1-pro"
        assert asked.is_past(asked.resolve("kimi-k2.6"))
    gone = {"kimi": ["kimi-k3.1-pro"]}
    assert names(KIMI_KEY, today="2026-12-31", lists=gone).resolve("kimi-k2.6")
    with pytest.raises(InvalidArgument, match=r"does not list it any more\. Use kimi-k3\.1-pro"):
        names(KIMI_KEY, today=late, lists=gone).resolve("kimi-k2.6")
    assert "kimi-k2.6" not in {model.name for model in names(KIMI_KEY, today=late, lists=gone).listed()}


def test_model_that_is_not_listed_is_a_warning_with_the_nearest_that_is() -> None:
    """A default that the key's account does not have would otherwise be found out by the first question."""
    settings = {**KIMI_KEY, "default_model": "kimi-k3"}
    asked = names(settings, lists={"kimi": ["kimi-k3.2", "kimi-k2.6"]})
    said = list(asked.warnings("kimi", ["kimi-k3", "glm-5.3", "nonsense"]))
    assert said[0] == "kimi-k3 is configured, and kimi does not list it; nearest: kimi/kimi-k3.2, kimi-k2.6"
    assert "kimi does not list kimi-k3.1-pro, kimi-k3.1-pro-highspeed, kimi-k2.7-code" in said[1]
    assert list(names(settings).warnings("kimi", ["kimi-k3"])) == []
    assert asked.is_served(asked.resolve("kimi-k2.6"))
    assert names(settings).is_served(names(settings).resolve("kimi-k2.6")) is None


def test_listed_model_that_no_file_describes_is_asked_with_cautious_defaults() -> None:
    """A model of next month must not wait for a release of EXAI."""
    asked = names(KIMI_KEY, lists={"kimi": ["kimi-k4"]})
    for name in ("kimi-k4", "Kimi-K4", "kimi/kimi-k4"):
        model = asked.resolve(name)
        assert (model.name, model.wire_name, model.context_window) == ("kimi/kimi-k4", "kimi-k4", UNKNOWN_WINDOW)
        assert (model.thinking, model.limit_field, model.price) == ({}, "max_completion_tokens", None)
    assert "kimi/kimi-k4" in {model.name for model in asked.listed()}


def test_retired_name_is_refused_by_provider_and_asked_where_it_is_listed() -> None:
    """kimi-k2.5 has answered 404 at its maker since 2026-08-31; other hosts still serve it."""
    hosts = {**KIMI_KEY, "qwen": {"api_key": "q-1"}}
    for name in ("kimi-k2.5", "kimi/kimi-k2.5", "moonshot-v1-8k"):
        with pytest.raises(InvalidArgument, match=r"2026-08-31 and is retired\. Use kimi-k3\.1-pro"):
            names(hosts).resolve(name)
    assert names(hosts).resolve("qwen/kimi-k2.5").provider == "qwen"
    assert names(hosts, lists={"qwen": ["kimi-k2.5"]}).resolve("kimi-k2.5").name == "qwen/kimi-k2.5"
    assert names(hosts, lists={"kimi": ["kimi-k2.5"]}).resolve("kimi-k2.5").name == "kimi/kimi-k2.5"


@pytest.mark.parametrize(
    ("provider", "default"),
    [("deepseek", "deepseek-v4-pro"), ("openrouter", "openrouter/openrouter/auto"), ("qwen", "qwen-plus")],
)
def test_key_alone_switches_a_described_provider_on(provider: str, default: str) -> None:
    """Its default answers a request without a name; without the key its models name the variable."""
    only = names({provider: {"api_key": "k-1"}})
    assert only.resolve(None).name == default
    with pytest.raises(NotConfigured, match=f"EXAI_PROVIDERS__{provider.upper()}__API_KEY"):
        names(KIMI_KEY).resolve(default)


def test_any_model_of_openrouter_is_named_by_its_maker() -> None:
    """Its list is long, so that it is asked for names and not shown."""
    settings = {"openrouter": {"api_key": "o-1"}}
    model = names(settings).resolve("openrouter/z-ai/glm-5.3")
    assert (model.wire_name, model.known, model.context_window) == ("z-ai/glm-5.3", False, UNKNOWN_WINDOW)
    assert model.thinking["high"] == {"reasoning": {"effort": "high"}}
    many = [f"maker/model-{number}" for number in range(400)]
    asked = names(settings, lists={"openrouter": many})
    assert asked.resolve("maker/model-7").name == "openrouter/maker/model-7"
    assert [each.name for each in asked.listed() if each.provider == "openrouter"] == ["openrouter/openrouter/auto"]
    assert asked.resolve("openrouter/auto").wire_name == "openrouter/auto"


@pytest.mark.parametrize("settings", [KIMI_KEY, GLM_KEY])
def test_name_retired_long_ago_gets_its_successor(settings: dict[str, Any]) -> None:
    """Old conversations still name it."""
    with pytest.raises(InvalidArgument, match=r"Use kimi-k3\.1-pro"):
        names(settings).resolve("kimi-k2-thinking")


@pytest.mark.parametrize("base_url", ["http://h:1/v1", "http://h:1/v1/", "http://h:1/v1/chat/completions"])
def test_base_url_is_taken_as_people_write_it(base_url: str) -> None:
    """With a slash, or with the path of the one method."""
    sites = read_sites(ProvidersSettings.model_validate({"endpoints": {"a": {"base_url": base_url}}}))
    assert sites["a"].base_url == "http://h:1/v1"


def test_provider_is_configured_by_its_key_and_an_endpoint_by_its_address() -> None:
    """Local servers need no key; Kimi without one is off."""
    sites = read_sites(ProvidersSettings.model_validate({**KIMI_KEY, "endpoints": {"a": endpoint()}}))
    assert {name: (site.key, site.configured) for name, site in sites.items()} == {
        "kimi": ("sk-1", True),
        "glm": ("", False),
        "deepseek": ("", False),
        "openrouter": ("", False),
        "qwen": ("", False),
        "a": ("", True),
    }
