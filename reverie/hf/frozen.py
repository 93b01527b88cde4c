"""The frozen beginning of a model: blocks that neither train nor remember run once over a window, and are cached.

Under hard eviction what such blocks make of a window depends on its tokens alone, whatever the memory holds. So
training an adapter late in a deep model need not run the first blocks more than once over each window and question.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reverie.errors import UserError
from reverie.files import write_atomic
from reverie.hf.causal_lm import PretrainedLM
from reverie.hf.save import weights_digest
from reverie.hf.teacher import Teacher
from reverie.memory.fingerprint import content_hash
from reverie.model import SleepingModel, State, select_rows
from reverie.sleep import SleepConfig
from reverie.tasks.base import Split
from reverie.tasks.reading import ReadingTask, TokenPage

BATCH_TOKENS = 1024  # that run through the frozen blocks at a time
SHARED = 16  # tokens that texts begin with alike, at least, to be read once for all
SHARD = 16  # pages of a file
_SHA256 = "sha256"

_WHERE_IT_IS_FROM = "_name_or_path", "transformers_version", "architectures"  # in a config, and no setting


def frozen_blocks(model: PretrainedLM, sleep: SleepConfig) -> int:
    """The number of blocks at the beginning that have no trainable parameter and no fast weights, and are not looped.

    Raises:
        UserError: under sliding eviction a block's state depends on earlier windows.
    """
    if sleep.eviction != "hard":
        raise UserError('a frozen beginning is cached window by window, which takes eviction "hard"')
    trained = [i for i, block in enumerate(model.layers) if any(p.requires_grad for p in block.parameters())]
    looped = [sleep.looped_blocks[0] if sleep.looped_blocks else 0] if sleep.num_sleep_passes > 1 else []
    return min([*trained, *model.fast_weight_blocks, *looped, model.num_blocks])


class AfterFrozen:
    """The blocks of a model from `first` on, as a `SleepingModel` that reads what the blocks before made of a text.

    What it reads is `states` of the text's tokens, [B, T, D]; where the model reads embedded tokens, followed by those,
    [B, T, 2D].
    """

    def __init__(self, model: SleepingModel, first: int) -> None:
        self.model, self.first = model, first
        self.reads_embedded: bool = getattr(model, "reads_embedded", False)
        self.injects: bool = getattr(model, "injects", False)

    @property
    def num_blocks(self) -> int:
        return self.model.num_blocks - self.first

    @property
    def fast_weight_blocks(self) -> Sequence[int]:
        return [i - self.first for i in self.model.fast_weight_blocks]

    def inject(self, n: int, h: Tensor, embedded: Tensor) -> Tensor:
        return cast(Any, self.model).inject(n, h, embedded)

    def config(self, sleep: SleepConfig) -> SleepConfig:
        """How these blocks sleep where the whole model sleeps by `sleep`."""
        if sleep.looped_blocks is None or self.first == 0:
            return sleep
        a, b = sleep.looped_blocks
        return sleep.model_copy(update={"looped_blocks": (max(a - self.first, 0), b - self.first)})

    def input(self, states: Float[Tensor, "B T D"], tokens: Int[Tensor, "B T"]) -> Tensor:
        """What this reads of tokens whose states these are."""
        embedded = self.model.embed(tokens) if self.reads_embedded else None
        states = states.to(self.model.embed(tokens[:, :1]).dtype if embedded is None else embedded.dtype)
        return states if embedded is None else torch.cat([states, embedded], dim=-1)

    def embed(self, tokens: Tensor) -> Tensor:
        return tokens.chunk(2, dim=-1)[0] if self.reads_embedded else tokens

    def embed_blocks(
        self, tokens: Tensor, state: State, loop: tuple[int, int], stop: int, *, span: int
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor, State]:
        entered, (a, b) = self.embed(tokens), loop
        embedded = tokens.chunk(2, dim=-1)[1] if self.reads_embedded else None
        more = {} if embedded is None else {"embedded": embedded}
        if a:
            entered, state = self.blocks(entered, state, 0, a, span=span, **more)
        looped, state = self.blocks(entered, state, a, b, span=span, **more)
        if stop == b:
            return embedded, entered, looped, looped, state
        return embedded, entered, looped, *self.blocks(looped, state, b, stop, span=span, **more)

    def blocks(self, h: Tensor, state: State, start: int, stop: int, **call: Any) -> tuple[Tensor, State]:
        nothing = (None,) * self.first
        whole = State(nothing + state.fast_weights, nothing + state.cache)
        h, whole = self.model.blocks(h, whole, start + self.first, stop + self.first, **call)
        return h, State(whole.fast_weights[self.first :], whole.cache[self.first :])

    def head(self, h: Tensor) -> Tensor:
        return self.model.head(h)


class Beginning:
    """The first `stop` blocks of a model, which stay as they are, and a cache of what they made of texts.

    A file of the cache is named after the weights and all that was read, so that none is ever wrong, and may be deleted
    at any time. When the folder holds more than `limit` bytes, the files not used for longest go.
    """

    def __init__(
        self,
        model: PretrainedLM,
        stop: int,
        folder: Path | None = None,
        *,
        products: torch.dtype = torch.float32,
        limit: int = 20 * 2**30,
    ) -> None:
        """`products` are computed in this precision."""
        self.model, self.stop, self.folder, self.products, self.limit = model, stop, folder, products, limit
        self.digest = self.digest_now()

    def digest_now(self) -> str:
        """What names files of the cache, by the weights as they are now: a beginning that is frozen keeps its own."""
        model = self.model
        embedding: Any = model.lm.get_input_embeddings()
        parts = {"embedding": embedding.weight, **dict(model.layers[: self.stop].named_parameters())}
        settings = {**model.lm.config.to_dict(), "dtype": str(model.lm.dtype)}
        settings = {key: x for key, x in settings.items() if key not in _WHERE_IT_IS_FROM}
        device = "" if model.lm.device.type == "cpu" else f"{model.lm.device.type} "  # which rounds otherwise
        weights = weights_digest(parts, torch.bfloat16)
        return f"{device}{self.stop} {self.products} {json.dumps(settings, default=str)} {weights}"

    def states(self, texts: Sequence[Sequence[int]]) -> list[Float[Tensor, "T D"]]:
        """h in bfloat16 after these blocks, of each text as a window by itself; from the cache if it is there."""
        sizes = [len(text) for text in texts]
        states = self.cached(self.digest, texts, sum(sizes), lambda: torch.cat(self._computed(texts)))
        return list(states.split(sizes))

    def cached(
        self, made_by: str, texts: Sequence[Sequence[int]], length: int, make: Callable[[], Tensor]
    ) -> Float[Tensor, "n D"]:
        """What `make` gives, of this length, from the cache if it is there.

        Args:
            made_by: says which weights were used.
            texts: all that was read.
        """
        if self.folder is None:
            return make()
        tokens = ";".join(",".join(map(str, text)) for text in texts)
        place = self.folder / f"{hashlib.sha256(f'{made_by} {tokens}'.encode()).hexdigest()[:32]}.safetensors"
        states = _read(place)
        if states is None or len(states) != length:
            states = make()
            _write(place, states)
            _keep_newest(self.folder.glob("*.safetensors"), self.limit)
        return states

    @torch.no_grad()
    def _computed(self, texts: Sequence[Sequence[int]]) -> list[Float[Tensor, "T D"]]:
        found = dict[int, Tensor]()
        for begun, places in alike(texts):
            shared, state = self._read([texts[places[0]][:begun]], State.empty(self.model.num_blocks), begun)
            order = sorted(places, key=lambda i: len(texts[i]))
            while order:
                longest = len(texts[order[-1]])
                batch = [order.pop() for _ in range(min(max(BATCH_TOKENS // longest, 1), len(order)))]
                rows = torch.zeros(len(batch), dtype=torch.long, device=self.model.lm.device)
                h, _ = self._read([texts[i][begun:] for i in batch], select_rows(state, rows), longest)
                for i, own in zip(batch, h, strict=True):
                    whole = torch.cat([shared[0], own])[: len(texts[i])]
                    found[i] = whole.to("cpu", torch.bfloat16)
        return [found[i] for i in range(len(texts))]

    def _read(self, texts: Sequence[Sequence[int]], state: State, span: int) -> tuple[Float[Tensor, "B T D"], State]:
        """h of texts that go on from a state side by side; padding after a text changes nothing before."""
        tokens = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = torch.tensor(text)
        h = self.model.embed(tokens.to(self.model.lm.device))
        if not self.stop or not tokens.shape[1]:
            return h, state
        with torch.autocast(h.device.type, torch.bfloat16, enabled=self.products == torch.bfloat16):
            return self.model.blocks(h, state, 0, self.stop, span=span)


def alike(texts: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """Groups of texts that begin alike, such as with a chat template: how many tokens they share, and their places.

    What they share need be read but once. Each text has a token after it; those that share little are one group.
    """
    groups = list[tuple[int, list[int]]]()
    for i in sorted(range(len(texts)), key=lambda i: tuple(texts[i])):
        shared = 0
        if groups:
            begun, places = groups[-1]
            most = min(begun, len(texts[i]) - 1)
            pairs = zip(texts[places[0]][:most], texts[i], strict=False)
            shared = next((place for place, (one, other) in enumerate(pairs) if one != other), most)
        if shared >= SHARED:
            groups[-1] = shared, [*groups[-1][1], i]
        else:
            groups.append((len(texts[i]) - 1, [i]))
    several = [group for group in groups if len(group[1]) > 1]
    others = [i for _, places in groups if len(places) == 1 for i in places]
    return [*several, *([(0, others)] if others else [])]


def _write(place: Path, states: Tensor) -> None:
    sums = {_SHA256: content_hash("", [("states", states)])}
    write_atomic(place, lambda temporary: save_file({"states": states}, temporary, metadata=sums))


def _read(place: Path) -> Tensor | None:
    """The states in a file of the cache; None if it is not there, or damaged, or from before it had a checksum."""
    try:
        with safe_open(place, framework="pt") as file:
            states, known = file.get_tensor("states"), (file.metadata() or {}).get(_SHA256)
        place.touch()
    except (OSError, SafetensorError, ValueError):
        return None
    return states if known == content_hash("", [("states", states)]) else None


class PageStates(NamedTuple):
    """A page with what the frozen beginning made of it."""

    page: TokenPage
    states: Float[Tensor, "T D"]  # of its windows, in bfloat16
    asked: tuple[Float[Tensor, "T D"], ...]  # of each question: prompt and answer without the last token
    taught: tuple[Float[Tensor, "A D"] | None, ...]  # what a teacher makes of each answer, if there is one


class PagePool:
    """The first pages of a task's split, with their states, which are computed when they are first asked for."""

    def __init__(
        self, beginning: Beginning, task: ReadingTask, split: Split, seed: int, teacher: Teacher | None = None
    ) -> None:
        self.beginning, self.task, self.seed, self.teacher = beginning, task, seed, teacher
        self.split: Split = split
        self._shards: dict[int, list[PageStates]] = {}

    def __getitem__(self, index: int) -> PageStates:
        shard, place = divmod(index, SHARD)
        if shard not in self._shards:
            self._shards[shard] = self.shard(shard)
        return self._shards[shard][place]

    def shard(self, index: int) -> list[PageStates]:
        """`SHARD` pages, whose states are one file of the cache."""
        pages = self.task.pages(self.split, self.seed, 0, range(index * SHARD, (index + 1) * SHARD))
        states, W = self.beginning.states([text for page in pages for text in self.texts(page)]), self.task.num_windows
        found = list[PageStates]()
        for page in pages:
            own, states = states[: W + len(page.questions)], states[W + len(page.questions) :]
            whole = own[0] if W == 1 else torch.cat(own[:W])  # no copy: a shard's states are one tensor in memory
            found.append(PageStates(page, whole, tuple(own[W:]), self._taught(page)))
        return found

    def _taught(self, page: TokenPage) -> tuple[Tensor | None, ...]:
        if self.teacher is None:
            return (None,) * len(page.questions)
        teacher, sizes = self.teacher, [len(question.answer) for question in page.questions]
        taught = self.beginning.cached(teacher.digest, self.texts(page), sum(sizes), lambda: teacher.taught(page))
        return taught.split(sizes)

    def texts(self, page: TokenPage) -> list[tuple[int, ...]]:
        """What is read by itself: windows, and questions with their answers."""
        L = self.task.window_tokens
        windows = [page.tokens[i : i + L] for i in range(0, len(page.tokens), L)]
        return [*windows, *(q.prompt + q.answer[:-1] for q in page.questions)]


def _keep_newest(files: Iterable[Path], limit: int) -> None:
    """Delete the files that were not used for longest, as long as all together have more than `limit` bytes."""
    known = []
    for path in (path for path in files if not path.name.startswith(".")):  # such a one is being written
        with contextlib.suppress(FileNotFoundError):  # another process may just have deleted it
            known.append((path.stat().st_mtime, path.stat().st_size, path))
    total = 0
    for _, size, path in sorted(known, reverse=True):
        total += size
        if total > limit:
            path.unlink(missing_ok=True)
