"""A cheap test of whether a tool's arguments fit its schema as they are, which spares most calls the coercion.

Invariant: the test never holds for arguments that `coercion.coerce` would change or add a note for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exai.mcp.core.jsonrpc import Json
from exai.mcp.features.coercion import KINDS, NOTHING


class SchemaFit:
    """A cheap test of whether arguments already have the schema's types, as most do.

    It never holds for arguments that `coerce` would change or add a note for; False means that it has to run.
    """

    __slots__ = ("_tests",)

    def __init__(self, schema: Json, keeps_empty: frozenset[str] = frozenset()) -> None:
        required = schema.get("required", ())
        self._tests: dict[str, _Test] = {}
        for name, part in schema.get("properties", {}).items():
            test = _test(part, may_be_empty=name in required or name in keeps_empty, is_required=name in required)
            if test is not None:
                self._tests[name] = test if name not in KINDS else (test[0], _names_no_resource(test[1]))

    def holds(self, given: Json) -> bool:
        """Return whether every argument is in the schema and needs no coercion."""
        for name, value in given.items():
            test = self._tests.get(name)
            if test is None or type(value) is not test[0]:
                return False
            if test[1] is not None and not test[1](value):
                return False
        return True


_Test = tuple[type, Callable[[Any], bool] | None]
"""The one type accepted as it is, and a further condition."""


def _test(schema: Json, *, may_be_empty: bool, is_required: bool) -> _Test | None:
    kind = schema.get("type")
    if kind == "string":
        if "enum" in schema:
            choices = frozenset(each for each in schema["enum"] if may_be_empty or each.strip())
            return str, choices.__contains__
        return str, None if may_be_empty else _says_something
    if kind == "integer":
        return int, None if is_required or "default" in schema or schema.get("minimum", 0) <= 0 else bool
    if kind == "boolean":
        return bool, None
    if kind == "array":
        part = schema.get("items", {})
        return (list, _are_texts) if part.get("type") == "string" and "enum" not in part else None
    return (dict, None) if kind == "object" and "properties" not in schema else None


def _names_no_resource(condition: Callable[[Any], bool] | None) -> Callable[[Any], bool]:
    """Return `condition` for an argument that also takes URIs of resources: it does not hold for what may be one."""

    def holds(value: str | list[str]) -> bool:
        if condition is not None and not condition(value):
            return False
        return "://" not in value if isinstance(value, str) else not any("://" in each for each in value)

    return holds


def _says_something(text: str) -> bool:
    bare = text.strip()
    return bare != "" and bare not in NOTHING


def _are_texts(values: list[object]) -> bool:
    return all(type(each) is str and _says_something(each) for each in values)
