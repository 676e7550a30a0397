"""GLM (Zhipu, Z.ai): addresses, parameters and meanings of its business codes.

A 429 may mean too much concurrency, an empty balance or a locked account; only the business code distinguishes
them, so codes precede the status. Accounts in China use `https://open.bigmodel.cn/api/paas/v4`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from exai.providers.base import FailureKind, Family

_CODES: Final[dict[FailureKind, Iterable[int]]] = {
    # 1110 to 1112, 1120 and 1121: the account is inactive, unknown, locked or banned; no retry cures that.
    "auth": (*range(1000, 1005), 1100, 1110, 1111, 1112, 1120, 1121, 1220),
    "refused": (1200, 1210, 1212, 1213, 1214, 1215, 1221, 1222, 1231, 1261, 1300, 1301, 1311),
    "unknown_model": (1211,),
    # 1113 arrears, 1304 the day's quota, 1308 and 1310 the plan's quota, 1309 its end, 1313 its terms.
    "exhausted": (1113, 1304, 1308, 1309, 1310, 1313),
    "limited": (1302, 1303),
    # The model is busy with the requests of all customers.
    "overloaded": (1305, 1312),
    "unavailable": (500, 1230, 1234),
}

GLM = Family(
    name="glm",
    base_url="https://api.z.ai/api/paas/v4",
    key_setting="EXAI_PROVIDERS__GLM__API_KEY or GLM_API_KEY",
    limit_field="max_tokens",
    # Usage comes unasked with the last chunk, and stream_options is not among the documented parameters.
    stream_usage=False,
    needs_user_message=True,
    takes_any_order=True,
    open_temperature_range=True,
    search_fields={"tools": [{"type": "web_search", "web_search": {"enable": True, "search_result": True}}]},
    verdicts={str(code): verdict for verdict, codes in _CODES.items() for code in codes},
    statuses={434: "auth", 435: "refused"},
    request_id_headers=("x-request-id", "x-log-id", "x-trace-id"),
)
