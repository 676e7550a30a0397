"""All errors that EXAI raises deliberately, as this tree shows them; a module in brackets defines those of its own.

    ExaiError
    |-- ConfigError              a setting is wrong, missing or unknown; the process does not start
    |-- StartupError             a port, directory or embedded server cannot be had; the process does not start
    |-- RequestError             avoidable with better arguments; the message tells the caller (a model) how
    |   |-- InvalidArgument
    |   |   `-- Damaged          a file of a backup is not what was written [exai.backup.sealing]
    |   |-- NotFound
    |   |-- BudgetExceeded       a budget does not cover the question's cost; nothing was stored
    |   |-- Conflict             another write came first, or a request key was used for other content
    |   |-- NotConfigured        the call needs something that is switched off
    |   |-- Unauthorized         a daemon does not accept the client's token
    |   |-- ReplyTooLarge        the answer exceeds the largest reply [exai.mcp.core.errors]
    |   `-- ErrorTooLarge        as ReplyTooLarge, for the description of an error [exai.mcp.core.errors]
    |-- DependencyError          Postgres, Redis, a provider or the blob store failed
    |   |-- DatabaseError
    |   |   |-- DatabaseUnavailable
    |   |   |-- DatabaseBusy     timed out, locked, or out of connections; nothing was written
    |   |   |-- StorageFull
    |   |   |-- OutcomeUnknown   the write may or may not have happened; repeat it with the same key
    |   |   |-- AnswerNotStored  a model's answer could not be stored; the error contains it
    |   |   |-- ContentUnreadable  stored content could not be decrypted
    |   |   `-- SchemaMismatch   the database is not at this release's revision
    |   |-- DaemonUnavailable    no daemon answered a client
    |   |-- CacheError           stops inside exai.cache; a caller only ever sees a miss
    |   |   |-- CacheAway        no reply: CacheDown or CacheLost [exai.cache.redis.faults]
    |   |   `-- CacheRefused     an error reply [exai.cache.redis.faults]
    |   |-- BlobError
    |   |   |-- StoreAway        a store of files does not answer [exai.blobs.faults]
    |   |   |-- StoreRefused     it refuses; StoreExists: what was to be made is there [exai.blobs.faults]
    |   |   `-- BlobMissing      it has no such bytes [exai.blobs.faults]
    |   |-- BreakerOpen          not called, because it failed repeatedly [exai.resilience]
    |   `-- ProviderError
    |       |-- ProviderRefused  4xx: the request is wrong for this model, or its content was refused
    |       |   |-- ProviderTooLong  the prompt does not fit into the model's window
    |       |   `-- ProviderUnknownModel  the provider does not serve the model
    |       |-- ProviderAuthFailed
    |       |-- ProviderLimited  429: rate, quota or balance
    |       |-- ProviderUnavailable  5xx, an open breaker
    |       |   `-- ProviderUnreachable  no connection to the endpoint: none of its models can be asked
    |       `-- ProviderBroken   a reply that cannot be used: broken stream, not SSE, no finish marker
    |-- DeadlineExceeded
    |   `-- Unanswered           a batch in flight was not answered in time [exai.batching]
    |-- TooLate                  a model of a panel did not answer in time [exai.workflows.consensus.turns]
    |-- Overloaded               a limit of this process; try again shortly
    `-- ShuttingDown

Constructors take facts and `__str__` makes the sentence, which states the cure if there is one.
`code` is stable and sent to clients; `retryable` states whether the very same request may succeed later.
Texts never hold message content, keys or passwords.
"""

from __future__ import annotations

from exai.errors.base import (
    MAX_SHOWN_CHARS,
    ExaiError,
    bounded,
    shown,
)
from exai.errors.dependencies import (
    AnswerNotStored,
    BlobError,
    CacheError,
    ContentUnreadable,
    DaemonUnavailable,
    DatabaseBusy,
    DatabaseError,
    DatabaseUnavailable,
    DependencyError,
    OutcomeUnknown,
    SchemaMismatch,
    StorageFull,
)
from exai.errors.process import (
    ConfigError,
    DeadlineExceeded,
    Overloaded,
    ShuttingDown,
    StartupError,
)
from exai.errors.providers import (
    ProviderAuthFailed,
    ProviderBroken,
    ProviderError,
    ProviderLimited,
    ProviderRefused,
    ProviderTooLong,
    ProviderUnavailable,
    ProviderUnknownModel,
    ProviderUnreachable,
)
from exai.errors.requests import (
    BUDGETS,
    BudgetExceeded,
    Conflict,
    InvalidArgument,
    NotConfigured,
    NotFound,
    RequestError,
    Unauthorized,
)

__all__ = [
    "BUDGETS",
    "MAX_SHOWN_CHARS",
    "AnswerNotStored",
    "BlobError",
    "BudgetExceeded",
    "CacheError",
    "ConfigError",
    "Conflict",
    "ContentUnreadable",
    "DaemonUnavailable",
    "DatabaseBusy",
    "DatabaseError",
    "DatabaseUnavailable",
    "DeadlineExceeded",
    "DependencyError",
    "ExaiError",
    "InvalidArgument",
    "NotConfigured",
    "NotFound",
    "OutcomeUnknown",
    "Overloaded",
    "ProviderAuthFailed",
    "ProviderBroken",
    "ProviderError",
    "ProviderLimited",
    "ProviderRefused",
    "ProviderTooLong",
    "ProviderUnavailable",
    "ProviderUnknownModel",
    "ProviderUnreachable",
    "RequestError",
    "SchemaMismatch",
    "ShuttingDown",
    "StartupError",
    "StorageFull",
    "Unauthorized",
    "bounded",
    "shown",
]
