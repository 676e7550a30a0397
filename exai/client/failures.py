"""The errors of a daemon, raised by its client as the classes that a store in the process raises."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from exai import errors
from exai.errors import DependencyError, ExaiError, Overloaded, ShuttingDown

DAEMON = "daemon"


def failure_of(facts: Mapping[str, Any]) -> ExaiError:
    """Return the error that a daemon describes by its `codes`, its attributes and its sentence.

    A class that this release does not know becomes the nearest one that it knows.
    """
    classes = _classes()
    codes = facts.get("codes") or [facts.get("code")]
    kind = next((classes[code] for code in codes if code in classes), None)
    message = str(facts.get("message", "the daemon gave no reason"))
    attributes = facts.get("attributes")
    if kind is None or not isinstance(attributes, Mapping):
        return _by_facts(facts, message)
    # Constructors take facts of which some are only in the sentence, so the attributes are set without them.
    error = kind.__new__(kind)
    error.args = (message,)
    for name, value in attributes.items():
        error.__dict__[name] = _restored(name, value)
    try:
        str(error)
    except AttributeError:  # A later daemon's class has other attributes.
        return DependencyError(DAEMON, message)
    return error


def _by_facts(facts: Mapping[str, Any], message: str) -> ExaiError:
    """Return an error that the daemon's protocol sent, before the call was started."""
    if facts.get("code") == Overloaded.code:
        return Overloaded(str(facts.get("limit")), facts.get("value", 0), retry_after_s=facts.get("retry_after_s"))
    if facts.get("code") == ShuttingDown.code:
        return ShuttingDown()
    return DependencyError(DAEMON, message)


def _restored(name: str, value: Any) -> Any:
    if name.endswith("_at") and isinstance(value, str):
        return datetime.fromisoformat(value)
    return tuple(value) if name == "notes" else value


@cache
def _classes() -> Mapping[str, type[ExaiError]]:
    known = [getattr(errors, name) for name in errors.__all__]
    classes = [each for each in known if isinstance(each, type) and issubclass(each, ExaiError)]
    # Of two classes with one code the base comes last, and stays.
    return {each.code: each for each in sorted(classes, key=lambda kind: -len(kind.__mro__))}
