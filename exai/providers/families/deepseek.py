"""DeepSeek: its address, its parameters and what its errors mean.

Its reasoning is never sent back: outside of tool calls, which EXAI does not make there, the API asks to leave it out.
"""

from __future__ import annotations

from exai.providers.base import Family

DEEPSEEK = Family(
    name="deepseek",
    base_url="https://api.deepseek.com",
    key_setting="EXAI_PROVIDERS__DEEPSEEK__API_KEY or DEEPSEEK_API_KEY",
    limit_field="max_tokens",
    stream_usage=True,
    takes_any_order=True,
    is_optional=True,
    verdicts={
        "invalid_request_error": "refused",
        "authentication_error": "auth",
        "insufficient_balance": "exhausted",
        "rate_limit_reached": "limited",
        "service_unavailable_error": "overloaded",
    },
    statuses={402: "exhausted", 422: "refused", 503: "overloaded"},
)
