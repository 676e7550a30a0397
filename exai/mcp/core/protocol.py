"""The types shared by features, sessions and the protocol core: methods and their calls, features, actions.

Invariant: a `Surface` is complete when it is built; a feature states everything that the core needs to know of its
methods, so that neither the core nor a session knows any feature.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias

from exai.errors import ExaiError
from exai.mcp.core import jsonrpc
from exai.mcp.core.jsonrpc import EchoedId, Fault, Json, RequestId, RpcError
from exai.mcp.core.versions import Cacheable
from exai.models import Owner

READ_TIMEOUT_S = 30.0
"""Timeout of methods that only read stored data."""

ListKind: TypeAlias = Literal["tools", "prompts", "resources"]
LIST_FILTERS: Mapping[str, tuple[ListKind, str]] = {
    "toolsListChanged": ("tools", "notifications/tools/list_changed"),
    "promptsListChanged": ("prompts", "notifications/prompts/list_changed"),
    "resourcesListChanged": ("resources", "notifications/resources/list_changed"),
}
"""The filters of `subscriptions/listen` for lists, each with the list and the notification of its change."""


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """The peer's description of itself. It is unverified and used for logs and capabilities only."""

    name: str = ""
    version: str = ""
    capabilities: Json = field(default_factory=dict)


@dataclass(slots=True)
class Call:
    """An admitted request. `version` is the protocol revision that determines the form of its answer."""

    id: RequestId
    method: Method
    params: Json
    version: str
    client: ClientInfo
    progress_token: RequestId | None = None


@dataclass(frozen=True, slots=True)
class BegunWork:
    """Durable work whose outcome can be requested by `id` from now on, even if this process ends.

    `facts` are those that a client needs to find the outcome, for an answer that comes before it.
    """

    id: str
    since: datetime
    facts: Json = field(default_factory=dict)


@dataclass(slots=True)
class CallContext:
    """The context of a call, which a handler receives with its arguments.

    `request_id` is EXAI's own id of this request, as it appears in the logs. `await progress("sentence")` reports
    progress to the client; `doing("sentence")` sets the text of the periodic report. Neither fails, nor has an effect
    if the client did not request progress. `begun` declares that the call's work has become durable; `preparing` gives
    a function that makes it durable early, or ends the call soon, for a client that can wait no longer. `directory` is
    the working directory of the client, to which relative paths refer; "" if it is unknown. `offer_part` sends a part
    of the answer to a client that requested parts, and returns false if it was not sent; it is None for other clients.
    """

    owner: Owner
    request_id: str
    progress: Callable[[str], Awaitable[None]]
    client: ClientInfo = ClientInfo()
    begun: Callable[[BegunWork], None] = lambda _work: None
    preparing: Callable[[Callable[[], Awaitable[None]]], None] = lambda _reserve: None
    doing: Callable[[str], None] = lambda _sentence: None
    directory: str = ""
    offer_part: Callable[[Json], bool] | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """Common properties of the calls of one method or tool: a label for logs and metrics, a timeout, a join key.

    `timeout_s` limits the work if it is shorter than the server's own limit; `may_go_on` means that the call can be
    answered before its work has ended, so that the client's limit does not end the work. `join_key` returns the key
    that identical calls of one session share, or None for a call that runs by itself; without it none are joined.
    """

    label: str = ""
    timeout_s: float | None = None
    join_key: Callable[[Call], bytes | None] | None = None
    may_go_on: bool = False


READ_TERMS = Terms(timeout_s=READ_TIMEOUT_S)
NO_TERMS = Terms()

SyncHandler: TypeAlias = Callable[[Call], Json]
AsyncHandler: TypeAlias = Callable[[Call, CallContext], Awaitable[Json]]


@dataclass(frozen=True, slots=True)
class Method:
    """How one method is served: `answer` synchronously, or `work` in a task of its own.

    `as_result` converts an `ExaiError` raised by the work into a result; without it a JSON-RPC error is sent.
    `terms` apply to all its calls, unless `terms_of` returns those of a single call. A method of an `extension` is
    served only to clients of the stateless era that declare the extension.
    """

    name: str
    answer: SyncHandler | None = None
    work: AsyncHandler | None = None
    cacheable: Cacheable | None = None
    as_result: Callable[[ExaiError], Json] | None = None
    terms: Terms = NO_TERMS
    terms_of: Callable[[Call], Terms] | None = None
    extension: str | None = None


@dataclass(frozen=True, slots=True)
class Feature:
    """Methods and the capability that announces them. Tools, resources and prompts are features.

    `schemes` are the URI schemes of the resources it serves, such as `exai` in `exai://...`.
    """

    capabilities: Json
    methods: Sequence[Method]
    schemes: frozenset[str] = frozenset()


class Surface:
    """Everything a server offers: its methods by name, and its description. Immutable once built."""

    def __init__(self, name: str, version: str, features: Iterable[Feature], *, instructions: str = "") -> None:
        self.info: Json = {"name": name, "version": version}
        self.instructions = instructions
        self.capabilities: dict[str, Any] = {}
        self.methods: dict[str, Method] = {}
        self.schemes: frozenset[str] = frozenset()
        for feature in features:
            self.schemes |= feature.schemes
            for kind, capability in feature.capabilities.items():
                self.capabilities[kind] = {**self.capabilities.get(kind, {}), **capability}
            for method in feature.methods:
                if method.name in self.methods:
                    raise ValueError(f"two features serve {method.name}")
                self.methods[method.name] = method

    def announces(self, change: ListKind) -> bool:
        """Return whether clients are notified when this list changes."""
        return bool(self.capabilities.get(change, {}).get("listChanged"))

    @property
    def announces_updates(self) -> bool:
        """Return whether clients may subscribe to single resources."""
        return bool(self.capabilities.get("resources", {}).get("subscribe"))

    @property
    def has_subscriptions(self) -> bool:
        """Return whether there is any notification to subscribe to."""
        return self.announces_updates or any(self.announces(change) for change, _ in LIST_FILTERS.values())


@dataclass(slots=True)
class Send:
    """Send `data` now. `error` is set if it is a refusal, for transports that map errors to status codes."""

    data: bytes
    error: Fault | None = None


@dataclass(slots=True)
class Start:
    """Start this call. The caller reports its outcome through `complete`, `fail` or `abandon`."""

    call: Call


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel the work of this call and send nothing for it."""

    id: RequestId


@dataclass(frozen=True, slots=True)
class Ignore:
    """Do nothing."""


Action: TypeAlias = Send | Start | Cancel | Ignore


def refusal(id: EchoedId | None, error: RpcError) -> Send:  # noqa: A002
    """Return the message that answers `id` with an error. The exception is not kept, since it references its frames."""
    return Send(jsonrpc.encode_error(id, error), Fault(error.code, error.data))
