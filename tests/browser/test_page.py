"""The page in a browser, against a real daemon: what a person sees, does, and cannot see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import ALICE, BOB, OpenPage, Site, sign_in

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.direct


def seen(page: Page, text: str) -> None:
    """Wait until a text is visible."""
    page.get_by_text(text).first.wait_for()


def test_a_person_signs_in_and_reads_a_conversation(site: Site, open_page: OpenPage) -> None:
    """The token is in no address, and survives a reload of the tab, not another tab."""
    name = site.store("Which planet is the largest?", "**Jupiter**.", title="Planets")
    page = open_page()
    page.get_by_role("link", name="Planets").click()
    seen(page, "Which planet is the largest?")
    assert page.locator("article.assistant strong").inner_text() == "Jupiter"
    assert page.url == f"{site.url}/#/c/{name}"
    assert ALICE not in page.url
    page.reload()
    seen(page, "Which planet is the largest?")
    other = page.context.new_page()
    other.goto("/")
    other.get_by_label("Token").wait_for()


def test_a_wrong_token_is_refused_and_not_kept(site: Site, open_page: OpenPage) -> None:
    page = open_page(token="")
    page.get_by_label("Token").fill("wrong-token-0123456789")
    page.get_by_role("button", name="Sign in").click()
    assert "not accepted" in page.get_by_role("alert").inner_text()
    assert page.evaluate("sessionStorage.length") == 0
    assert page.get_by_label("Token").get_attribute("aria-invalid") == "true"
    sign_in(page, ALICE)
    site.problems = [each for each in site.problems if "401" not in each]


def test_another_owner_sees_nothing_of_it(site: Site, open_page: OpenPage) -> None:
    """Not in the list, in a search, or by the address of the conversation."""
    name = site.store("The zeppelin flies.", "It does.", title="Zeppelins")
    page = open_page(f"/#/c/{name}", token=BOB)
    seen(page, "no conversation")
    assert page.get_by_text("zeppelin", exact=False).count() == 0
    page.get_by_label("Search conversations").fill("zeppelin")
    seen(page, "Nothing was found.")


def test_a_search_finds_while_one_types_and_leads_to_the_message(site: Site, open_page: OpenPage) -> None:
    """The last word may be unfinished; the address of a search can be kept."""
    name = site.store("What is a quokka?", "A small macropod.", "And where?", "On Rottnest Island.", title="Animals")
    page = open_page()
    page.get_by_label("Search conversations").type("rottn")
    page.get_by_label("Search results, best first").get_by_role("link", name="Animals").click()
    page.locator("article.target").get_by_text("On Rottnest Island.").wait_for()
    assert page.url.startswith(f"{site.url}/#/c/{name}/4")
    page.goto("/#/?q=quokka")
    page.locator("mark", has_text="quokka").wait_for()


def test_a_change_by_another_client_appears_by_itself(site: Site, open_page: OpenPage) -> None:
    name = site.store("One?", "One.", title="Growing")
    page = open_page(f"/#/c/{name}")
    seen(page, "One.")
    page.locator(".connection.ok").wait_for()
    site.call(
        "conversation_append", continuation_id=name, messages=[{"role": "user", "content": "Said in another place"}]
    )
    seen(page, "Said in another place")
    site.store("New?", title="Made in another place")
    seen(page, "Made in another place")


def test_a_conversation_is_continued_and_the_answer_is_seen_while_it_grows(site: Site, open_page: OpenPage) -> None:
    name = site.store("Hi.", "Hello.", title="Talk")
    site.provider.script(
        {"reply": "gated_answer", "first": "The first `part`", "rest": " and the last", "reasoning": "Hm"}
    )
    page = open_page(f"/#/c/{name}")
    page.get_by_label("Continue this conversation").fill("Go on")
    page.keyboard.press("Enter")
    page.locator(".answering code", has_text="part").wait_for()
    page.locator(".answering .reasoning", has_text="Hm").wait_for()
    site.provider.open_gate()
    page.locator("#m4", has_text="The first part and the last").wait_for()
    assert page.locator("#m4 .cost").inner_text() == "11 in (4 cached) · 7 out · <$0.0001"
    assert page.locator(".answering").count() == 0
    stored = site.call("conversation_get", continuation_id=name)["messages"]
    assert [each["content"] for each in stored[2:]] == ["Go on", "The first `part` and the last"]


def test_texts_of_models_and_files_are_not_interpreted(site: Site, open_page: OpenPage) -> None:
    """XSS in every field; no image is fetched, since its address could contain a conversation's text."""
    attack = (
        '<img src="https://evil.example/?q=1" onerror="window.hit=1"><script>window.hit=1</script>'
        '<svg onload="window.hit=1"></svg><iframe srcdoc="<script>parent.hit=1</script>"></iframe>'
        '<form action="https://evil.example"><button>Sign in</button></form><style>body{display:none}</style>'
        "[link](javascript:window.hit=1) ![image](https://evil.example/x.png)\n\n"
        '```"><img src=x onerror=window.hit=1>\n<img src=x onerror="window.hit=1">\n```\n\n'
        '<a href="java&#10;script:window.hit=1" id="facts" class="skip">x</a> <div id="page">y</div>'
    )
    file = site.call("file_put", name=f"a{attack[:60]}.txt".replace("/", ""), content=attack)["file_id"]
    metadata = {"model": attack, "workflow": attack, "notes": [attack], "reasoning": {"text": attack}, "read": [attack]}
    kinds = [
        {"role": role, "content": attack, "metadata": metadata} for role in ("user", "assistant", "tool", "system")
    ]
    stored = site.call("conversation_append", messages=kinds, title=attack[:200], files=[file])
    name = stored["continuation_id"]
    site.call("conversation_update", continuation_id=name, tags=[attack[:60]])
    asked: list[str] = []
    page = open_page(f"/#/c/{name}")
    page.on("request", lambda request: asked.append(request.url))
    page.locator("#m4").wait_for()
    page.locator("#m2 details summary").click()
    page.get_by_role("button", name="File 1").first.click()
    page.locator("dialog .file-text").wait_for()
    page.keyboard.press("Escape")
    page.get_by_label("Search conversations").fill("evil")
    page.locator(".snippet").first.wait_for()
    assert page.evaluate("window.hit") is None
    assert [url for url in asked if not url.startswith((site.url, "blob:"))] == []
    inside = page.locator("#m2 .markdown")
    assert inside.locator("img, script, svg, iframe, form, style, button:not(.quiet), [id]").count() == 0
    assert page.locator("a[href^='javascript' i]").count() == 0
    assert page.locator("body").is_visible()


def test_the_page_survives_a_restart_of_its_daemon(site: Site, open_page: OpenPage, chromium: object) -> None:
    """It shows that the daemon is unavailable, and continues when it is back."""
    name = site.store("Still here?", "Yes.", title="Restarts")
    page = open_page(f"/#/c/{name}")
    page.locator(".connection.ok").wait_for()
    # The proxy of the profile stands for a daemon that is gone: other tests share the real one.
    page.context.set_offline(True)
    page.get_by_label("Continue this conversation").fill("Lost?")
    page.keyboard.press("Enter")
    page.locator(".failure", has_text="The daemon does not answer.").wait_for()
    page.locator(".connection.bad").wait_for()
    page.context.set_offline(False)
    page.locator(".connection.ok").wait_for(timeout=20_000)
    page.get_by_role("button", name="Try again").click()
    page.locator("#m4").wait_for()
    site.problems = [each for each in site.problems if "ERR_INTERNET_DISCONNECTED" not in each]


def test_everything_is_reached_on_a_narrow_screen(site: Site, open_page: OpenPage) -> None:
    """360 pixels: nothing is wider than the screen, and what is pressed is large enough."""
    long = "x" * 300
    table = f"```python\nprint('{long}')\n```\n\n| a | b |\n|---|---|\n| {long} | c |"
    name = site.store(f"A long word {long}", table, title=f"A long word {long}")
    page = open_page("/", viewport={"width": 360, "height": 640}, is_mobile=True, has_touch=True)
    for address in ("/#/", f"/#/c/{name}", "/#/connect"):
        page.goto(address)
        page.locator(".row:visible, #m2, .snippets").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, address
        small = page.evaluate(
            "[...document.querySelectorAll('button, .button, select, input')].filter(e => e.offsetParent &&"
            " e.getBoundingClientRect().height < 44).map(e => e.outerHTML.slice(0, 80))"
        )
        assert small == [], address
    page.goto(f"/#/c/{name}")
    page.get_by_label("Back to the list").click()
    page.get_by_role("link", name="A long word").first.wait_for()
