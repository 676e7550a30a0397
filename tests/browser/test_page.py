"""The page in a browser, against a real daemon: what a person sees, does, and cannot see."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from tests.browser.conftest import ALICE, BOB, OpenPage, Site
from tests.support.daemon import start_daemon
from tests.support.sources import chain, chatgpt, write_json

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.direct

BACKGROUND = {
    *("changes", "ping", "renew_leases", "index_messages", "server_limit", "standing", "revision", "store_metrics"),
    *("apply_metrics_retention", "create_metrics_partitions"),
}
"""Statements that a daemon sends by itself."""


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


def test_a_file_of_this_device_is_attached_and_read_by_the_model(site: Site, open_page: OpenPage) -> None:
    """One that was removed again is not sent; the message names what was."""
    name = site.store("Hi.", "Hello.", title="Talk with files")
    page = open_page(f"/#/c/{name}")
    chosen = [{"name": f"{each}.txt", "mimeType": "text/plain", "buffer": each.encode()} for each in ("zebra", "okapi")]
    page.get_by_label("Files to attach").set_input_files(chosen)
    page.get_by_role("button", name="Remove okapi.txt").click()
    page.get_by_label("Continue this conversation").fill("What is in it?")
    page.keyboard.press("Enter")
    page.locator("#m3").get_by_role("button", name="File 1").click()
    page.get_by_role("dialog").get_by_text("zebra", exact=True).wait_for()
    asked = site.provider.requests()[-1]["body"]["messages"]
    assert ("zebra" in str(asked), "okapi" in str(asked)) == (True, False)
    assert page.get_by_role("button", name="Remove zebra.txt").count() == 0


def test_large_content_of_an_answer_is_named_and_one_of_its_files(site: Site, open_page: OpenPage) -> None:
    """Its reference would be dropped as an unknown element."""
    image = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40_000)).decode()
    site.provider.script({"reply": "kimi_answer", "content": [f"Drawn: data:image/png;base64,{image}"]})
    name = site.call("chat", prompt="Draw it")["continuation_id"]
    page = open_page(f"/#/c/{name}")
    page.locator("#m2", has_text="Drawn: [image-").wait_for()
    page.locator("#m2").get_by_role("button", name="File 1").wait_for()


def test_files_that_have_changed_on_disk_are_read_again(site: Site, open_page: OpenPage, tmp_path: Path) -> None:
    """An answer says which have changed; the switch is there where messages have files."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.py").write_text("old = 1\n")
    with start_daemon({**site.settings, "EXAI_FILES__ROOTS": str(root)}) as daemon:
        other = Site(daemon, site.provider)
        name = other.call("chat", prompt="Why?", files=[str(root / "a.py")])["continuation_id"]
        (root / "a.py").write_text("new = 2, longer\n")
        page = open_page(f"{other.url}/#/c/{name}")
        question = page.get_by_label("Continue this conversation")
        question.fill("And now?")
        page.keyboard.press("Enter")
        page.locator(".notice", has_text="a.py has changed on disk since").wait_for()
        question.fill("And now?")
        page.get_by_label("Reread files").check()
        question.press("Enter")
        page.locator("#m6").wait_for()
        assert "new = 2" in str(site.provider.requests()[-1]["body"]["messages"])
        assert not page.get_by_label("Reread files").is_checked()
        page.context.close()


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


HOSTILE_METADATA: tuple[dict[str, Any], ...] = (
    {"notes": "text", "read": "text", "file_ids": {"0": "x"}, "model": {"name": "x"}, "reasoning": "text"},
    {"notes": [{"a": 1}, None, "a note"], "read": [[1]], "file_ids": [5], "model": 5, "reasoning": {"text": ["x"]}},
    {"severity": 5, "verdict": {}, "by": [], "file": {"a": 1}, "line": {}, "workflow": [1], "finish_reason": {}},
    {"severity": "off-screen skip", "verdict": "off-screen skip"},
    {"constructor": None, "__proto__": {"notes": 5}, "toString": 1, "notes": None, "reasoning": None},
)


def test_metadata_of_any_kind_leaves_a_transcript_readable(site: Site, open_page: OpenPage) -> None:
    """Clients and imported archives store what they like, and the page knows the kinds of its own facts only."""
    kinds = (
        ("user", "message"),
        ("assistant", "message"),
        ("assistant", "finding"),
        ("tool", "__proto__"),
        ("tool", "off-screen"),
    )
    messages: list[dict[str, Any]] = [
        {"role": role, "content": f"{role} says {place}", "metadata": metadata, "kind": kind}
        for place, metadata in enumerate(HOSTILE_METADATA)
        for role, kind in (*kinds, ("assistant", "toString"), ("assistant", "constructor"))
    ]
    for place, message in enumerate(messages):
        message["seq"] = place + 1
    header = {"format": "exai-conversation", "version": 1, "continuation_id": "hostile", "title": "Hostile"}
    text = "\n".join(orjson.dumps(each).decode() for each in (header, *messages))
    name = site.call("conversation_import", text=text, format="jsonl")["continuation_id"]
    page = open_page(f"/#/c/{name}")
    page.locator(f"#m{len(messages)}").wait_for()
    assert page.locator(".message, .steps li").count() == len(messages)
    assert page.locator(".note", has_text="a note").count() > 0
    assert page.locator("#m3").inner_text().count("assistant says 0") == 1
    assert page.evaluate("Object.keys(Object.prototype).length") == 0
    assert page.locator(".message.off-screen, .chip.off-screen, .chip.off-screen-skip").count() == 0


def test_the_page_survives_a_restart_of_its_daemon(site: Site, open_page: OpenPage) -> None:
    """It shows that the daemon is unavailable, and continues when it is back; the question is asked once."""
    name = site.store("Still here?", "Yes.", title="Restarts")
    with start_daemon(site.settings) as first:
        port = first.port
        page = open_page(f"http://127.0.0.1:{port}/#/c/{name}")
        page.locator("#m2").wait_for()
        page.locator(".connection.ok").wait_for()
        first.kill()
        page.get_by_label("Continue this conversation").fill("Lost?")
        page.keyboard.press("Enter")
        page.locator(".failure", has_text="The daemon does not answer.").wait_for()
        page.locator(".connection.bad").wait_for()
    with start_daemon({**site.settings, "EXAI_SERVER__PORT": str(port)}):
        page.locator(".connection.ok").wait_for()
        page.get_by_role("button", name="Try again").click()
        page.locator("#m4").wait_for()
        page.context.close()
    assert len(site.call("conversation_get", continuation_id=name)["messages"]) == 4
    site.problems = [each for each in site.problems if "net::ERR_" not in each]


def test_everything_is_reached_on_a_narrow_screen(site: Site, open_page: OpenPage) -> None:
    """360 pixels: nothing is wider than the screen, and what is pressed is large enough."""
    long = "x" * 300
    table = f"```python\nprint('{long}')\n```\n\n| a | b |\n|---|---|\n| {long} | c |"
    name = site.store(f"A long word {long}", table, title=f"A long word {long}")
    page = open_page("/", viewport={"width": 360, "height": 640}, is_mobile=True, has_touch=True)
    for address in ("/#/", f"/#/c/{name}", "/#/connect", "/#/overview", "/#/settings"):
        page.goto(address)
        page.locator(".row:visible, #m2, .snippets, .u-over, .page p").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, address
        small = page.evaluate(
            "[...document.querySelectorAll('button, .button, select, input')].filter(e => e.offsetParent &&"
            " e.getBoundingClientRect().height < 44).map(e => e.outerHTML.slice(0, 80))"
        )
        assert small == [], address
        wide = page.evaluate(
            "[...document.querySelectorAll('.card, .code, .message, .tile, button, h1')].filter(e => e.offsetParent &&"
            " e.getBoundingClientRect().right > 360).map(e => e.outerHTML.slice(0, 80))"
        )
        assert wide == [], address
    page.goto(f"/#/c/{name}")
    page.get_by_label("Back to the list").click()
    page.get_by_role("link", name="A long word").first.wait_for()


def statements(site: Site) -> Counter[str]:
    """How often each statement that a caller causes was sent so far."""
    text = httpx.get(f"{site.url}/metrics", headers={"authorization": f"Bearer {ALICE}"}).text
    found = re.findall(r'^exai_db_statements_total\{.*?statement="(\w+)".*?\} ([0-9.e+]+)$', text, re.MULTILINE)
    return Counter({name: int(float(number)) for name, number in found if name not in BACKGROUND})


def test_each_view_costs_one_or_two_statements(site: Site, open_page: OpenPage) -> None:
    """However many conversations there are, since each is a page of a list or of messages; and the open page none."""
    name = site.store("What does it cost?", "Little.", title="Costs")
    page = open_page("/#/connect")

    def cost(address: str, wanted: str) -> dict[str, int]:
        before = statements(site)
        page.goto(address)
        page.locator(wanted).first.wait_for()
        return dict(statements(site) - before)

    assert cost("/#/", ".row") == {"list_conversations": 1}
    read = cost(f"/#/c/{name}", "#m2")
    assert read.pop("usage") == 1
    assert set(read) <= {"read_page", "read_pages"}
    assert cost("/#/?q=costs", ".snippet") == {"search_messages": 1}
    assert cost("/#/overview", ".u-over") == {"usage": 1, "metrics_history": 1}
    page.locator("div.health").wait_for()
    assert cost("/#/settings", ".page p") == {}


def test_the_cost_counts_answers_of_models_without_a_known_price(site: Site, open_page: OpenPage) -> None:
    """Else $0 would say that they cost nothing."""
    endpoints = json.dumps({"local": {"base_url": site.provider.base_url, "models": ["unknown"]}})
    with start_daemon({**site.settings, "EXAI_PROVIDERS__ENDPOINTS": endpoints}) as daemon:
        Site(daemon, site.provider).ask("chat", prompt="Hi", model="local/unknown")
        page = open_page(f"http://127.0.0.1:{daemon.port}/#/overview")
        seen(page, ", 1 without a known price")
        page.close()


def test_the_overview_shows_what_happens_and_its_numbers_as_a_table(site: Site, open_page: OpenPage) -> None:
    page = open_page("/#/overview")
    site.store("Count me.")
    # With findings on servers without TLS or a limit of memory, such as containers.
    seen(page, "Ready")
    tools = page.get_by_role("table").filter(has_text="conversation_append")
    tools.wait_for()
    assert page.get_by_label("Now").get_by_text("since the start").count() == 2
    page.get_by_role("button", name="hour").click()
    page.get_by_text("Calls as a table").click()


def test_a_running_call_is_listed_and_cancelled(site: Site, open_page: OpenPage) -> None:
    """Whichever client made it, here another one."""
    site.provider.script({"reply": "hang_after_first_token"})
    with site.begin("chat", prompt="Never answered"):
        page = open_page("/#/overview")
        page.get_by_role("link", name="Never answered").click()
        page.get_by_text("Never answered").first.wait_for()
        assert "/#/c/" in page.url
        page.go_back()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("The call is cancelled.").wait_for()
        (newest, *_) = site.call("usage", by="turn")["rows"]
        assert (newest["failed"], newest["pending"], newest["title"]) == (1, 0, "Never answered")


def test_settings_are_not_shown_to_one_of_several_owners(site: Site, open_page: OpenPage) -> None:
    """They are the operator's, and name the other owners."""
    page = open_page("/#/settings")
    seen(page, "serves several owners")
    assert page.get_by_text("EXAI_").count() == 0


def test_everything_is_done_with_the_keyboard(site: Site, open_page: OpenPage) -> None:
    """From the search to a renamed, deleted and restored conversation, without a mouse."""
    site.store("Keys?", "Keys.", title="Keyboard")
    page = open_page()
    page.locator(".row").first.wait_for()
    page.keyboard.press("/")
    page.keyboard.type("keyboard")
    page.locator(".snippet").first.wait_for()
    page.get_by_label("Search results, best first").get_by_role("link", name="Keyboard").first.focus()
    page.keyboard.press("Enter")
    menu = page.locator(".talk-head .menu summary")
    menu.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_label("Title").fill("Renamed by keys")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Renamed by keys").wait_for()
    menu.focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Delete").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Undo").focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Renamed by keys").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_has_a_fault_that_axe_finds(site: Site, open_page: OpenPage, scheme: str) -> None:
    """Names, roles, contrast and order, in both colour schemes."""
    from axe_playwright_python.sync_playwright import Axe

    answer = (
        "# Title\n\nText, `code`, [a link](https://example.org).\n\n```python\nx = 1  # one\n```\n\n|a|b|\n|-|-|\n|1|2|"
    )
    name = site.store("A question", answer, title="Accessible")
    site.call("conversation_update", continuation_id=name, tags=["tag"])
    page = open_page("/", color_scheme=scheme, reduced_motion="reduce")
    ready = {
        f"/#/c/{name}": "#m2",
        "/#/overview": ".u-over",
        "/#/connect": ".snippets",
        "/#/settings": "h1",
        "/#/": ".row",
    }
    for address, wanted in ready.items():
        page.goto(address)
        page.locator(wanted).first.wait_for()
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Token").wait_for()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_a_chart_is_drawn_in_the_colours_of_the_scheme(site: Site, open_page: OpenPage) -> None:
    """Nothing else sees what a canvas holds: a line in the accent colour, and axes that are not black on dark."""
    pixels = (
        "() => { const c = document.querySelector('.uplot canvas'); const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; const seen = new Set(); for (let i = 0; i < d.length; i += 4)"
        " if (d[i + 3] > 250) seen.add([d[i], d[i + 1], d[i + 2]].join()); return [...seen]; }"
    )
    for scheme, accent, muted in (("light", "15,107,92", "89,99,95"), ("dark", "98,203,180", "158,170,165")):
        page = open_page("/#/overview", color_scheme=scheme)
        page.locator(".u-over").wait_for()
        found = page.evaluate(pixels)
        assert {accent, muted} <= set(found), (scheme, found[:20])


def test_conversations_are_exported_deleted_and_imported_again(site: Site, open_page: OpenPage, tmp_path: Path) -> None:
    """One as Markdown, all as JSON Lines; an import of all stores what is missing, and only that."""
    name = site.store("Take me along.", "Gladly — with “quotes” and `code`.", title="Luggage", token=BOB)
    other = site.store("Me too.", title="Hand luggage", token=BOB)
    page = open_page(f"/#/c/{name}", token=BOB)
    page.locator("#m2").wait_for()
    page.locator(".talk-head .menu summary").click()
    with page.expect_download() as one:
        page.get_by_role("button", name="Export as Markdown").click()
    text = Path(one.value.path()).read_text(encoding="utf-8")
    assert (one.value.suggested_filename, "“quotes”" in text) == (f"{name}.md", True)
    page.locator(".list .menu summary").click()
    with page.expect_download() as every:
        page.get_by_role("button", name="Export all").click()
    saved = tmp_path / "all.jsonl"
    every.value.save_as(saved)
    assert {name, other} <= set(re.findall(r'"continuation_id":"([^"]+)"', saved.read_text(encoding="utf-8")))
    site.call("conversation_delete", BOB, continuation_id=name)
    page.locator(".list .menu summary").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Import…").click()
    chooser.value.set_files(saved)
    page.get_by_text(re.compile(r"conversations imported, 0 messages new")).wait_for()
    messages = site.call("conversation_get", BOB, continuation_id=name)["messages"]
    assert [each["content"] for each in messages] == ["Take me along.", "Gladly — with “quotes” and `code`."]


def test_an_export_of_another_program_is_imported_with_a_report(
    site: Site, open_page: OpenPage, tmp_path: Path
) -> None:
    """What could not be imported is listed; the conversation is there."""
    saved = write_json(tmp_path / "conversations.json", [chatgpt("from-chatgpt", chain(["Imported.", "Yes."])), 7])
    page = open_page("/#/", token=BOB)
    page.locator(".list .menu summary").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Import…").click()
    chooser.value.set_files(saved)
    report = page.get_by_role("dialog")
    report.get_by_text("1 conversation imported, 2 messages new.").wait_for()
    report.get_by_text("is not a conversation").wait_for()
    page.keyboard.press("Escape")
    messages = site.call("conversation_get", BOB, continuation_id="from-chatgpt")["messages"]
    assert [each["content"] for each in messages] == ["Imported.", "Yes."]


def test_tags_filters_and_forks(site: Site, open_page: OpenPage) -> None:
    """A filter is a part of the address, and a fork keeps the messages up to the one chosen."""
    from playwright.sync_api import expect

    name = site.store("One", "Two", "Three", "Four", title="Tagged and forked")
    page = open_page(f"/#/c/{name}")
    page.locator("#m4").wait_for()
    page.locator(".talk-head .menu summary").click()
    page.get_by_role("button", name="Tags…").click()
    page.get_by_label("Tags, separated by commas").fill("rare tag, other, rare tag")
    page.get_by_role("button", name="Save").click()
    page.locator(".talk-head .tag", has_text="rare tag").click()
    page.get_by_role("link", name="Tagged and forked").wait_for()
    expect(page.locator(".row")).to_have_count(1)
    page.get_by_label("Tool").select_option("debug")
    seen(page, "No conversation fits.")
    page.goto(f"/#/c/{name}")
    page.locator("#m2").hover()
    page.locator("#m2").get_by_role("button", name="Fork").click()
    seen(page, "This is the fork")
    expect(page.locator("article.message")).to_have_count(2)
    assert name not in page.url


def test_steps_of_a_workflow_are_shown_as_findings_with_their_places(site: Site, open_page: OpenPage) -> None:
    answer = "Two things.\n\n```findings\nhigh: it is lost (a.py:42)\nlow: a word\n```\n\nVERDICT: fix first"
    site.provider.script({"reply": "kimi_answer", "content": [answer], "reasoning": []})
    name = site.call("debug", prompt="Why is it lost?", findings=["it hangs (b.py)"])["continuation_id"]
    page = open_page(f"/#/c/{name}")
    page.locator(".steps .chip.high").wait_for()
    assert page.locator(".steps .place").all_inner_texts() == ["b.py", "a.py:42"]
    page.locator(".chip", has_text="debug").first.wait_for()
