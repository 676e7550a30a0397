"""Take the pictures of the page that the documentation shows: `make screenshots` writes them to docs/.

The daemon, its servers and its provider are real and run only for this; the conversations are made up.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from exai.app import open_app
from exai.monitoring.events import EventItem, encode
from exai.settings.load import load_settings
from tests.browser.conftest import OPTIONS, Site, chromium_program
from tests.support.daemon import start_daemon
from tests.support.provider_process import provider_process

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REVIEW = """The change is small and mostly right, but one path can lose a write.

`flush()` clears the buffer **before** the batch is acknowledged, so an error between the two loses it:

```python
async def flush(self) -> None:
    batch, self._items = self._items, []
    await self._send(batch)  # an error here loses the batch
```

Keep the batch until the answer is there, and give it back if there is none.

```findings
high: the batch is lost when the send fails (exai/flush.py:42)
low: the docstring names an argument that is gone (exai/flush.py:31)
```

VERDICT: fix first"""
ANSWER = """A partial index is smaller and is only considered for queries whose condition implies its own.

| index | rows | size |
|---|---|---|
| `(owner, started_at)` | 1,000,000 | 38 MB |
| the same, `where model is not null` | 412,000 | 16 MB |

1. It costs nothing for rows outside the condition.
2. The planner must be able to *prove* that the query needs no other rows.

```sql
create index turns_asked_idx on turns (owner, started_at) where model is not null;
```"""
QUESTIONS = (
    ("When is a partial index better than a full one?", ANSWER, ["postgres"]),
    (
        "Why does the nightly export time out?",
        "The pooler ends a statement after 60 s.",
        ["ops"],
    ),
    ("Name the moons of Jupiter that Galileo saw.", "Io, Europa, Ganymede and Callisto.", []),
    ("Summarize the release notes of this week.", "Three changes matter: search, budgets, and the page.", ["release"]),
    (
        "How do I rotate the signing keys?",
        "Add the new key, wait an hour, remove the old one.",
        ["ops", "auth"],
    ),
)
BATCH = 500
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


def seed(site: Site, directory: Path) -> str:
    """Make conversations; returns the one to show."""
    for question, answer, tags in QUESTIONS:
        site.provider.script(
            {"reply": "kimi_answer", "content": [answer], "reasoning": ["A short look at the planner."]}
        )
        made = site.call("chat", prompt=question)
        if tags:
            site.call("conversation_update", continuation_id=made["continuation_id"], tags=tags)
    source = directory / "flush.py"
    source.write_text("async def flush() -> None: ...\n")
    usage = {"prompt_tokens": 18_204, "completion_tokens": 611, "total_tokens": 18_815, "cached_tokens": 12_300}
    site.provider.script({"reply": "kimi_answer", "content": [REVIEW], "usage": usage})
    shown = site.call(
        "codereview", prompt="Is the new flush of the buffer safe when the network fails?", files=[str(source)]
    )
    name = str(shown["continuation_id"])
    site.call("conversation_update", continuation_id=name, title="Review of the flush", tags=["review"])
    for _ in range(40):
        site.call("conversation_get", continuation_id=name)
    return name


async def store_history(settings: dict[str, str]) -> None:
    """Store what a busy day would have left."""
    chance, now = random.Random(7), time.time()
    items = []
    for minute in range(24 * 60):
        at = now - minute * 60
        load = 6 + 5 * math.sin(at / 86_400 * 2 * math.pi) + chance.random() * 3
        calls = max(1, round(load * 4))
        items.append(EventItem("tool_call", at, {"tool": "chat", "outcome": "ok"}, calls, calls * 1.4))
        if chance.random() < 0.05:
            items.append(EventItem("tool_call", at, {"tool": "chat", "outcome": "provider_limited"}, 1, 0.4))
    async with open_app(load_settings(settings)) as app:
        for first in range(0, len(items), BATCH):
            stored = await app.history.store(encode(items[first : first + BATCH]), str(uuid4()), "pictures")
            assert stored.status == "stored", stored


def take(browser: Browser, site: Site, name: str, target: Path) -> None:
    """Write all pictures."""
    views = {"conversation": f"/#/c/{name}", "overview": "/#/overview"}
    shapes: dict[str, dict[str, Any]] = {
        "light": {**DESKTOP, "color_scheme": "light"},
        "dark": {**DESKTOP, "color_scheme": "dark"},
        "phone": {**PHONE, "color_scheme": "light"},
    }
    for shape, options in shapes.items():
        context = browser.new_context(base_url=site.url, **options)
        page = context.new_page()
        for view, address in views.items():
            page.goto(address)
            page.locator("#m3, .u-over").first.wait_for()
            page.locator(".connection.ok").wait_for()
            if view == "conversation":
                page.locator("#m2").evaluate("it => (it.style.scrollMarginTop = '1rem', it.scrollIntoView())")
            page.screenshot(path=target / f"page-{view}-{shape}.png")
        context.close()


def main() -> int:
    """Start everything, make the conversations, and take the pictures into the directory given."""
    from playwright.sync_api import sync_playwright

    target = Path(sys.argv[1])
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="exai-pictures-") as directory, provider_process() as provider:
        place = Path(directory)
        settings = {
            "EXAI_DATA_DIR": str(place / "data"),
            "EXAI_FILES__ROOTS": str(place),
            "EXAI_BUDGETS__OWNER_MONTH_USD": "20",
            "KIMI_API_KEY": "sk-test",
            "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
        }
        with start_daemon(settings) as daemon:
            site = Site(daemon, provider)
            name = seed(site, place)
            asyncio.run(store_history(settings))
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium_program(), args=list(OPTIONS))
                take(browser, site, name, target)
                browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
