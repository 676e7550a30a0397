"""Requests to a store at a daemon: the operations, and their parameters and results as JSON and back.

An operation is a method of the protocols in `exai.store.protocols`, and its parameters and result have the types of
that method. On the wire it is the JSON-RPC method `store/SERVICE.METHOD` of the extension `exai/store`. Dataclasses are
objects, named tuples are lists, times are in ISO 8601 and bytes in base64.

Invariant: a value that is encoded and decoded equals itself; a field or parameter that this release does not know is
refused, never ignored, because a request without it would be another one.
"""

from __future__ import annotations

import base64
import binascii
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from types import MappingProxyType, NoneType
from typing import Any, Final, Protocol, cast, get_args, get_origin, get_type_hints

import orjson
from pydantic import TypeAdapter, ValidationError

from exai.errors import InvalidArgument
from exai.models import FileId, Owner, StoredFile
from exai.store.protocols import Chats, Checkpoints, Conversations, Files

EXTENSION: Final = "exai/store"
MAX_BYTES: Final = "messageMaxBytes"
"""The largest request, in the daemon's description of the extension."""

PREFIX: Final = "store/"
LEFT_OUT: Final = frozenset({"self", "on_delta"})
"""Parameters that are not sent: parts of an answer come as progress."""

REQUEST: Final = "request"
"""The parameter whose fields errors name without it, as the services do."""

UNKNOWN_CURE: Final = "Leave it out, or update the daemon"


class FileRanges(Protocol):
    """The files of a daemon; a file may be longer than a reply."""

    async def read_range(
        self, owner: Owner, file_id: FileId, *, offset: int, size_bytes: int
    ) -> tuple[StoredFile, bytes]:
        """Return a file, and `size_bytes` bytes of it from `offset` on."""


SERVICES: Final = (
    ("conversations", Conversations),
    ("files", Files),
    ("files", FileRanges),
    ("chat", Chats),
    ("checkpoints", Checkpoints),
)
IN_PARTS: Final = "files.read"
"""The method that a client makes of `read_range`."""


@dataclass(frozen=True, slots=True)
class StoreOperation:
    """One method of a service: the types of its parameters, those without a default, and the type of its result."""

    name: str
    service: str
    method: str
    parameters: Mapping[str, Any]
    required: frozenset[str]
    result: Any


def _operations() -> Mapping[str, StoreOperation]:
    found = {}
    for service, protocol in SERVICES:
        for method, function in inspect.getmembers(protocol, inspect.isfunction):
            operation = f"{service}.{method}"
            if method.startswith("_") or operation == IN_PARTS:
                continue
            given = {each.name: each for each in inspect.signature(function).parameters.values()}
            names = [name for name in given if name not in LEFT_OUT]
            hints = get_type_hints(function)
            found[operation] = StoreOperation(
                operation,
                service,
                method,
                {each: hints[each] for each in names},
                frozenset(each for each in names if given[each].default is inspect.Parameter.empty),
                hints["return"],
            )
    return MappingProxyType(found)


OPERATIONS: Final = _operations()


def encode(value: object) -> bytes:
    """Return a value as JSON. Raises `TypeError` for one that JSON cannot hold."""
    return orjson.dumps(value, default=_plain)


def decode(kind: Any, value: object, field: str = "") -> Any:
    """Return the value of a type from its JSON. Raises `InvalidArgument`, which names the place below `field`.

    Fields that this release does not know are left out, as they come from a later daemon.
    """
    try:
        # Strict where JSON has the type: true is no number.
        return _with_bytes(_adapter(kind).validate_python(value, strict=_is_plain(kind) or None), field)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = field + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        raise InvalidArgument(path.removeprefix("."), first["msg"].lower(), "Correct it and call again") from None


def decode_parameters(operation: StoreOperation, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a call. Raises `InvalidArgument`."""
    known = operation.parameters
    for name in given:
        if name not in known:
            raise InvalidArgument(name, f"{operation.name} has no such parameter", UNKNOWN_CURE)
    if missing := operation.required - given.keys():
        raise InvalidArgument(min(missing), "is missing", f"{operation.name} needs it")
    values = {}
    for name, value in given.items():
        field = "" if name == REQUEST else name
        _refuse_unknown(known[name], value, field)
        values[name] = decode(known[name], value, field)
    return values


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    return _other(value)


def _other(value: object) -> object:
    # Decimal, which pydantic reads back exactly from its text.
    if type(value).__name__ == "Decimal":
        return str(value)
    raise TypeError(f"{type(value).__name__} is not a JSON type")


def _with_bytes(value: Any, field: str) -> Any:
    """Return a decoded value with the bytes that its base64 stands for."""
    if isinstance(value, bytes):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error:
            raise InvalidArgument(field or "data", "is not base64", "Encode the bytes in base64") from None
    if names := _fields_with_bytes(cast("Hashable", type(value))):
        return replace(value, **{name: _with_bytes(getattr(value, name), f"{field}.{name}") for name in names})
    if type(value) in (list, tuple):
        return type(value)(_with_bytes(each, f"{field}[{place}]") for place, each in enumerate(value))
    return value


def _refuse_unknown(kind: Any, value: object, field: str) -> None:
    if isinstance(value, dict):
        known = _fields(kind)
        if known is None:
            return
        for name, each in value.items():
            if name not in known:
                path = f"{field}.{name}".removeprefix(".")
                raise InvalidArgument(path, "there is no such field", UNKNOWN_CURE)
            if (inner := known[name]) is not None:
                _refuse_unknown(inner, each, f"{field}.{name}".removeprefix("."))
    elif isinstance(value, list) and _fields(kind) is not None:
        for place, each in enumerate(value):
            if isinstance(each, dict):
                _refuse_unknown(kind, each, f"{field}[{place}]")


@cache
def _is_plain(kind: Any) -> bool:
    kinds = {getattr(each, "__supertype__", each) for each in get_args(kind) or (kind,)}
    return kinds <= {int, str, bool, NoneType}


@cache
def _fields_with_bytes(kind: Hashable) -> tuple[str, ...]:
    """Return the fields of a dataclass that are bytes, or hold dataclasses with such fields."""
    if not isinstance(kind, type) or not is_dataclass(kind):
        return ()
    hints = get_type_hints(kind)
    return tuple(each.name for each in fields(kind) if _holds_bytes(hints[each.name]))


def _holds_bytes(hint: Any) -> bool:
    if isinstance(hint, type):
        return hint is bytes or bool(_fields_with_bytes(cast("Hashable", hint)))
    # Functions are not sent.
    return get_origin(hint) is not Callable and any(map(_holds_bytes, get_args(hint)))


@cache
def _fields(kind: Any) -> Mapping[str, Any] | None:
    """Return the fields of a dataclass, or of the items of a list of one, each with its own type if that has fields."""
    found = _dataclass_in(kind)
    if found is None:
        return None
    hints = get_type_hints(found)
    return {each.name: _dataclass_in(hints[each.name]) for each in fields(found)}


@cache
def _dataclass_in(kind: Any) -> Any:
    if isinstance(kind, type) and is_dataclass(kind):
        return kind
    if get_origin(kind) in (Mapping, Callable):
        return None  # The keys of the one are no fields, and the other is not sent.
    return next((found for each in get_args(kind) if (found := _dataclass_in(each)) is not None), None)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
