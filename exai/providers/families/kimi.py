"""Kimi (Moonshot AI): its addresses, its parameters and what its errors mean.

Keys belong to one region: `https://api.moonshot.cn/v1` is set as base URL by those whose account is in China.
"""

from __future__ import annotations

from decimal import Decimal

from exai.providers.base import WEB_SEARCH, Family

KIMI = Family(
    name="kimi",
    base_url="https://api.moonshot.ai/v1",
    key_setting="EXAI_PROVIDERS__KIMI__API_KEY or KIMI_API_KEY",
    limit_field="max_completion_tokens",
    stream_usage=True,
    takes_any_order=True,
    count_path="/tokenizers/estimate-token-count",
    extracts_text=True,
    search_formula=WEB_SEARCH,
    # The published price is about 0.03 yuan.
    search_usd=Decimal("0.005"),
    verdicts={
        "content_filter": "refused",
        "invalid_request_error": "refused",
        "resource_not_found_error": "unknown_model",
        "invalid_authentication_error": "auth",
        "incorrect_api_key_error": "auth",
        "permission_denied_error": "auth",
        "exceeded_current_quota_error": "exhausted",
        "rate_limit_reached_error": "limited",
        "engine_overloaded_error": "overloaded",
        "server_error": "unavailable",
        "unexpected_output": "unavailable",
    },
    # An empty balance is answered with 403 as well as with 429.
    statuses={403: "exhausted"},
    request_id_headers=("x-trace-id", "x-request-id", "msh-request-id"),
)
