"""Errors of the providers of models."""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

from exai.errors.dependencies import DependencyError


class ReplyFacts(TypedDict, total=False):
    """Facts of the reply on which an error is based: its HTTP status, and the provider's id of the request."""

    status: int | None
    request_id: str | None


class ProviderError(DependencyError):
    """A model provider failed. `request_id` is the provider's own, for its support; `status` is HTTP's, or None."""

    code = "provider"

    def __init__(
        self, provider: str, problem: str, cure: str = "", *, status: int | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(provider, problem, cure)
        self.provider, self.status, self.request_id = provider, status, request_id

    def details(self) -> dict[str, Any]:
        facts = {"provider": self.provider, "status": self.status, "request_id": self.request_id}
        return {name: value for name, value in facts.items() if value is not None}


class ProviderRefused(ProviderError):
    """The provider refuses this request as it stands."""

    code = "provider_refused"
    retryable = False


class ProviderTooLong(ProviderRefused):
    """The prompt is too long. `limit_tokens` and `sent_tokens` are the provider's numbers, None if it gave none."""

    code = "provider_too_long"

    def __init__(
        self,
        provider: str,
        problem: str,
        cure: str = "",
        *,
        limit_tokens: int | None = None,
        sent_tokens: int | None = None,
        **reply: Unpack[ReplyFacts],
    ) -> None:
        super().__init__(provider, problem, cure, **reply)
        self.limit_tokens, self.sent_tokens = limit_tokens, sent_tokens

    def details(self) -> dict[str, Any]:
        facts = {"limit_tokens": self.limit_tokens, "sent_tokens": self.sent_tokens}
        return super().details() | {name: value for name, value in facts.items() if value is not None}


class ProviderUnknownModel(ProviderRefused):
    """The provider does not serve the model, or not to this account."""

    code = "provider_unknown_model"


class ProviderAuthFailed(ProviderError):
    """The key was not accepted."""

    code = "provider_auth_failed"
    retryable = False


class ProviderLimited(ProviderError):
    """Too many requests, or no quota or balance left. `retry_after_s` is the provider's value, or None.

    `overloaded`: of all its customers; otherwise the key has a limit of its own.
    """

    code = "provider_limited"

    def __init__(
        self,
        provider: str,
        problem: str,
        cure: str = "",
        *,
        retry_after_s: float | None = None,
        exhausted: bool = False,
        overloaded: bool = False,
        **reply: Unpack[ReplyFacts],
    ) -> None:
        super().__init__(provider, problem, cure, **reply)
        self.retry_after_s, self.exhausted, self.overloaded = retry_after_s, exhausted, overloaded

    def details(self) -> dict[str, Any]:
        facts = super().details()
        if self.retry_after_s is not None:
            facts["retry_after_s"] = self.retry_after_s
        return facts


class ProviderUnavailable(ProviderError):
    """The provider cannot be reached or reports that it is down."""

    code = "provider_unavailable"


class ProviderUnreachable(ProviderUnavailable):
    """No connection to the provider could be made."""


class ProviderBroken(ProviderError):
    """The provider's reply ended early or violates the protocol. `partial` is the text received so far."""

    code = "provider_broken"

    def __init__(
        self,
        provider: str,
        problem: str,
        cure: str = "",
        *,
        partial: str = "",
        **reply: Unpack[ReplyFacts],
    ) -> None:
        super().__init__(provider, problem, cure, **reply)
        self.partial = partial
