"""JSON schemas of tool arguments and answers that every client can read.

Invariant: a schema from this module has no external references, sets `additionalProperties: false` on every object with
named properties, and uses nothing that clients are known to drop or to reject: `$ref`, `$defs`, a top-level `anyOf`,
a list of types, a null branch (in arguments), a default beside or inside an `anyOf`, generated titles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter

from exai.mcp.features.texts import NOTES, UNDERSTOOD

MAX_INLINE_DEPTH = 16
_DROPPED = frozenset({"$defs", "title", "discriminator"})


def portable_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a model's input. Raises `TypeError` for a model without a portable schema."""
    return _object(model, model.model_json_schema(mode="validation"), nulls=False)


def output_schema(output: type[object]) -> dict[str, Any]:
    """Return the schema of a tool's structured answer. Null is an allowed value there, since clients validate it.

    Every answer may contain notes for its caller, and how its arguments were understood.
    """
    schema = _object(output, TypeAdapter(output).json_schema(mode="serialization"), nulls=True)
    for name in (NOTES, UNDERSTOOD):
        schema["properties"][name] = {"type": "array", "items": {"type": "string"}}
    return schema


def _object(model: type[object], raw: dict[str, Any], *, nulls: bool) -> dict[str, Any]:
    schema = _inlined(raw, raw.get("$defs", {}), model.__name__, 0, nulls=nulls)
    if schema.get("type") != "object":
        raise TypeError(f"{model.__name__}: this must be one object")
    schema.setdefault("properties", {})
    schema.pop("description", None)
    return schema


def _inlined(
    node: Mapping[str, Any], definitions: Mapping[str, Any], where: str, depth: int, *, nulls: bool
) -> dict[str, Any]:
    if depth > MAX_INLINE_DEPTH:
        raise TypeError(f"{where}: nested too deeply or recursive; a portable schema cannot say that")
    node = _resolved(node, definitions, where)
    schema: dict[str, Any] = {}
    for name, value in node.items():
        if name == "properties":
            schema[name] = {
                key: _inlined(part, definitions, f"{where}.{key}", depth + 1, nulls=nulls)
                for key, part in value.items()
            }
        elif name in ("anyOf", "oneOf", "allOf", "prefixItems"):
            schema[name] = [_inlined(part, definitions, where, depth + 1, nulls=nulls) for part in value]
        elif name in ("items", "additionalProperties", "not") and isinstance(value, Mapping):
            schema[name] = _inlined(value, definitions, f"{where}[]", depth + 1, nulls=nulls)
        elif name == "const":
            schema["enum"] = [value]
        elif name not in _DROPPED and not (name == "default" and value is None):
            schema[name] = value
    return _simplified(schema, nulls=nulls)


def _resolved(node: Mapping[str, Any], definitions: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    reference = node.get("$ref")
    if reference is None:
        return node
    prefix, _, name = str(reference).rpartition("/")
    if prefix != "#/$defs" or name not in definitions:
        raise TypeError(f"{where}: {reference} cannot be resolved")
    beside = {key: value for key, value in node.items() if key != "$ref"}
    return {**definitions[name], **beside}


def _simplified(schema: dict[str, Any], *, nulls: bool) -> dict[str, Any]:
    if "properties" in schema:
        schema["additionalProperties"] = False
    branches = schema.get("anyOf")
    if branches is None:
        return schema
    nullable = nulls and {"type": "null"} in branches
    branches = [branch for branch in branches if branch.get("type") != "null"]
    if len(branches) == 1 and not nullable:
        del schema["anyOf"]
        return {**branches[0], **schema}
    branches += [{"type": "null"}] if nullable else []
    schema.pop("default", None)
    schema["anyOf"] = [{key: value for key, value in branch.items() if key != "default"} for branch in branches]
    return schema
