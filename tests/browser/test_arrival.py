"""Arriving at the page: signing in through Supabase Auth, a first run, and proxies between page and daemon.

Supabase Auth is a stand-in that answers as its documentation says.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.browser.conftest import ALICE, OpenPage, Site, sign_in
from tests.support.daemon import start_daemon
from tests.support.tokens import SECRET, signed

pytestmark = pytest.mark.direct

KEY = "sb_publishable_of_the_tests"


class AuthServer(ThreadingHTTPServer):
    """Knows one user with a password, one code, and one provider; `asked` are the paths and bodies in order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/auth/v1"

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.asked.append((path, body))
        fits = {
            "/token?grant_type=password": body.get("password") == "right",
            "/otp": True,
            "/verify": body.get("token") == "123456",
            "/token?grant_type=pkce": body.get("auth_code") == "the-code" and bool(body.get("code_verifier")),
            "/token?grant_type=refresh_token": body.get("refresh_token") == "again",
        }
        if not fits.get(path):
            return 400, {"code": 400, "msg": "Invalid login credentials"}
        token = signed("carol", iss=self.url)
        return 200, {} if path == "/otp" else {"access_token": token, "refresh_token": "again", "expires_in": 3_600}


class _Handler(BaseHTTPRequestHandler):
    server: AuthServer

    def do_OPTIONS(self) -> None:
        self._send(204, {})

    def do_GET(self) -> None:
        """The provider's own page, which sends the person back at once."""
        query = parse_qs(urlsplit(self.path).query)
        self.server.asked.append(("/authorize", {name: values[0] for name, values in query.items()}))
        self.send_response(302)
        self.send_header("Location", f"{query['redirect_to'][0]}?code=the-code")
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["apikey"] == KEY
        self._send(*self.server.answer(self.path.removeprefix("/auth/v1"), body))

    def _send(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Allow-Headers", "apikey, content-type")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def auth() -> Iterator[AuthServer]:
    server = AuthServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_person_signs_in_through_supabase_auth(site: Site, open_page: OpenPage, auth: AuthServer) -> None:
    """By password, by a code, through a provider, and again by itself; the token is in no address."""
    settings = {
        **site.settings,
        "EXAI_SERVER__JWT__SECRET": SECRET,
        "EXAI_SERVER__JWT__ISSUER": auth.url,
        "EXAI_SERVER__JWT__PUBLISHABLE_KEY": KEY,
        "EXAI_SERVER__JWT__SIGN_IN_WITH": "github",
    }
    with start_daemon(settings) as daemon:
        page = open_page(f"http://127.0.0.1:{daemon.port}/", token="")
        page.get_by_label("E-mail address").fill("a@example.org")
        page.get_by_label("Password").fill("wrong")
        page.get_by_role("button", name="Continue", exact=True).click()
        page.get_by_role("alert").get_by_text("Invalid login credentials").wait_for()

        page.get_by_label("Password").fill("right")
        page.get_by_role("button", name="Continue", exact=True).click()
        page.get_by_label("Search conversations").wait_for()
        page.evaluate("sessionStorage.setItem('exai.token', 'expired')")
        with page.expect_response("**/token?grant_type=refresh_token"):
            page.reload()
        page.get_by_label("Search conversations").wait_for()
        assert auth.asked[-1][0] == "/token?grant_type=refresh_token"
        page.get_by_role("button", name="Sign out").click()
        page.get_by_label("E-mail address").fill("a@example.org")
        page.get_by_role("button", name="Continue", exact=True).click()
        page.get_by_label("Code from the message").fill("123456")
        page.get_by_role("button", name="Continue", exact=True).click()
        page.get_by_label("Search conversations").wait_for()
        page.get_by_role("button", name="Sign out").click()
        page.get_by_role("button", name="Continue with github").click()
        page.get_by_label("Search conversations").wait_for()
        assert page.url == f"http://127.0.0.1:{daemon.port}/"
        (asked,) = [body for path, body in auth.asked if path == "/authorize"]
        assert asked["code_challenge_method"] == "s256"
        assert page.evaluate("sessionStorage.getItem('exai.verifier')") is None
        page.context.close()
    site.problems = [each for each in site.problems if "40" not in each]


def test_a_new_user_is_told_what_to_do(site: Site, open_page: OpenPage) -> None:
    """Without a model and without a conversation; nothing has to be read elsewhere."""
    without = {name: value for name, value in site.settings.items() if "KIMI" not in name and "TOKENS" not in name}
    with start_daemon({**without, "EXAI_DATABASE__URL": site.empty_url, "EXAI_CACHE__URL": "off"}) as daemon:
        page = open_page(f"http://127.0.0.1:{daemon.port}/", token="")
        page.get_by_role("heading", name="Welcome to EXAI").wait_for()
        page.get_by_text("KIMI_API_KEY").first.wait_for()
        page.get_by_text(f"claude mcp add --transport http exai http://127.0.0.1:{daemon.port}/mcp").first.wait_for()
        page.get_by_role("link", name="Settings").click()
        page.get_by_role("rowheader", name="EXAI_SERVER__PORT").wait_for()
        page.evaluate("() => { WebSocket = function () { setTimeout(() => this.onerror()) } }")
        page.get_by_role("link", name="Connect").click()
        page.get_by_text("A WebSocket cannot be opened here.").wait_for()
        page.get_by_role("link", name="Overview").click()
        page.locator(".health.warn", has_text="no model can be asked").wait_for()
        page.locator(".cure", has_text="KIMI_API_KEY").wait_for()
        page.context.close()
        narrow = {"viewport": {"width": 360, "height": 640}, "is_mobile": True, "has_touch": True}
        page = open_page(f"http://127.0.0.1:{daemon.port}/", token="", **narrow)
        page.get_by_text("KIMI_API_KEY").first.wait_for()
        too_wide = (
            "[...document.querySelectorAll('.failure, .failure *')].filter(e => e.scrollWidth > e.clientWidth + 1)"
        )
        assert page.evaluate(f"{too_wide}.map(e => e.outerHTML)") == []
        page.context.close()


def test_a_problem_and_its_cure_are_in_the_first_line_of_the_overview(site: Site, open_page: OpenPage) -> None:
    """In the words of `exai doctor`, which has examined the daemon by itself; what happened is listed below."""
    without = {name: value for name, value in site.settings.items() if name != "EXAI_CACHE__URL"}
    with start_daemon(without) as daemon:
        page = open_page(f"http://127.0.0.1:{daemon.port}/#/overview")
        page.locator(".health.warn", has_text="every read asks Postgres").wait_for()
        page.locator(".cure", has_text="Set EXAI_CACHE__URL").wait_for()
        page.get_by_text("Events of the last week").click()
        page.locator(".events li, .events .note").first.wait_for()
        page.context.close()


def test_a_proxy_that_holds_back_events_is_named(site: Site, open_page: OpenPage) -> None:
    """The page then reads again by itself; the timer of the page is advanced, not waited for."""
    page = open_page(token="")
    page.clock.install()
    page.route("**/mcp", lambda route: None if "listen" in (route.request.post_data or "") else route.continue_())
    sign_in(page, ALICE)
    page.locator(".row, .note").first.wait_for()
    page.clock.run_for(15_000)
    page.locator(".connection.warn", has_text="Not live").wait_for()
