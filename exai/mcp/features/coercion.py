"""Coerces arguments as clients send them to the types of a tool's schema.

Clients send arrays and objects as JSON text, numbers and booleans as text, "" and null for an omitted value, one text
for a list, an empty list for an empty object (PHP) or the reverse (Lua), names in camelCase, and a resource's URI for
an id; models use argument names of other tools. Invariant: a value that fits its schema is changed only if it is an
optional one that stands for an omitted value, or an id given as the URI of its resource. Free-form values (the content
of objects without named properties) are never changed, and ambiguous ones are refused.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard
from urllib.parse import unquote
from uuid import UUID

import orjson

from exai.errors import InvalidArgument, shown
from exai.mcp.core.jsonrpc import MAX_VALUES, Json, is_deep
from exai.mcp.features.synonyms import EFFORTS, OLDER_ARGUMENTS, ROLES, WANTS_NO_MODEL, argument_for, own_spelling

KINDS: Final[Mapping[str, str]] = {
    "continuation_id": "conversations",
    "file_id": "files",
    "file_ids": "files",
    "files": "files",
}
"""The kind of resource whose URI is accepted for the id in these arguments."""

OFF: Final = ("false", "none", "disabled", "no")
WRAPPERS: Final = ("arguments", "args", "kwargs", "params", "parameters", "input", "tool_input")
NOTHING: Final = ("null", "NULL", "None", "undefined")
PROMPT: Final = "prompt"
"""The argument that only tools have that ask a model; they accept the arguments of other systems' workflow tools."""

ASK_MODEL: Final = "ask_model"
"""The argument of workflow tools to which some of those are translated."""

PANEL: Final = "models"
"""The argument of the tool that asks several models, whose names never contain a comma."""

PROSE: Final = frozenset({"findings"})
"""Lists of sentences, in which a comma divides nothing."""

MAX_DEPTH: Final = 16
MAX_LITERAL_CHARS: Final = 10_000
"""Length up to which a list or object may be written as in Python."""

_NUMBER = re.compile(r"[+-]?\d{1,40}(\.0*)?")
_ADDRESS = re.compile(r"\s*(?:@[\w.-]+:)?exai://(conversations|files)/(.*[^/\s])[/\s]*", re.IGNORECASE | re.DOTALL)
"""A resource's URI, also in the form in which clients mention it: prefixed with `@` and the server's name."""


@dataclass(slots=True)
class _Coercion:
    """Notes about the coercions made so far, and the names of texts that may be empty."""

    keeps_empty: frozenset[str]
    notes: list[str] = field(default_factory=list)

    def note(self, path: str, sentence: str) -> None:
        self.notes.append(f"{path}: {sentence}")


def coerce(schema: Json, given: object, keeps_empty: frozenset[str] = frozenset()) -> tuple[object, list[str]]:
    """Return arguments coerced to the schema, and a note for each one that was not taken literally.

    A value that cannot be coerced is kept for validation to refuse. Raises `InvalidArgument` for an ambiguous
    value.
    """
    if given is None or given == [] or (isinstance(given, str) and given.strip() in ("", "[]", *NOTHING)):
        return {}, []
    coercion = _Coercion(keeps_empty)
    given = _noted(given, dict, "arguments", coercion)
    if not isinstance(given, dict):
        return given, []
    return _object(schema, _unwrapped(schema, given, coercion), "", coercion, 0), coercion.notes


def _unwrapped(schema: Json, given: Json, coercion: _Coercion) -> Json:
    """Return the arguments from within an object that holds nothing else."""
    if len(given) != 1:
        return given
    ((name, value),) = given.items()
    inner = _decoded(value, dict)
    if name not in WRAPPERS or name in schema.get("properties", {}) or not isinstance(inner, dict):
        return given
    coercion.note(name, "taken as the arguments themselves")
    return inner


def _object(schema: Json, given: Json, path: str, coercion: _Coercion, depth: int) -> Json:
    properties: Json = schema.get("properties", {})
    required = schema.get("required", ())
    found: dict[str, Any] = {}
    for name, value in _named(properties, given, path, coercion).items():
        part = properties.get(name)
        if part is None:
            found[name] = value
            continue
        here = f"{path}.{name}" if path else name
        if name not in required and _is_left_out(part, value, name, here, coercion):
            continue
        taken = _id(name, _value(part, value, here, coercion, depth + 1), here, coercion)
        if name in required or taken is not _LEFT_OUT:
            found[name] = [] if taken is _LEFT_OUT else taken
    return found


def _named(properties: Json, given: Json, path: str, coercion: _Coercion) -> Json:
    """Return the arguments under the schema's names; unknown ones keep their own."""
    if given.keys() <= properties.keys():
        return given
    found: dict[str, Any] = {name: value for name, value in given.items() if name in properties}
    strange = {name: value for name, value in given.items() if name not in properties}
    left: dict[str, Any] = {}
    first: dict[str, str] = {}
    for name, value in strange.items():
        plain, where = own_spelling(name), f"{path}.{name[:64]}" if path else name[:64]
        if plain in properties:
            _take(found, plain, value, properties[plain], where)
        else:
            _take(left, first.setdefault(plain, name), value, {}, where)
    for name, value in left.items():
        # Synonyms come after all spellings of the schema's own names, which take precedence.
        target = argument_for(own_spelling(name), properties, found)
        if target is None and PROMPT in properties and own_spelling(name) in OLDER_ARGUMENTS:
            _older_argument(own_spelling(name), value, ASK_MODEL in properties, found, coercion)
        elif target is None:
            if value is not None and value != "":
                found[name] = value
        else:
            found[target] = value
            if value not in (None, ""):
                coercion.note(f"{path}.{name}" if path else name, f"taken as {target}")
    return found


def _take(found: dict[str, Any], known: str, value: object, schema: Json, where: str) -> None:
    """Take the value of `where` under the name `known`, which may have one already. Raises for different values.

    Equal or empty values are tolerated.
    """
    if known in found and value not in (None, "") and not _same(schema, known, found[known], value):
        raise InvalidArgument(where, f"comes with another value than {known[:64]}", f"Give {known[:64]} only")
    if found.get(known) in (None, ""):
        found[known] = value


def _older_argument(
    name: str,
    value: object,
    may_ask_none: bool,
    found: dict[str, Any],
    coercion: _Coercion,
) -> None:
    """Translate or ignore an argument of another system's workflow tools. Raises if it contradicts `ask_model`."""
    if value in (None, ""):
        return
    if not may_ask_none or name not in WANTS_NO_MODEL or WANTS_NO_MODEL[name] is not _truth(value):
        coercion.note(name, "ignored")
        return
    if _truth(found.get(ASK_MODEL)):
        problem = f"{shown(value)} asks for a step without a model, and {ASK_MODEL} for the model"
        raise InvalidArgument(name, problem, f"Give {ASK_MODEL} only")
    found[ASK_MODEL] = False
    coercion.note(name, f"taken as {ASK_MODEL} false")


def _truth(value: object) -> bool | None:
    """Return the truth value that an argument states in any form; None if it states none."""
    word = str(value).strip().lower()
    return True if word in ("true", "yes", "1") else False if word in ("false", "no", "0") else None


def _is_left_out(schema: Json, value: object, name: str, path: str, coercion: _Coercion) -> bool:
    """Return whether an optional argument's value stands for an omitted one."""
    if value is None:
        return True
    if isinstance(value, str) and name not in coercion.keeps_empty:
        if not value.strip():
            return True
        if value.strip() in NOTHING and value.strip() not in schema.get("enum", ()):
            coercion.note(path, f"{shown(value)} taken as left out")
            return True
    if value in (0, "0") and value is not False and schema.get("minimum", 0) > 0 and "default" not in schema:
        coercion.note(path, "0 taken as left out")
        return True
    return False


def _id(name: str, value: object, path: str, coercion: _Coercion) -> object:
    """Return the id from a resource's URI if the argument takes such an id; else the value itself."""
    if isinstance(value, list):
        return [_id(name, each, f"{path}[{index}]", coercion) for index, each in enumerate(value)]
    address = _ADDRESS.fullmatch(value) if name in KINDS and isinstance(value, str) else None
    if address is None or address[1].lower() != KINDS[name]:
        return value
    coercion.note(path, "the address taken as the id in it")
    return unquote(address[2])


_LEFT_OUT: Final = object()


def _value(schema: Json, value: object, path: str, coercion: _Coercion, depth: int) -> object:
    kind = schema.get("type")
    if depth > MAX_DEPTH:
        return value
    if kind == "object":
        value = {} if value in ([], "[]") else _noted(value, dict, path, coercion)
        if isinstance(value, dict) and "properties" in schema:
            return _object(schema, value, path, coercion, depth)
    elif kind == "array":
        return _array(schema, value, path, coercion, depth)
    elif kind == "string":
        return _text(schema, value, path, coercion)
    elif kind in ("integer", "number"):
        value = _number(value, path)
    elif kind == "boolean" and isinstance(value, str):
        truth = _truth(value)
        value = value if truth is None else truth
    return value


def _array(schema: Json, value: object, path: str, coercion: _Coercion, depth: int) -> object:
    part: Json = schema.get("items", {})
    if value in ({}, "{}"):
        return []
    if isinstance(value, str):
        value = _listed(part, value, path, coercion)
    elif isinstance(value, dict) and part.get("type") == "object":
        coercion.note(path, "one object taken as a list of one")
        value = [value]
    if not isinstance(value, list):
        return value
    if part.get("type") == "string":
        kept = [each for each in value if each is not None and each != ""]
        if value and all(isinstance(each, str) and each.strip() in ("", *NOTHING) for each in kept):
            return _LEFT_OUT
        value = [_sentence(each) for each in kept] if path in PROSE else kept
    return [_value(part, each, f"{path}[{index}]", coercion, depth + 1) for index, each in enumerate(value)]


def _sentence(value: object) -> object:
    """Return a finding in words that is given as an object with its severity and description."""
    if not isinstance(value, dict):
        return value
    text = next((value[name] for name in ("description", "text", "issue", "title") if value.get(name)), None)
    if not isinstance(text, str):
        return value
    place = value.get("file") or value.get("path")
    line = f":{value['line']}" if place and value.get("line") else ""
    severity = f"{value['severity']}: " if value.get("severity") else ""
    return f"{severity}{text} ({place}{line})" if place else f"{severity}{text}"


def _listed(part: Json, text: str, path: str, coercion: _Coercion) -> object:
    """Return the list that a text represents."""
    decoded = _noted(text, list, path, coercion)
    if isinstance(decoded, list):
        return decoded
    if part.get("type") == "object":
        decoded = _noted(text, dict, path, coercion)
        return [decoded] if isinstance(decoded, dict) else text
    if part.get("type") != "string":
        return text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        coercion.note(path, f"{len(lines)} lines taken as a list")
        return lines
    pieces = [piece.strip() for piece in text.split(",") if piece.strip()] if path not in PROSE else []
    if len(pieces) > 1:
        if path != PANEL and not all(_is_uuid(piece) or _ADDRESS.fullmatch(piece) for piece in pieces):
            raise InvalidArgument(
                path,
                "one text with commas can be one item or several",
                f"Give it a list, such as {orjson.dumps([piece[:40] for piece in pieces[:3]]).decode()}",
            )
        coercion.note(path, f"{len(pieces)} ids taken as a list")
        return pieces
    coercion.note(path, "one text taken as a list of one")
    return [text]


def _text(schema: Json, value: object, path: str, coercion: _Coercion) -> object:
    choices = schema.get("enum", ())
    if isinstance(value, bool):
        value = "true" if value else "false"
    elif isinstance(value, int):
        value = str(value)
    elif _is_text_part(value):
        value = value["text"]
    elif isinstance(value, list) and value and all(map(_is_text_part, value)):
        coercion.note(path, "parts of text joined")
        value = "".join(each["text"] for each in value)
    return _choice(choices, value, path, coercion) if choices and isinstance(value, str) else value


def _choice(choices: Sequence[str], value: str, path: str, coercion: _Coercion) -> str:
    """Return the choice that a value spells differently or names by a synonym."""
    if value in choices:
        return value
    word = value.strip().lower()
    if word in choices:
        return word
    if word in OFF and "off" in choices:
        return "off"
    if (role := ROLES.get(word)) in choices and role is not None and "user" in choices:
        coercion.note(path, f"{shown(value)} taken as {role}")
        return role
    if (effort := EFFORTS.get(word)) in choices and effort is not None and "off" in choices:
        coercion.note(path, f"{shown(value)} taken as {effort}")
        return effort
    return value


def _number(value: object, path: str) -> object:
    if isinstance(value, bool):
        raise InvalidArgument(path, f"{str(value).lower()} is not a number", "Give it an integer, or leave it out")
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    return value


def _decoded(value: object, wanted: type) -> object:
    """Return the decoded JSON text if it has the wanted type, even if encoded twice; else the value itself."""
    found = value
    for _ in range(2):
        if not isinstance(found, str):
            break
        text = found.strip().removeprefix("\ufeff")
        if text.startswith("```") and text.endswith("```"):
            text = text[3:-3].partition("\n")[2].strip()
        if not text.startswith(("[", "{", '"')):
            return value
        try:
            found = orjson.loads(text)
        except orjson.JSONDecodeError:
            found = _literal(text)
    if not isinstance(found, dict | list) or len(found) > MAX_VALUES or is_deep(found):
        # The limits of a request hold for JSON within its texts as well.
        return value
    return found if isinstance(found, wanted) else value


def _noted(value: object, wanted: type, path: str, coercion: _Coercion) -> object:
    """Return the decoded JSON text as `_decoded` does, and note it."""
    found = _decoded(value, wanted)
    if isinstance(value, str) and isinstance(found, wanted):
        coercion.note(path, f"text taken as the {'list' if wanted is list else 'object'} in it")
    return found


def _literal(text: str) -> object:
    """Return the list or object that is written as in Python, as text of one often is; None if it is not."""
    if not text.startswith(("[", "{")) or "'" not in text or len(text) > MAX_LITERAL_CHARS:
        return None
    try:
        return orjson.loads(orjson.dumps(ast.literal_eval(text)))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _same(schema: Json, name: str, one: object, other: object) -> bool:
    """Return whether two values of one argument mean the same, perhaps in different forms."""
    if one in (None, ""):
        return True
    unnoted = _Coercion(frozenset())
    try:
        if one == other or str(one) == str(other):
            return True
        return _value(schema, one, name, unnoted, 0) == _value(schema, other, name, unnoted, 0)
    except (InvalidArgument, RecursionError):
        return False


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _is_text_part(part: object) -> TypeGuard[Json]:
    return (
        isinstance(part, dict)
        and part.get("type") in ("text", "input_text", "output_text")
        and isinstance(part.get("text"), str)
    )
