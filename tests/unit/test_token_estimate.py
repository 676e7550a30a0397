"""The token estimate, against the counts of public tokenizers for texts of eight kinds and several scripts.

The counts are those of the vocabularies of GLM-5, DeepSeek V4, Qwen and o200k, taken once.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exai import token_estimate
from exai.token_estimate import text_tokens, utf8_tokens

PROSE: Final = """\
The harbour had been quiet since the ferry stopped coming in the autumn, and the few boats that remained
were covered with canvas and left to the gulls. Margaret walked along the wall every evening before supper,
because the doctor had told her that the air would help her sleep, and because there was nobody at home to
ask where she had been. She knew the names of all the boats and most of their owners. On the last evening of
October she noticed that one of them had turned around on its mooring, against the tide, as though somebody
had tied it up again in a hurry and had not cared which way it faced. She stood and looked at it for a long
time. The lamp at the end of the wall flickered twice and went out, and then she heard quite clearly the
sound of a door being closed with care, the way one closes the door of a room in which a child is asleep.
"""

MARKDOWN: Final = """\
# Upgrading a cluster

Before you begin, read the [release notes](https://docs.example.org/releases/4.2) and make a backup.

## Steps

1. Stop all **writers**: `systemctl stop ingest@{1..4}.service`.
2. Run `clusterctl upgrade --to 4.2 --check` on each node; it prints `ok` or the reason.
3. Upgrade the replicas first, then the primary:

   ```sh
   for node in replica-1 replica-2 primary; do
       clusterctl upgrade --node "$node" --to 4.2 --wait 120s
   done
   ```

| setting | default | since |
|---|---|---|
| `max_connections` | 100 | 3.0 |
| `checkpoint_interval` | 30s | 4.1 |

> **Note:** a downgrade from 4.2 is possible only while `compat_level` is 41 or lower.
"""

CHINESE: Final = """\
# 数据库升级说明

升级之前请先阅读发布说明，并确认所有节点都已完成备份。升级过程中写入服务会短暂停止，通常不超过两分钟。

## 步骤

1. 停止所有写入进程，执行 `systemctl stop ingest.service`。
2. 在每个节点上检查版本，如果输出不是 `ok`，请根据提示修复配置后再继续。
3. 先升级副本，再升级主节点。主节点升级完成之后，观察监控面板上的延迟和错误率。

注意：如果升级失败，可以使用备份恢复到之前的版本，但是恢复之后需要重新建立索引，这可能需要较长的时间。
"""

CODE: Final = '''\
from collections import OrderedDict
from dataclasses import dataclass, field


@dataclass
class LeastRecentlyUsed:
    """A mapping that forgets the entries that were used longest ago."""

    capacity: int
    _entries: OrderedDict[str, bytes] = field(default_factory=OrderedDict)

    def get(self, key: str) -> bytes | None:
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: str, value: bytes) -> None:
        if self.capacity <= 0:
            raise ValueError(f"capacity must be positive, not {self.capacity}")
        self._entries[key] = value
        self._entries.move_to_end(key)
        while len(self._entries) > self.capacity:
            self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)
'''

DIFF: Final = """\
diff --git a/store/orders.sql b/store/orders.sql
index 3f1c2ab..9be07d4 100644
--- a/store/orders.sql
+++ b/store/orders.sql
@@ -12,9 +12,14 @@ create table orders (
   id bigint generated always as identity primary key,
   customer_id bigint not null references customers (id),
-  total numeric(10, 2) not null default 0,
+  total numeric(12, 2) not null default 0 check (total >= 0),
+  currency char(3) not null default 'EUR',
   created_at timestamptz not null default now()
 );
-create index orders_customer on orders (customer_id);
+create index orders_customer_created on orders (customer_id, created_at desc);
+
+select c.name, count(*) as orders, sum(o.total) as revenue
+  from customers c join orders o on o.customer_id = c.id
+ where o.created_at >= '2026-01-01' group by c.name having count(*) > 10 order by revenue desc;
"""

JSON: Final = json.dumps(
    [
        {
            "id": 48213 + 7 * at,
            "sku": f"KX-{at:04d}-{(at * 7919) % 997}",
            "qty": at % 9 + 1,
            "price": round(3.15 + at * 1.07, 2),
            "tags": ["new", "eu"][: at % 3],
            "at": f"2026-03-{at % 28 + 1:02d}T{at % 24:02d}:{(at * 13) % 60:02d}:07Z",
            "ok": at % 2 == 0,
        }
        for at in range(24)
    ],
    separators=(",", ":"),
)

_NOISE: Final = b"".join(hashlib.sha256(bytes([at])).digest() for at in range(48))
BASE64: Final = base64.b64encode(_NOISE).decode()
HEX: Final = _NOISE.hex()

COUNTS: Final = {
    "prose": (191, 191, 191, 191),
    "markdown": (208, 210, 214, 209),
    "chinese": (135, 132, 140, 150),
    "code": (197, 208, 197, 199),
    "diff": (232, 242, 246, 230),
    "json": (1227, 1250, 1557, 1202),
    "base64": (1479, 1439, 1520, 1403),
    "hex": (2031, 1765, 2684, 1748),
}
"""Counts of GLM-5, DeepSeek V4, Qwen and o200k."""

TEXTS: Final = {
    "prose": PROSE,
    "markdown": MARKDOWN,
    "chinese": CHINESE,
    "code": CODE,
    "diff": DIFF,
    "json": JSON,
    "base64": BASE64,
    "hex": HEX,
}
SCRIPTS: Final = {
    "russian": (
        "Перед обновлением прочитайте примечания к выпуску и убедитесь, что все узлы имеют резервную копию.",
        25,
        35,
    ),
    "japanese": (
        "アップグレードの前にリリースノートを読み、すべてのノードのバックアップが完了していることを確認してください。",
        28,
        34,
    ),
    "korean": ("업그레이드하기 전에 릴리스 노트를 읽고 모든 노드의 백업이 완료되었는지 확인하십시오.", 28, 41),
    "arabic": ("قبل الترقية اقرأ ملاحظات الإصدار وتأكد من أن جميع العقد لديها نسخة احتياطية مكتملة.", 24, 38),
    "german": (
        "Vor der Aktualisierung lesen Sie bitte die Hinweise und prüfen Sie, ob alle Knoten gesichert sind.",
        21,
        28,
    ),
    "emoji": ("🚀🎉✅❌🔥💡🚀🎉✅❌🔥💡🚀🎉✅❌🔥💡🚀🎉✅❌🔥💡", 24, 40),
    "han": (
        "升级之前请先阅读发布说明，并确认所有节点都已完成备份。升级过程中写入服务会短暂停止，通常不超过两分钟。",
        29,
        33,
    ),
}
"""Texts of one sentence with the least and the greatest count of the four vocabularies."""


@pytest.mark.parametrize("kind", TEXTS)
def test_estimate_is_near_the_count_of_every_vocabulary(kind: str) -> None:
    """Bytes divided by three were 58 % too many for prose, and half of the tokens of hexadecimal digits."""
    errors = [text_tokens(TEXTS[kind]) / count - 1 for count in COUNTS[kind]]
    assert all(-0.25 <= error <= 0.30 for error in errors), errors
    assert abs(sum(errors) / len(errors)) <= 0.15


@pytest.mark.parametrize("kind", TEXTS)
def test_estimate_holds_for_long_texts(kind: str) -> None:
    """The estimate of a text is the sum of those of its parts, but for the runs that a cut divides."""
    whole = text_tokens(TEXTS[kind] * 50)
    assert whole == pytest.approx(50 * text_tokens(TEXTS[kind]), rel=0.03)


@pytest.mark.parametrize(("text", "least", "most"), SCRIPTS.values(), ids=SCRIPTS)
def test_every_script_is_within_the_range_of_the_vocabularies(text: str, least: int, most: int) -> None:
    """A character has the weight of its script."""
    assert least * 0.75 <= text_tokens(text) <= most * 1.25


def test_long_words_and_paths_are_not_taken_for_encoded_data() -> None:
    """Only runs with digits are."""
    assert text_tokens("a-long-path/of/many/words/without-any-digit-in-it") < 25
    assert text_tokens("=" * 79) < 60


def test_any_text_has_an_estimate() -> None:
    """Half of a surrogate pair and nothing at all, too."""
    assert text_tokens("") == 0
    assert text_tokens("\ud800") >= 0


@given(st.lists(st.sampled_from(["a", "Z", "7", " ", "\n", ".", '"', "é", "ж", "漢", "한", "😀", "_"]), max_size=200))
def test_estimate_is_the_sum_of_its_parts(parts: list[str]) -> None:
    """A hundred times a text has a hundred times its weight; short lines are no encoded data."""
    weights = sum(text_tokens(part * 100 if part in " \n" else f"{part} " * 100) for part in parts)
    together = text_tokens("".join(part if part in " \n" else f"{part} " for part in parts) * 100)
    assert abs(together - weights) <= len(parts) + 1


def test_estimates_are_kept_within_a_limit_and_stay_right() -> None:
    """A conversation's messages are estimated in every turn; a daemon sees more texts than it may remember."""
    first = text_tokens("word 0 " * 9)
    for number in range(20_000):
        assert text_tokens(f"word {number % 7_000} " * 9) > 0
    assert len(token_estimate._kept) <= 16_384
    assert text_tokens("word 0 " * 9) == first == utf8_tokens(b"word 0 " * 9)
