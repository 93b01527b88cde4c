"""`generate`: a long text in pieces gives what it gives at once, in the memory of one window."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folder import tiny_folder
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reverie.cli.hf import read_prompt
from reverie.errors import UserError
from reverie.hf import add_sleep
from reverie.hf.blocks import inserted_parameters
from reverie.hf.convert import convert
from reverie.hf.generate import Generated, generate, load_sleeper
from reverie.hf.group import LEAST
from reverie.memory import bookmark
from reverie.sleep import SleepConfig, algorithm, side_by_side

pytestmark = pytest.mark.hf

L = 8
CPU = torch.device("cpu")
BOOK = "It was a dark and stormy night. Rain fell in torrents, except at times.\n"
Sleeper = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model whose inserted layers do something."""
    out = tmp_path_factory.mktemp("models")
    convert(str(tiny_folder(out / "llama")), out / "new", SleepConfig(window_size=L), kind="jet", layers=2)
    model, tokenizer = load_sleeper(out / "new", CPU)
    torch.manual_seed(3)
    for name, parameter in inserted_parameters(model).items():
        if name.endswith("out_proj.weight"):
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(out / "sleeper")
    tokenizer.save_pretrained(out / "sleeper")
    return out / "sleeper"


@pytest.fixture(scope="module")
def sleeper(folder: Path) -> Sleeper:
    return load_sleeper(folder, CPU, num_sleep_passes=2)


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 2, L, L + 1, L + 2, 2 * L, 71])
def test_in_pieces_as_at_once(sleeper: Sleeper, length: int) -> None:
    """Around the edges of windows: the last token of a prompt is always read by generate()."""
    model, tokenizer = sleeper
    tokens = tokenizer(BOOK[:length], return_tensors="pt").input_ids
    wanted = model.generate(tokens, max_new_tokens=12, do_sample=False)[0, length:]  # type: ignore[operator]
    pieces: list[str] = []
    done = generate(model, tokenizer, BOOK[:length], max_tokens=12, write=pieces.append)
    assert done.text == "".join(pieces) == tokenizer.decode(wanted, skip_special_tokens=True)
    assert (done.tokens_read, done.tokens_written) == (length, 12)


def test_the_past_beyond_the_window_matters(sleeper: Sleeper) -> None:
    """Else the test above would not notice a cache that is lost."""
    model, tokenizer = sleeper
    texts = {generate(model, tokenizer, word + BOOK[:30], max_tokens=20).text for word in ("", "Once ", "Never ")}
    assert len(texts) == 3


@pytest.mark.parametrize(("read", "written"), [(1, 1), (L, 1), (L, 2), (5, 12), (71, 12)])
def test_windows_slept_over(sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch, read: int, written: int) -> None:
    naps, sleep, at_once = [], algorithm.sleep, side_by_side.side_by_side
    monkeypatch.setattr(algorithm, "sleep", lambda *args, **kwargs: naps.append(1) or sleep(*args, **kwargs))

    def counted(*args: Any) -> Any:
        naps.extend([1] * len(args[1]))
        return at_once(*args)

    monkeypatch.setattr(side_by_side, "side_by_side", counted)
    done = generate(*sleeper, BOOK[:read], max_tokens=written)
    assert done.windows_slept_over == len(naps)


@pytest.mark.slow
def test_state_does_not_grow_with_the_text(sleeper: Sleeper) -> None:
    peaks = {generate(*sleeper, BOOK * n, max_tokens=1).peak_state_bytes for n in (1, 2, 5)}
    assert len(peaks) == 1
    short = generate(*sleeper, BOOK[:2], max_tokens=1).peak_state_bytes
    assert 0 < short < min(peaks)
    written = {generate(*sleeper, BOOK[:2], max_tokens=LEAST + n * L).peak_state_bytes for n in (3, 6)}
    assert len(written) == 1
    assert short < max(written)


def test_progress(sleeper: Sleeper) -> None:
    seen: list[tuple[int, ...]] = []
    generate(*sleeper, BOOK[: 2 * L + 2], max_tokens=1, report=lambda *now: seen.append(now))
    assert seen == [(0, 3, 0), (1, 3, L), (2, 3, 2 * L), (3, 3, 2 * L + 1)]
    seen.clear()
    generate(*sleeper, "A", max_tokens=1, report=lambda *now: seen.append(now))
    assert seen == [(0, 0, 0)]


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
def test_a_prompt_that_was_broken_off_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eviction: str
) -> None:
    """By Ctrl-C in a window, and by SIGKILL, to the same text, bit for bit in what was read."""
    monkeypatch.setattr(side_by_side, "MOST_TOKENS", 3 * L)
    model, tokenizer = load_sleeper(folder, CPU)
    add_sleep(model, SleepConfig(window_size=L, num_sleep_passes=2, eviction=eviction))  # type: ignore[arg-type]
    seen = list[tuple[int, ...]]()
    wanted = generate(model, tokenizer, BOOK, max_tokens=12)

    def go_on(stop_at: int, die: bool = False) -> Generated:
        def report(windows: int, total: int, tokens: int) -> None:
            seen.append((windows, tokens))
            if windows == stop_at:
                os.kill(os.getpid(), signal.SIGKILL) if die else signal.raise_signal(signal.SIGINT)

        return generate(model, tokenizer, BOOK, max_tokens=12, report=report, keep_in=tmp_path)

    with pytest.raises(KeyboardInterrupt) as caught:
        go_on(3)
    [path] = tmp_path.iterdir()
    assert caught.value.__notes__ == [f"the same text goes on after {3 * L} of 72 tokens, kept in {path}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bookmark, "MOST_LOST_S", 0.0)  # a save after every window
        patch.setattr(bookmark, "SAVING_SHARE", 1.0)
        child = multiprocessing.get_context("fork").Process(target=go_on, args=(6, True))
        child.start()
        child.join()
    assert child.exitcode == -signal.SIGKILL
    seen.clear()
    done = go_on(-1)
    assert seen[:2] == [(6, 6 * L), (7, 7 * L)]
    assert (done.text, done.windows_slept_over) == (wanted.text, wanted.windows_slept_over)
    assert list(tmp_path.iterdir()) == []


def test_temperature(sleeper: Sleeper) -> None:
    def drawn(temperature: float, seed: int) -> str:
        return generate(*sleeper, BOOK[-10:], max_tokens=10, temperature=temperature, seed=seed).text

    assert drawn(1.0, 0) == drawn(1.0, 0)
    assert len({drawn(1.0, seed) for seed in range(2)}) == 2
    assert drawn(1e-4, 0) == drawn(0.0, 0) == drawn(0.0, 1)


def test_overrides(folder: Path) -> None:
    assert load_sleeper(folder, CPU)[0].sleep_config == SleepConfig(window_size=L)
    changed = load_sleeper(folder, CPU, num_sleep_passes=3, window_size=5)
    assert changed[0].sleep_config == SleepConfig(window_size=5, num_sleep_passes=3)
    assert generate(*changed, BOOK[:11], max_tokens=1).windows_slept_over == 2


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"there is no folder {tmp_path}/none; reverie convert makes one"):
        load_sleeper(tmp_path / "none", CPU)
    with pytest.raises(UserError, match="llama holds a model of type llama, saved without sleep"):
        load_sleeper(tiny_folder(tmp_path / "llama"), CPU)


def test_prompt(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("Ünd so.")
    assert read_prompt(book, None) == "Ünd so."
    assert read_prompt(None, "Why?") == "Why?"
    assert read_prompt(book, "Why?") == "Ünd so.\nWhy?"
    book.write_text("Und so.\n")
    assert read_prompt(book, "Why?") == "Und so.\nWhy?"
    book.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=f"{book} is no text in UTF-8"):
        read_prompt(book, None)
    with pytest.raises(UserError, match=f"cannot read {tmp_path}/none: No such file"):
        read_prompt(tmp_path / "none", None)
    (tmp_path / "empty").touch()
    for path, prompt in ((None, None), (None, ""), (tmp_path / "empty", None)):
        with pytest.raises(UserError, match="give --prompt-file, --prompt, or both"):
            read_prompt(path, prompt)


def test_sentence() -> None:
    sentence = Generated("text", 12345, 200, 24, 498.4, 21.04, 5 << 19).sentence()
    assert sentence == (
        "read 12,345 tokens at 498 tok/s, wrote 200 at 21.0 tok/s; slept over 24 windows; state at most 2.5 MiB"
    )


def test_a_model_that_has_diverged_writes_nothing(sleeper: Sleeper, tmp_path: Path) -> None:
    """Neither when it is loaded, nor when it diverges afterwards."""
    model, tokenizer = sleeper
    model, nan = copy.deepcopy(model), torch.nan
    with torch.no_grad():
        next(model.parameters())[:, 0] = nan
    with pytest.raises(UserError, match="the model's logits are not finite"):
        generate(model, tokenizer, BOOK, max_tokens=2)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"its weights .* are not finite"):
        load_sleeper(tmp_path, torch.device("cpu"))
