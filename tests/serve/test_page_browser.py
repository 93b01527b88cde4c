"""A real browser drives the page: what somebody does with it, by mouse and by keyboard, at any width, in both themes.

REVERIE_AXE, the path of axe-core's axe.min.js, has it look for what keeps people out.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsing import FACT, OTHER, QUESTION, Page, expect, newest, opened, ours, playwright, rests, say, session, told
from server import Served, served

from reverie.talk.shipped import load_example_text
from reverie.talk.sleeper import load_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, such as Debian's chromium"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(load_model("example"), tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Served) -> Iterator[Page]:
    """The page in a fresh profile; at the end nothing may have gone wrong in it, or been asked of others."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page, faults = context.new_page(), list[str]()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: faults.append(request.url) if not ours(request.url, server) else None)
    opened(page, server)
    yield page
    context.close()
    refused = "Failed to load resource: the server responded with a status of 4"
    assert not [fault for fault in faults if not fault.startswith(refused)]


def test_the_window_fills_and_sleep_is_seen(page: Page, server: Served) -> None:
    say(page, FACT)
    expect(page.locator("#window-count")).to_have_text("7 of 32 tokens")
    expect(page.locator("#sleep-count")).to_have_text("not yet")
    assert "heron" in page.inner_text("#awake")
    say(page, *[OTHER] * 4)
    expect(page.locator("#windows li")).to_have_count(1)
    facts = session(page, server)
    expect(page.locator("#window-count")).to_have_text(f"{len(facts['awake'])} of 32 tokens")
    expect(page.locator("#evicted")).to_have_text(f"{facts['evicted']} tokens")
    expect(page.locator("#sleep-count")).to_have_text(f"{facts['passes']} passes")
    assert "grown heron" in page.inner_text("#windows li")  # the words that are gone
    change = facts["windows"][0]["change"]["3"]["1"]
    assert f"{change:.2f} in block 1" in str(page.get_attribute("#heat", "aria-label"))
    gone = page.locator(".turn").evaluate_all("all => all.map(each => each.classList.contains('evicted'))")
    assert gone == [True, True, True, True, False]  # 7 tokens, and 8 of each turn after it
    assert "kB" in page.inner_text("#cache-size")
    say(page, QUESTION)
    assert told(page)[-2:] == [QUESTION, "3"]
    assert page.inner_text("#status").strip()


def test_nothing_is_read_twice(page: Page, server: Served) -> None:
    bodies = list[dict[str, Any]]()
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
    say(page, FACT, OTHER, QUESTION)
    assert [body["input"] for body in bodies] == [FACT, OTHER, QUESTION]
    ids = page.evaluate("JSON.parse(localStorage['reverie.talks']).all[0].turns.map(turn => turn.id)")
    assert [body.get("previous_response_id") for body in bodies] == [None, *ids[:2]]


def test_reload_and_go_on(page: Page, server: Served) -> None:
    say(page, FACT)
    page.reload()
    expect(page.locator(".turn")).to_have_count(1)
    expect(page.locator("#window-count")).to_have_text("7 of 32 tokens")
    say(page, QUESTION)
    assert told(page) == [FACT, QUESTION, "3"]


def test_branch_and_undo(page: Page, server: Served) -> None:
    say(page, FACT)
    first = newest(page)
    page.click("#branch")
    expect(page.locator("#talks option")).to_have_count(2)
    say(page, OTHER)
    second = newest(page)
    page.click("#undo")
    expect(page.locator(".turn")).to_have_count(1)
    assert page.input_value("#text") == OTHER
    assert newest(page) == first
    page.click("#undo")  # of both conversations: the other one goes on from it
    expect(page.locator(".turn")).to_have_count(0)
    page.select_option("#talks", "0")
    expect(page.locator(".turn")).to_have_count(1)
    say(page, QUESTION)
    assert told(page) == [FACT, QUESTION, "3"]
    assert httpx.get(f"{server.url}/v1/responses/{first}").status_code == 200
    assert httpx.get(f"{server.url}/v1/responses/{second}").status_code == 404


def test_forgetting_deletes(page: Page, server: Served) -> None:
    say(page, FACT)
    id = newest(page)
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("#forget")
    assert newest(page) == id
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#forget")
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("#brief")).to_have_text("Nothing heard yet")
    page.wait_for_timeout(300)
    assert httpx.get(f"{server.url}/v1/responses/{id}").status_code == 404
    assert FACT not in page.evaluate("localStorage['reverie.talks']")


def test_save_open_download_and_upload(page: Page, server: Served, tmp_path: Path) -> None:
    say(page, FACT)
    page.click("#save")
    page.keyboard.type("birds")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Saved as birds.")
    page.click("#open")
    expect(page.locator("#known li")).to_have_count(1)
    with page.expect_download() as got:
        page.click("text=Download")
    got.value.save_as(tmp_path / "birds.safetensors")
    page.set_input_files("#read-file", tmp_path / "birds.safetensors")
    page.fill("#read-name", "again")
    page.click("#read button.main")
    page.click("#reading-open")
    expect(page.locator("#log .hint")).to_contain_text("again")
    say(page, QUESTION)
    assert told(page) == [QUESTION, "3"]
    page.click("#open")
    page.once("dialog", lambda dialog: dialog.accept())
    page.click('[aria-label="Delete again"]')
    expect(page.locator("#known li")).to_have_count(1)
    page.once("dialog", lambda dialog: dialog.accept())
    page.click('[aria-label="Delete birds"]')
    expect(page.locator("#known")).to_have_text("None yet.")


def test_a_text_is_read_and_watched(page: Page, server: Served, tmp_path: Path) -> None:
    shipped = load_example_text()
    (tmp_path / "a text.txt").write_text(f"{FACT} " * 400 + shipped.text)
    page.click("#open")
    page.set_input_files("#read-file", tmp_path / "a text.txt")
    assert page.input_value("#read-name") == "a-text"
    page.click("#read button.main")
    expect(page.locator("#reading-name")).to_contain_text("a-text")
    expect(page.locator("#reading-open")).to_be_visible(timeout=60_000)
    assert page.locator("#windows li").count() == 4
    page.click("#reading-open")
    expect(page.locator("#reading")).to_be_hidden()
    question, answer = shipped.questions[0]
    page.fill("#text", question)
    page.click("#compare")
    expect(page.locator(".compared .answer")).to_have_count(2)
    rests(page)
    assert page.locator(".compared .answer").first.inner_text() == answer
    assert page.locator(".turn").count() == 0  # and nothing was remembered of it
    page.reload()
    expect(page.locator("#window-count")).to_have_text("0 of 32 tokens")
    httpx.delete(f"{server.url}/v1/memories/a-text").raise_for_status()


def test_refusals_are_told_and_lose_nothing(page: Page) -> None:
    say(page, FACT)
    page.fill("#text", "Do you know <b>pelicans</b>?")
    page.press("#text", "Enter")
    expect(page.locator("#problem")).to_contain_text("knows")
    assert page.input_value("#text") == "Do you know <b>pelicans</b>?"
    assert page.locator(".turn").count() == 1
    assert page.locator("b").count() == 0


def test_foreign_text_is_text(page: Page) -> None:
    """Such as what another one has written to the same storage."""
    evil = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    turn = {"id": f"resp_{'0' * 32}", "said": evil, "answer": evil, "tokens": 3}
    page.evaluate(
        "kept => localStorage.setItem('reverie.talks', JSON.stringify(kept))",
        {"index": 0, "all": [{"model": "example", "turns": [turn], "draft": evil}]},
    )
    page.reload()
    expect(page.locator("#problem")).to_contain_text("no response")
    assert told(page) == [evil, evil]
    assert page.locator("main img, main script").count() == 0
    assert "owned" not in page.title()


def test_keyboard_alone(page: Page, server: Served) -> None:
    reached = list[str]()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        if reached[-1] == "text":
            break
    page.keyboard.type(FACT)
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Backspace")
    page.keyboard.press("Enter")
    expect(page.locator("#window-count")).to_have_text("7 of 32 tokens")
    assert page.evaluate("document.activeElement.id") == "text"
    while page.evaluate("document.activeElement.id") != "branch":
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    expect(page.locator("#talks option")).to_have_count(2)
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.type(QUESTION)
    while page.evaluate("document.activeElement.id") != "compare":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".compared .answer")).to_have_text(["3", re.compile(r".")])
    while page.evaluate("document.activeElement.id") != "open":
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#memories")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#memories")).to_be_hidden()
    assert page.evaluate("document.activeElement.id") == "open"


def test_an_answer_is_stopped(page: Page) -> None:
    """It is as if it had not been asked."""
    say(page, FACT)
    page.route("**/v1/responses", lambda route: None)  # hangs
    page.fill("#text", QUESTION)
    page.press("#text", "Enter")
    expect(page.locator("#send")).to_have_text("Stop")
    page.keyboard.press("Escape")
    expect(page.locator("#send")).to_have_text("Send")
    assert page.input_value("#text") == QUESTION
    page.unroute("**/v1/responses")
    say(page, QUESTION)
    assert told(page) == [FACT, QUESTION, "3"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_phone_width_and_both_themes(page: Page, theme: str) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=theme)
    say(page, FACT, QUESTION)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert not page.locator("#facts").is_visible()
    page.click("#life summary")
    expect(page.locator("#facts")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    box = page.locator("#send").bounding_box()
    assert box["x"] + box["width"] <= 360
    assert box["y"] + box["height"] <= 740
    page.click("#open")
    box = page.locator("#memories").bounding_box()
    assert 0 <= box["x"] <= box["x"] + box["width"] <= 360
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 200) == (theme == "dark")


def test_a_key_is_asked_for_and_kept_for_the_tab(browser: Any, tmp_path: Path) -> None:
    with served(load_model("example"), tmp_path, "secret") as running:
        context = browser.new_context()
        page = context.new_page()
        page.goto(running.url)
        for key, then in (("wrong", "That key is wrong"), ("secret", None)):
            expect(page.locator("#ask")).to_be_visible()
            page.fill("#ask-value", key)
            page.keyboard.press("Enter")
            if then:
                expect(page.locator("#ask-name")).to_have_text(then)
        expect(page.locator("#model")).to_have_text("example")
        say(page, FACT, QUESTION)
        assert told(page)[-1] == "3"
        page.reload()
        expect(page.locator(".turn")).to_have_count(2)
        assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
        context.close()


@pytest.mark.skipif("REVERIE_AXE" not in os.environ, reason="needs axe-core: REVERIE_AXE=…/axe.min.js")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_no_fault(browser: Any, server: Served, theme: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme, bypass_csp=True)
    page = context.new_page()
    opened(page, server)
    page.add_script_tag(path=os.environ["REVERIE_AXE"])
    faults = list[Any]()

    def look(where: str) -> None:
        found = page.evaluate("axe.run()")["violations"]
        faults.extend((where, fault["id"], fault["impact"], fault["nodes"][0]["html"]) for fault in found)

    look("empty")
    say(page, FACT, *[OTHER] * 4, QUESTION)
    page.fill("#text", QUESTION)
    page.click("#compare")
    expect(page.locator(".compared .answer")).to_have_count(2)
    rests(page)
    page.locator("#life").evaluate("life => life.open = true")
    look("talk")
    page.click("#open")
    look("memories")
    context.close()
    assert not faults
