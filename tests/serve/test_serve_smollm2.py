"""SmolLM2's tokenizer behind the server: a letter may take four tokens; chats over several windows, in pieces."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from browsing import browser_page, expect, say, told
from reading_pages import needs_smollm2
from server import Served, process, served
from tiny import tiny
from torch import nn

from reverie.hf.blocks import inserted_parameters
from reverie.hf.convert import convert
from reverie.hf.load import load
from reverie.hf.models.smollm2 import load_smollm2_tokenizer
from reverie.serve.follower import texts_of
from reverie.sleep import SleepConfig
from reverie.talk.sleeper import Sleeper, load_model

pytestmark = [pytest.mark.hf, pytest.mark.slow, needs_smollm2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

WINDOW = 128
SENTENCE = "Zażółć gęślą jaźń {}: 日本語の文章も 한국어도 👩‍👩‍👧 und 🙂, naïve façades → ∑ x² ≠ ∞ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢.\n"
SCRIPT = "".join(SENTENCE.format(i) for i in range(5)) + "That was all."
CUT = "\ufffd"
NOTES = Path(__file__).parents[2] / "benchmarks" / "by_hand" / "diary" / "text.txt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, whose inserted layers do something."""
    out, tokenizer = tmp_path_factory.mktemp("models"), load_smollm2_tokenizer()
    ids = {"pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 8192}
    base = tiny("llama", dtype=torch.float32, vocab_size=len(tokenizer), **ids)
    base.save_pretrained(out / "base")
    tokenizer.save_pretrained(out / "base")
    convert(str(out / "base"), out / "new", SleepConfig(window_size=WINDOW, num_sleep_passes=2), kind="jet", layers=2)
    model = load(out / "new")
    torch.manual_seed(3)
    for name, parameter in inserted_parameters(model).items():
        if name.endswith("out_proj.weight"):
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(out / "words")
    tokenizer.save_pretrained(out / "words")
    return out / "words"


@pytest.fixture(scope="module")
def sleeper(folder: Path) -> Sleeper:
    return load_model(folder)


@pytest.fixture(scope="module")
def server(sleeper: Sleeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(sleeper, tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def script(sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of every answer, whatever the model would say."""
    ids = [*sleeper.language.answer(SCRIPT), 2]
    monkeypatch.setattr("reverie.serve.writer.choose", lambda logits, said, *a, **options: ids[len(said)])
    return ids


def chat(server: Served, messages: Any, **options: Any) -> tuple[list[str], Any, str]:
    """The pieces of a streamed answer, its usage, and why it ended."""
    stream = server.client().chat.completions.create(
        model="words", messages=messages, stream=True, stream_options={"include_usage": True}, **options
    )
    parts = list(stream)
    reasons = [choice.finish_reason for part in parts for choice in part.choices if choice.finish_reason]
    return [choice.delta.content or "" for part in parts for choice in part.choices], parts[-1].usage, reasons[0]


def test_every_letter_arrives_whole(server: Served, sleeper: Sleeper, script: list[int]) -> None:
    assert len(script) > 3 * WINDOW
    assert sum(CUT in sleeper.decode([id]) for id in script) > 100  # of which a letter is no token
    messages: list[Any] = [{"role": "user", "content": "Say something 🙂"}]
    pieces, usage, reason = chat(server, messages, max_tokens=1000)
    assert ("".join(pieces), reason) == (SCRIPT, "stop")
    assert CUT not in "".join(pieces)
    assert sum(map(bool, pieces)) > 100  # as it is written, not at the end
    asked = sleeper.question("Say something 🙂")
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(asked), len(script))
    assert usage.total_tokens == len(asked) + len(script)

    messages += [{"role": "assistant", "content": SCRIPT}, {"role": "user", "content": "ええ"}]
    whole = server.client().chat.completions.create(model="words", messages=messages, max_tokens=1000)
    assert whole.choices[0].message.content == SCRIPT
    assert whole.usage is not None
    assert whole.usage.prompt_tokens_details is not None
    assert (
        whole.usage.prompt_tokens_details.cached_tokens == len(asked) + len(script) - 1
    )  # the end is of the next turn
    assert whole.usage.prompt_tokens == len(asked) + len(script) - 1 + len(sleeper.question("ええ", begun=True))


def test_a_cut_is_between_letters(server: Served, sleeper: Sleeper, script: list[int]) -> None:
    messages, before = [{"role": "user", "content": "Say something"}], ""
    for most in range(1, 60, 2):
        pieces, usage, reason = chat(server, messages, max_tokens=most)
        text = "".join(pieces)
        assert SCRIPT.startswith(text)
        assert text.startswith(before)
        assert text == sleeper.decode(script[:most]).rstrip(CUT)
        assert (usage.completion_tokens, reason) == (most, "length")
        before = text
    assert len(before) > 20


def test_what_a_random_model_writes_is_the_same_in_pieces(server: Served) -> None:
    """Which is no UTF-8 in places; several at once, since a tokenizer is for one thread at a time."""
    messages = [{"role": "user", "content": "日本 🙂"}]
    drawn: dict[str, Any] = {"max_tokens": 2 * WINDOW, "temperature": 1.5, "seed": 7}
    whole = server.client().chat.completions.create(model="words", messages=messages, **drawn)  # pyright: ignore
    text = whole.choices[0].message.content
    with ThreadPoolExecutor(4) as threads:
        for pieces, _, _ in threads.map(lambda _: chat(server, messages, **drawn), range(4)):
            assert "".join(pieces) == text


def test_the_session_has_the_words(server: Served, sleeper: Sleeper, script: list[int]) -> None:
    for first in range(0, 200):
        told = texts_of(sleeper.decode, script, first)
        assert len(told) == len(script) - first
        assert told == texts_of(sleeper.decode, script)[first:]
    assert "".join(texts_of(sleeper.decode, script)) == SCRIPT
    stream = server.client().responses.create(
        model="words",
        input="Say",
        max_output_tokens=1000,
        stream=True,
        include=["reverie.session"],  # pyright: ignore
    )
    awake, heard, tokens = list[str](), "", 0
    for event in stream:
        if event.type == "reverie.session":  # pyright: ignore
            told = event.session  # pyright: ignore
            heard += "".join(told["awake"])
            awake, tokens = [*awake[: told["first"]], *told["awake"]], told["tokens"]
            assert len(awake) == told["tokens"] - told["slept_over"]
        elif event.type == "response.completed":
            assert event.response.output_text == SCRIPT
    assert tokens == len(sleeper.question("Say")) + len(script) - 1
    assert SENTENCE.format(0)[:9] in heard


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, such as Debian's chromium")
def test_the_page_shows_words(
    server: Served, sleeper: Sleeper, script: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleeper.language, "max_answer_tokens", len(script))
    with browser_page(server.url, "words", CHROMIUM) as page:
        say(page, "Sprich 🙂")
        page.screenshot(path=tmp_path / "words.png")
        assert page.locator(".turn p").all_inner_texts()[-1].split() == SCRIPT.split()
        shown = page.inner_text("#awake").replace("\u200b", "")
        slept = page.inner_text("#windows")
    assert CUT not in re.sub(f"(?m)^[·{CUT}]+", "", f"{shown}\n{slept}")  # the rest of a letter at a window's edge
    assert "That was all." in shown
    assert "façades → ∑ x² ≠ ∞" in slept


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, such as Debian's chromium")
def test_the_adapter_that_ships_answers_on_the_page(tmp_path: Path) -> None:
    """A page of notes is read from a file, and asked about."""
    with (
        served(load_model("smollm2-notes"), tmp_path / "store") as running,
        browser_page(running.url, "smollm2-notes", CHROMIUM) as page,
    ):
        page.click("#open")
        page.set_input_files("#read-file", NOTES)
        page.fill("#read-name", "diary")
        page.click("#read button.main")
        page.locator("#reading-open").click(timeout=120_000)
        expect(page.locator("#log .hint")).to_contain_text("diary")
        say(page, "Who owns the red umbrella?")
        page.screenshot(path=tmp_path / "notes.png")
        said = told(page)[-1]
    assert said.strip() == "Malik"


def test_in_int8(folder: Path, tmp_path: Path) -> None:
    """A chain goes on after a restart as before it; a server in other numbers has another memory."""
    drawn: dict[str, Any] = {"model": "words", "max_output_tokens": 40, "temperature": 0.8, "extra_body": {"seed": 1}}
    with process(folder, tmp_path / "store", "--int8") as (running, _):
        client = running.client()
        newest = client.responses.create(input="Say something", **drawn)
        for _ in range(3):
            newest = client.responses.create(input="And then 🙂", previous_response_id=newest.id, **drawn)
        after = client.responses.create(input="And then", previous_response_id=newest.id, **drawn)
        heard = httpx.get(f"{running.url}/v1/responses/{newest.id}/session").json()
        assert heard["slept_over"] >= WINDOW
    with process(folder, tmp_path / "store", "--int8") as (running, _):
        again = running.client().responses.create(input="And then", previous_response_id=newest.id, **drawn)
        assert again.output_text == after.output_text
    with process(folder, tmp_path / "store") as (running, _), pytest.raises(Exception, match="int8"):
        running.client().responses.create(input="And then", previous_response_id=newest.id, **drawn)
