"""`reverie generate`: a text of any length is read, then continued, in the memory of one window."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from reverie.errors import UserError
from reverie.hf.add import add_sleep
from reverie.hf.bases import load_tokenizer
from reverie.hf.cache import SleepCache
from reverie.hf.causal_lm import SleepingCausalLM
from reverie.hf.group import Group
from reverie.hf.int8 import quantize_awake
from reverie.hf.load import load
from reverie.memory.bookmark import Bookmark
from reverie.model import numbers
from reverie.pretrained.shipped import place_of
from reverie.sleep import Context, SleepConfig, consolidate
from reverie.sleep.compiled import take_compiled
from reverie.sleep.side_by_side import group_size

ReadReport = Callable[[int, int, int], None]
"""Called with the windows read, the windows to read, and the tokens read."""


@dataclass(frozen=True)
class Generated:
    """The text that `generate` wrote, with counts, speed and memory."""

    text: str
    tokens_read: int
    tokens_written: int
    windows_slept_over: int
    read_tokens_per_second: float
    write_tokens_per_second: float
    peak_state_bytes: int  # most that the state held between two tokens or windows: fast weights, cache, h of a window

    def sentence(self) -> str:
        return (
            f"read {self.tokens_read:,} tokens at {self.read_tokens_per_second:,.0f} tok/s, "
            f"wrote {self.tokens_written:,} at {self.write_tokens_per_second:,.1f} tok/s; "
            f"slept over {self.windows_slept_over:,} windows; state at most {self.peak_state_bytes / 2**20:,.1f} MiB"
        )


def load_sleeper(
    folder: Path,
    device: torch.device,
    *,
    num_sleep_passes: int | None = None,
    window_size: int | None = None,
    int8: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model that `reverie convert` or `save_pretrained` left, and its tokenizer.

    Args:
        num_sleep_passes, window_size: in the place of what was saved.
        int8: write tokens by products in int8 (`quantize_awake`).
    """
    if not Path(place_of(folder)).is_dir():
        raise UserError(f"there is no folder {folder}; reverie convert makes one")
    tokenizer = load_tokenizer(folder)
    model = load(folder)
    nn.Module.to(model, device)
    given = {"num_sleep_passes": num_sleep_passes, "window_size": window_size}
    changes = {key: value for key, value in given.items() if value is not None}
    if changes:
        add_sleep(model, SleepConfig.model_validate(_sleep_config(model).model_dump() | changes))
    if int8:
        quantize_awake(model)
    take_compiled(cast(SleepingCausalLM, model).sleeping, _sleep_config(model))
    return model, tokenizer


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_tokens: int = 200,
    temperature: float = 0.0,
    seed: int = 0,
    write: Callable[[str], None] = lambda text: None,
    report: ReadReport = lambda windows, total, tokens: None,
    keep_in: Path | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Generated:
    """Continue a prompt by the most likely token, or at a temperature above 0 by sampling.

    Args:
        write: called with the new text piece by piece, as soon as words are whole.
        report: called before the first and after every window of the prompt, which is read a window at a time.
        keep_in: a folder for what was read of the prompt, until the text is written: the same call goes on from there.
        tell: gets what a `Bookmark` in that folder says.
    """
    tokens = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
    if tokens.shape[1] == 0:
        raise UserError("the prompt holds no token that the model knows")
    cache, window_size = SleepCache(), _sleep_config(model).window_size
    streamer = _Streamer(tokenizer, cache, window_size, write)
    with Bookmark(model, tokens, _sleep_config(model), keep_in, tell) as bookmark:
        begun = time.perf_counter()
        read_now = _read(model, tokens[:, :-1], cache, report, bookmark)
        streamer.measure()
        between = time.perf_counter()
        torch.manual_seed(seed)
        drawing: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        # generate() takes tokens shorter than the mask for those that the cache has not seen.
        cast(Any, model).generate(
            input_ids=tokens[:, -1:],
            attention_mask=torch.ones_like(tokens),
            past_key_values=cache,
            max_new_tokens=max_tokens,
            streamer=streamer,
            logits_processor=LogitsProcessorList([_Numbers()]),
            **(drawing if temperature > 0 else {"do_sample": False}),
        )
        ended = time.perf_counter()
    streamer.measure()
    return Generated(
        text="".join(streamer.pieces),
        tokens_read=tokens.shape[1],
        tokens_written=streamer.tokens,
        windows_slept_over=max(cache.seen - 1, 0) // window_size,  # each when the next token comes
        read_tokens_per_second=read_now / (between - begun),
        write_tokens_per_second=streamer.tokens / (ended - between),
        peak_state_bytes=streamer.peak,
    )


def _read(model: PreTrainedModel, tokens: Tensor, cache: SleepCache, report: ReadReport, bookmark: Bookmark) -> int:
    """Move an empty cache on over tokens [1, T] that others follow: whole windows are slept over, the rest is awake.

    Of a window that is slept over nobody reads h, so what sleep does not need of it is never computed. Returns how many
    tokens were read, without those before the bookmark.
    """
    sleeping, config = cast(SleepingCausalLM, model).sleeping, _sleep_config(model)
    L, T = config.window_size, tokens.shape[1]
    total, whole = -(-T // L), T // L * L
    group = L * group_size(sleeping, Context.empty(sleeping), config, batch_size=1)
    context, first = (whole and bookmark.find()) or (Context.empty(sleeping), 0)
    report(first // L, total, first)

    def after_window(windows: int, context: Context) -> None:
        read = first + windows * L
        if (
            windows % (group // L) == 0
        ):  # not among windows that are read side by side: what goes on there would be another sum
            bookmark.reached(read, context)
        report(read // L, total, read)

    if first < whole:
        context = consolidate(sleeping, tokens[:, first:whole], context, config, on_window=after_window)
    if whole:
        cache.move_on(None, tokens[:, :whole], [Group(torch.arange(1, device=tokens.device), whole, context)])
    if whole < T:
        model(input_ids=tokens[:, whole:], past_key_values=cache, logits_to_keep=1)
        report(total, total, T)
    return T - first


def _sleep_config(model: PreTrainedModel) -> SleepConfig:
    return cast(SleepConfig, model.sleep_config)


class _Numbers(LogitsProcessor):
    """Raises UserError where the model says nothing, of which it would be some token or other."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return numbers(scores)


class _Streamer(TextStreamer):
    """Hands text on, and measures the cache where it is largest: at the end of a window."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, cache: SleepCache, window_size: int, write: Callable[[str], None]
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.cache, self.window_size, self.write = cache, window_size, write
        self.pieces: list[str] = []
        self.tokens = self.peak = 0

    def measure(self) -> None:
        tensors = [x for x in tree_leaves(self.cache.groups) if isinstance(x, Tensor)]
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
        self.peak = max(self.peak, sum(storages.values()))

    def put(self, value: Tensor) -> None:
        self.tokens += 0 if self.next_tokens_are_prompt else value.numel()
        if self.cache.seen % self.window_size == 0:
            self.measure()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.pieces.append(text)
            self.write(text)
