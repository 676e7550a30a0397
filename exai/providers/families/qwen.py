"""Qwen at Alibaba Cloud Model Studio (DashScope): its addresses, its parameters and what its error codes mean.

Keys belong to one region: accounts in China use `https://dashscope.aliyuncs.com/compatible-mode/v1`. Models that think
only on request are asked with `enable_thinking`; several of those that always think only stream, which EXAI does.
"""

from __future__ import annotations

from exai.providers.base import Family

QWEN = Family(
    name="qwen",
    base_url="https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
    key_setting="EXAI_PROVIDERS__QWEN__API_KEY or DASHSCOPE_API_KEY",
    limit_field="max_tokens",
    stream_usage=True,
    is_optional=True,
    takes_any_name=True,
    search_fields={"enable_search": True, "search_options": {"enable_source": True}},
    verdicts={
        "Arrearage": "exhausted",
        "AllocationQuota.FreeTierOnly": "exhausted",
        "InvalidApiKey": "auth",
        "invalid_api_key": "auth",
        "AccessDenied": "auth",
        "access_denied": "auth",
        "Throttling": "limited",
        "Throttling.RateQuota": "limited",
        "Throttling.AllocationQuota": "limited",
        "Throttling.BurstRate": "limited",
        "limit_requests": "limited",
        "limit_burst_rate": "limited",
        "DataInspectionFailed": "refused",
        "data_inspection_failed": "refused",
        "InvalidParameter": "refused",
        "invalid_parameter_error": "refused",
        "ModelNotFound": "unknown_model",
        "model_not_found": "unknown_model",
        "ModelUnavailable": "overloaded",
        "ModelServingError": "overloaded",
        "InternalError": "unavailable",
        "internal_error": "unavailable",
        "RequestTimeOut": "unavailable",
    },
)
