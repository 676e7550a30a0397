"""OpenRouter: one key for the models of many makers, which it routes to their hosts.

Its errors carry an HTTP status as their code, also inside a stream that began with 200. Windows and prices belong to
its hosts, not to the models, so they are read from its own list.
"""

from __future__ import annotations

from exai.providers.base import Family

OPENROUTER = Family(
    name="openrouter",
    base_url="https://openrouter.ai/api/v1",
    key_setting="EXAI_PROVIDERS__OPENROUTER__API_KEY or OPENROUTER_API_KEY",
    limit_field="max_tokens",
    stream_usage=True,
    is_optional=True,
    takes_any_name=True,
    thinking={
        "off": {"reasoning": {"enabled": False}},
        "low": {"reasoning": {"effort": "low"}},
        "high": {"reasoning": {"effort": "high"}},
        "max": {"reasoning": {"effort": "xhigh"}},
    },
    # Otherwise a host that ignores the option may be chosen.
    with_options={"provider": {"require_parameters": True}},
    search_fields={"plugins": [{"id": "web"}]},
    verdicts={
        "400": "refused",
        "401": "auth",
        "402": "exhausted",
        "403": "refused",
        "408": "unavailable",
        "429": "limited",
        "502": "unavailable",
        "503": "overloaded",
        "529": "overloaded",
    },
    # The input was flagged by moderation.
    statuses={403: "refused", 503: "overloaded", 529: "overloaded"},
    request_id_headers=("x-generation-id", "x-request-id", "cf-ray"),
)
