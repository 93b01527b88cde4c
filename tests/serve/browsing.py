"""What tests do with the page in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from server import Served

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
Page = Any
expect = playwright.expect

FACT = "The number of grown heron in Gull Island equals 3."
QUESTION = "How many grown heron does Gull Island have?"
OTHER = "The number of grown curlew in Larch Hollow equals 4."


def ours(url: str, server: Served) -> bool:
    return url.startswith((server.url, f"blob:{server.url}"))


def opened(page: Page, server: Served) -> None:
    page.goto(server.url)
    expect(page.locator("#model")).to_have_text("example")


@contextmanager
def browser_page(url: str, model: str, chromium: str | None) -> Iterator[Page]:
    """The page of a server in a browser of its own."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url)
        expect(page.locator("#model")).to_have_text(model)
        yield page
        browser.close()


def say(page: Page, *texts: str) -> None:
    for text in texts:
        turns = page.locator(".turn").count()
        page.fill("#text", text)
        page.press("#text", "Enter")
        expect(page.locator(".turn")).to_have_count(turns + 1)
        rests(page)


def rests(page: Page) -> None:
    expect(page.locator("#log")).to_have_attribute("aria-busy", "false", timeout=30_000)


def told(page: Page) -> list[str]:
    """What is said in the conversation, from above."""
    return [text for text in page.locator(".turn p").all_inner_texts() if text]


def newest(page: Page) -> str:
    kept = page.evaluate("JSON.parse(localStorage['reverie.talks'])")
    return kept["all"][kept["index"]]["turns"][-1]["id"]


def session(page: Page, server: Served) -> dict[str, Any]:
    return httpx.get(f"{server.url}/v1/responses/{newest(page)}/session").json()
