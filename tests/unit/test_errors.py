"""The tree of errors is the one that the code has."""

from __future__ import annotations

import importlib
import pkgutil
import re

import pytest

import exai
from exai import errors
from exai.errors import BudgetExceeded, DependencyError, ExaiError


def descendants(of: type[ExaiError]) -> set[type[ExaiError]]:
    return {of}.union(*map(descendants, of.__subclasses__()))


def test_tree_shows_every_error() -> None:
    """The docstring shows the whole tree, so that callers need not read all modules."""
    for module in pkgutil.walk_packages(exai.__path__, "exai."):
        if not module.name.startswith(("exai.adapters.", "exai.bench", "exai.__main__", "exai.db.alembic")):
            importlib.import_module(module.name)
    tree = set(re.findall(r"\w+", errors.__doc__ or ""))
    ours = {each for each in descendants(ExaiError) if each.__module__.startswith("exai.")}
    assert {each.__name__ for each in ours} - tree == set()
    assert {each.__name__ for each in ours if each.__module__.startswith("exai.errors.")} <= set(errors.__all__)


def test_failed_dependency_is_named_as_health_names_it() -> None:
    """An operator looks the name up there."""
    from exai.cache.redis.faults import CacheDown, CacheRefused
    from exai.db.driver.translate import judge
    from exai.errors import AnswerNotStored

    translated = judge(TimeoutError(), "waiting")
    assert translated is not None
    assert isinstance(translated.error, DependencyError)
    database = {translated.error.dependency, AnswerNotStored("x", "y", "z").dependency}
    assert database == {"database"}
    assert {CacheDown("x").dependency, CacheRefused("OOM", "x").dependency} == {"cache"}


@pytest.mark.parametrize(
    ("spent_usd", "needed_usd", "cure"),
    [
        (
            0.1,
            0.3,
            "Set a lower max_output_tokens, use a cheaper model, wait until 2026-12-02 00:00 UTC, or raise EXAI",
        ),
        (0.4, 0.3, "Wait until 2026-12-02 00:00 UTC, or raise EXAI"),
        (0.4, 0.9, "Raise EXAI"),
    ],
)
def test_cures_of_a_budget_are_those_that_can_help(spent_usd: float, needed_usd: float, cure: str) -> None:
    """A cheaper question does not fit a budget that is used up."""
    error = BudgetExceeded("day", 0.4, spent_usd, reserved_usd=0, needed_usd=needed_usd, resets_at="2026-12-02T00:00Z")
    assert f" USD. {cure}_BUDGETS__OWNER_DAY_USD" in str(error)
