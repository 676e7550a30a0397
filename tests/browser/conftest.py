"""One Chromium and one daemon with two owners for the tests of the page; without a browser each says so and is skipped.

`make browser` installs what they need: the Python package of Playwright, and Debian's Chromium where apt can bring it.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from exai.mcp.core.versions import META_CAPABILITIES, META_VERSION, MODERN
from tests.conftest import fresh
from tests.support.backend import Backend, flush
from tests.support.daemon import Daemon, start_daemon
from tests.support.provider_process import ProviderProcess, provider_process

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

ALICE, BOB = "token-of-alice-0123456789", "token-of-bob-0123456789012"
VARIABLE = "EXAI_TEST_BROWSER"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LIMIT_MS = 5_000


def request_of(tool: str, token: str, arguments: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a call by a client of the stateless era."""
    meta = {META_VERSION: MODERN, META_CAPABILITIES: {}}
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    headers = {"mcp-protocol-version": MODERN, "mcp-method": "tools/call", "mcp-name": tool}
    headers |= {"authorization": f"Bearer {token}", "accept": "application/json", "content-type": "application/json"}
    return orjson.dumps(body), headers


@dataclass
class Site:
    """A daemon with the page, its provider, and what was wrong on the pages that a test opened."""

    daemon: Daemon
    provider: ProviderProcess
    settings: dict[str, str] = field(default_factory=dict)
    empty_url: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.daemon.port}"

    def ask(self, tool: str, token: str = ALICE, **arguments: Any) -> dict[str, Any]:
        """Call a tool as another client of the same owner, and return its result."""
        body, headers = request_of(tool, token, arguments)
        result = httpx.post(f"{self.url}/mcp", content=body, headers=headers, timeout=20).json()["result"]
        assert isinstance(result, dict)
        return result

    @contextmanager
    def begin(self, tool: str, token: str = ALICE, **arguments: Any) -> Iterator[None]:
        """Call a tool, and go away without its answer when the block ends."""
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=20)
        connection.request("POST", "/mcp", *request_of(tool, token, arguments))
        yield
        connection.close()

    def call(self, tool: str, token: str = ALICE, **arguments: Any) -> dict[str, Any]:
        """Do the same, and return the structured answer of a call that succeeds."""
        result = self.ask(tool, token, **arguments)
        assert not result["isError"], result
        found = result["structuredContent"]
        assert isinstance(found, dict)
        return found

    def store(self, *contents: str, token: str = ALICE, title: str | None = None, **more: Any) -> str:
        """Store a conversation of questions and answers in turn; returns its continuation_id."""
        roles = ("user", "assistant")
        messages = [{"role": roles[place % 2], "content": each} for place, each in enumerate(contents)]
        arguments = {"messages": messages, **({"title": title} if title else {}), **more}
        return str(self.call("conversation_append", token, **arguments)["continuation_id"])


def chromium_program() -> str | None:
    """Return the browser on this machine, if there is one."""
    return os.environ.get(VARIABLE) or next(filter(None, map(shutil.which, PROGRAMS)), None)


@pytest.fixture(scope="session")
def browser_program() -> str:
    """The program of the browser. Without it, or without what drives it, the test says so."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("not tested with a browser: Playwright is not installed; `make browser` installs it")
    program = chromium_program()
    if program is None:
        pytest.skip(f"not tested with a browser: no Chromium; `make browser` installs one, or {VARIABLE} names one")
    return program


SharedSite = tuple[Daemon, ProviderProcess, dict[str, str], str]


@pytest.fixture(scope="module")
def shared_site(
    browser_program: str, backend: Backend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SharedSite]:
    """A daemon that asks for tokens; started only if there is a browser."""
    flush(backend.redis_url)
    databases = backend.databases
    for url, empty_url in zip(fresh(databases, migrated=True), fresh(databases, migrated=True), strict=True):
        with provider_process() as provider:
            settings = settings_of(url, backend, provider, tmp_path_factory)
            with start_daemon(settings) as daemon:
                yield daemon, provider, settings, empty_url


@pytest.fixture(scope="module")
def chromium(browser_program: str, shared_site: SharedSite) -> Iterator[Browser]:
    """The browser of a module. Playwright runs an event loop in this thread, so no test with one of its own comes
    between: the module ends first."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_program, args=list(OPTIONS))
        yield browser
        browser.close()


def settings_of(
    url: str, backend: Backend, provider: ProviderProcess, directories: pytest.TempPathFactory
) -> dict[str, str]:
    return {
        "EXAI_DATA_DIR": str(directories.mktemp("page")),
        "EXAI_DATABASE__URL": url,
        "EXAI_CACHE__URL": backend.redis_url,
        "EXAI_SERVER__TOKENS": f'{{"alice": "{ALICE}", "bob": "{BOB}"}}',
        "KIMI_API_KEY": "sk-test",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
    }


@pytest.fixture
def site(shared_site: SharedSite) -> Iterator[Site]:
    """The shared daemon. Afterwards nothing may have been wrong on the pages: no error, no refusal by the policy."""
    found = Site(*shared_site)
    yield found
    assert found.problems == []


OpenPage = Callable[..., "Page"]


@pytest.fixture
def open_page(chromium: Browser, site: Site) -> Iterator[OpenPage]:
    """Open an address in a profile of its own, signed in as the owner of a token; keywords go to the profile."""
    contexts: list[BrowserContext] = []

    def open_one(address: str = "/", *, token: str = ALICE, **options: Any) -> Page:
        context = chromium.new_context(base_url=site.url, **options)
        contexts.append(context)
        context.set_default_timeout(LIMIT_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: site.problems.append(str(error)))
        page.on("console", lambda said: said.type == "error" and site.problems.append(said.text))
        page.goto(address)
        if token:
            sign_in(page, token)
        return page

    yield open_one
    for each in contexts:
        each.close()


def sign_in(page: Page, token: str) -> None:
    """Sign in as a person does, and wait until the daemon has accepted the token."""
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Token").wait_for(state="detached")
