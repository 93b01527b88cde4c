"""Training an adapter: which part of a pretrained model learns, from which pages, step by step.

`run.py` takes the steps as it takes those of any recipe; this is what stands in the place of batches of a task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reverie.errors import UserError
from reverie.files import cache_folder
from reverie.hf.add import add_sleep
from reverie.hf.bases import load_tokenizer
from reverie.hf.blocks import inserted_mixer
from reverie.hf.causal_lm import PretrainedLM
from reverie.hf.decoder import sleeping_decoder
from reverie.hf.frozen import SHARD, AfterFrozen, Beginning, PagePool, PageStates, frozen_blocks
from reverie.hf.lora import merged_state
from reverie.hf.own_text import own_windows
from reverie.hf.save import weights_digest
from reverie.hf.start import look_up
from reverie.hf.teacher import Teacher
from reverie.model.fast_weights import FastWeightMixer
from reverie.pretrained.config import PretrainedModelConfig
from reverie.pretrained.speaker import speaker_of
from reverie.recipe import Recipe
from reverie.recipe.adapt import AdaptConfig
from reverie.results.reading import FedPage, ReadingScore, examine_pages
from reverie.sleep import Context, wake
from reverie.tasks import Score
from reverie.tasks.plain_text import plain_windows
from reverie.tasks.reading import ReadingTask, TokenPage
from reverie.train.adapt_loss import PlainText, adapt_loss, has_plain_head
from reverie.train.data import KILLED
from reverie.train.distributed import ParallelModel, Processes, whole
from reverie.train.schedule import Schedule
from reverie.train.step import Step, descend, not_finite
from reverie.train.texts import Plan, pages_in_use, plan_texts, put_together
from reverie.workers import made_ahead

_PLAIN_WINDOWS = 160  # of plain text that training goes through again and again
_HELD_OUT = 24  # others, that tell what it did to plain text


def choose_trainable(model: PretrainedLM, config: AdaptConfig) -> None:
    """Let inserted layers train, and those blocks of the model's own that the recipe names."""
    model.requires_grad_(False)
    for a, b in config.trained_blocks:
        if b > model.num_blocks:
            raise UserError(f"adapt.trained_blocks has {[a, b]}, but the model has {model.num_blocks} blocks")
        model.layers[a:b].requires_grad_(True)
    updates = [parameter for name, parameter in model.named_parameters() if ".lora_" in name]
    for parameter in [*model.fast_weight_parameters(), *updates]:
        parameter.requires_grad_(True)
    decoder = sleeping_decoder(model.lm)
    if config.final_norm and decoder.final_norm is not None:
        decoder.get_submodule(decoder.final_norm).requires_grad_(True)


class Adaptation:
    """What a run of an adapter has beside the model, which is still untouched when this is made."""

    def __init__(self, recipe: Recipe, model: PretrainedLM, processes: Processes) -> None:
        assert recipe.adapt is not None
        assert isinstance(recipe.task, ReadingTask)
        assert isinstance(recipe.model, PretrainedModelConfig)
        self.recipe, self.config, self.task, self.model = recipe, recipe.adapt, recipe.task, model
        self.processes = processes
        self.device = model.lm.device
        if self.config.loss.sampled_vocabulary and not has_plain_head(model):
            raise UserError(
                f"adapt.loss.sampled_vocabulary must be 0 for {recipe.model.pretrained}: "
                "its logits are more than products with the rows of its head"
            )
        mixers: list[Any] = [layer for layer in map(inserted_mixer, model.layers) if layer is not None]
        addressed = mixers and all(isinstance(layer.mixer, FastWeightMixer) for layer in mixers)
        if (self.config.loss.address or self.config.loss.address_alone) and not addressed:
            which = f"mixer {recipe.model.kind}" if mixers else "a model without inserted layers"
            raise UserError(
                f"adapt.loss.address and address_alone must be 0 for {which}, which has no queries and keys that they "
                "could compare"
            )
        choose_trainable(model, self.config)
        self.first = frozen_blocks(model, recipe.sleep)
        beginning = _beginning(recipe, model, self.first)
        teacher = Teacher(recipe.model.pretrained, self.device) if self.config.loss.distillation else None
        self.pool = PagePool(beginning, self.task, "train", recipe.train.seed, teacher)
        self._test = PagePool(beginning, self.task, "test", 0)
        windows = plain_windows(self.config.plain_text, self.task.tokenizer, self.task.window_tokens)
        needed = min(recipe.train.steps * self.config.plain_windows, _PLAIN_WINDOWS)
        self._plain = self._untouched(beginning, [*windows[:-_HELD_OUT][:needed], *self._own_text(beginning)])
        self._held_out = self._untouched(beginning, windows[-_HELD_OUT:])

    def _own_text(self, beginning: Beginning) -> list[list[int]]:
        """Windows that the model writes while it is untouched, or wrote before."""
        if not self.config.own_text:
            return []
        sizes = self.config.own_text, self.task.window_tokens, self.recipe.train.seed
        made_by = f"own text {sizes} {weights_digest(self.model.lm.state_dict())}"
        speaker = speaker_of(self.task.tokenizer)
        made = beginning.cached(made_by, [], sizes[0], lambda: own_windows(self.model, speaker, *sizes))
        return made.tolist()

    @torch.no_grad()
    def _untouched(self, beginning: Beginning, windows: Sequence[Sequence[int]]) -> PlainText:
        """Windows of plain text, and what the model makes of them as it is now."""
        states, tokens = torch.stack(beginning.states(windows)), torch.tensor(windows)
        after, final = AfterFrozen(self.model, self.first), list[Tensor]()
        for part in zip(states.split(8), tokens.split(8), strict=True):
            x = after.input(*(x.to(self.device) for x in part))
            h, _ = wake(after, x, Context.empty(after), after.config(self.recipe.sleep))
            final.append(sleeping_decoder(self.model.lm).sleeping.head(h).to("cpu", torch.bfloat16))
        return PlainText(tokens, states, torch.cat(final))

    def check_beginning(self) -> None:
        """Raises UserError if blocks that are frozen here were trained by the run that this one begins with."""
        if self.pool.beginning.digest_now() != self.pool.beginning.digest:
            raise UserError(
                f"train.init_from is {self.recipe.train.init_from}, which trained blocks before block {self.first}, "
                "the first that trains here: let adapt.trained_blocks and model.lora_blocks begin as early as there"
            )

    def start(self) -> None:
        """Give the inserted layers their start, before the first step."""
        config = self.config.start
        if not config:
            return
        known = [self.pool[i] for i in range(min(config.pages, self.config.pool))]
        L = self.task.window_tokens
        states = torch.cat([page.states.unflatten(0, (-1, L)) for page in known]).to(self.device)
        tokens = torch.tensor([page.page.tokens for page in known], device=self.device).view(-1, L)
        settings = config.model_dump(exclude={"pages"})
        look_up(self.model, states, tokens, self.first, **settings, seed=self.recipe.train.seed)

    def plan(self, step: int) -> Plan:
        train = self.recipe.train
        return plan_texts(self.config, train.steps, train.batch_size, train.seed, step, len(self._plain.tokens))

    def steps(self, schedule: Schedule, optimizers: list[Optimizer], parallel: ParallelModel) -> AdaptSteps:
        return AdaptSteps(self, schedule, optimizers, parallel)

    def tokens(self, plan: Plan) -> int:
        """Tokens of the texts of a step."""
        plain = sum(i >= self.config.pool for text in plan.pages for i in text)
        pages = sum(map(len, plan.pages)) - plain
        return pages * self.task.text_tokens + plain * self.task.window_tokens

    def _known(self, index: int) -> PageStates:
        """A page of the pool; or, after those, a window of plain text as a page that nothing is asked about."""
        if index < self.config.pool:
            return self.pool[index]
        window = index - self.config.pool
        page = TokenPage(tuple(self._plain.tokens[window].tolist()), ())
        return PageStates(page, self._plain.states[window], (), ())

    @contextmanager
    def plans(self, first_step: int, deepest: Callable[[int], int]) -> Iterator[Iterator[Plan]]:
        """The texts of all steps from `first_step` on; with `train.data_workers`, a process caches pages ahead.

        Args:
            deepest: question of a step.
        """
        self._deepest = deepest
        steps = self.recipe.train.steps
        if not self.recipe.train.data_workers or not self.processes.is_first:
            yield (self.plan(step) for step in range(first_step, steps))
            return

        def needed(step: int) -> int:
            return math.ceil(pages_in_use(self.config, steps, step) / SHARD)

        shards, make = range(needed(steps - 1)), _ShardMaker(self.recipe, self.first)
        with made_ahead(make, shards, self.recipe.train.data_workers, if_killed=KILLED) as made:

            def ready() -> Iterator[Plan]:
                done = 0
                for step in range(first_step, steps):
                    while done < needed(step):
                        next(made)
                        done += 1
                    yield self.plan(step)

            yield ready()

    def save(self, folder: Path) -> None:
        """Leave the model as an adapter, with its tokenizer, ready for `reverie read` and `reverie.hf.load`."""
        model: Any = self.model.lm
        add_sleep(model, self.recipe.sleep)
        model.save_pretrained(folder, state_dict=merged_state(model))
        load_tokenizer(self.task.tokenizer).save_pretrained(folder)

    def with_plain_text(self, score: Score) -> Score:
        """The score, with what has become of plain text."""
        return replace(score, plain_text=self.plain_loss()) if isinstance(score, ReadingScore) else score

    def evaluate(self) -> ReadingScore:
        """The score on held-out pages, from their cached beginning; the processes share them out."""
        after = AfterFrozen(self.model, self.first)
        fed = []
        for i in range(self.processes.rank, self.recipe.train.eval_examples, self.processes.world_size):
            page, states, asked, _ = self._test[i]
            texts = [page.tokens, *(q.prompt + q.answer[:-1] for q in page.questions)]
            inputs = [
                after.input(x[None].to(self.device), torch.tensor(ids, device=self.device)[None])[0]
                for x, ids in zip((states, *asked), texts, strict=True)
            ]
            fed.append(FedPage(page, inputs[0], tuple(inputs[1:])))
        return examine_pages(after, self.task, after.config(self.recipe.sleep), fed)[0]

    @torch.no_grad()
    def plain_loss(self) -> dict[str, float]:
        """Mean loss on held-out plain text, in nats a token, of the untouched model and of this one."""
        text = self._held_out.to(self.device)
        targets = text.tokens[:, 1:].flatten()
        after = AfterFrozen(self.model, self.first)
        x = after.input(text.states, text.tokens)
        h, _ = wake(after, x, Context.empty(after), after.config(self.recipe.sleep))
        logits = {"untouched": self.model.unembed(text.final.to(h.dtype)), "adapted": self.model.head(h)}
        return {
            name: nn.functional.cross_entropy(x[:, :-1].flatten(0, 1).float(), targets).item()
            for name, x in logits.items()
        }

    def loss_of(self, step: int, plan: Plan, rows: range) -> Callable[[Any], Tensor]:
        """The loss of some of a step's texts, as a function of the model."""
        deepest = self._deepest(step)
        known: dict[int, Any] = {i: self._known(i) for row in rows for i in plan.pages[row]}
        batch = (
            put_together(plan, known, rows, self.config.questions, deepest, self.task.window_tokens) if rows else None
        )
        own = 0 if batch is None else sum(len(one.question.answer) for one in batch.asked)
        generator = torch.Generator().manual_seed(_seed(self.recipe.train.seed, step, self.processes.rank))
        losses, plain = self.config.loss, None
        if losses.plain_text:
            pick = torch.randint(len(self._plain.tokens), (self.config.plain_windows,), generator=generator)
            plain = PlainText(*(x[pick] for x in self._plain)).to(self.device)
        alone = step < losses.address_alone * self.recipe.train.steps
        count = self.processes.sum([own])[0] / self.processes.world_size
        if batch is None:  # fewer texts than processes
            return _nothing

        def loss(model: Any) -> Tensor:
            in_half = self.recipe.train.dtype == "bfloat16"
            with torch.autocast(self.device.type, torch.bfloat16, enabled=in_half):
                total, _ = adapt_loss(
                    model,
                    self.first,
                    batch,
                    plain,
                    self.recipe.sleep,
                    losses,
                    alone=alone,
                    count=count,
                    generator=generator,
                )
            return total + _nothing(model) if alone or not batch.asked else total

        return loss


def _beginning(recipe: Recipe, model: PretrainedLM, first: int) -> Beginning:
    products = torch.bfloat16 if recipe.train.dtype == "bfloat16" else torch.float32
    return Beginning(model, first, cache_folder("frozen"), products=products)


@dataclass
class _ShardMaker:
    """Makes shards of a pool in a process of its own, with a model of its own."""

    recipe: Recipe
    first: int
    _pool: PagePool | None = None

    def __call__(self, shard: int) -> None:
        if self._pool is None:
            from reverie.recipe.build import build_model

            model: Any = build_model(self.recipe.model, self.recipe.train.seed)
            task: Any = self.recipe.task
            beginning = _beginning(self.recipe, model, self.first)
            self._pool = PagePool(beginning, task, "train", self.recipe.train.seed)
        self._pool.shard(shard)


class AdaptSteps:
    """Takes steps one by one, as `EagerSteps` does."""

    full = True

    def __init__(self, adaptation: Adaptation, schedule: Schedule, optimizers: list[Optimizer], parallel: Any) -> None:
        self._adaptation, self._schedule, self._optimizers = adaptation, schedule, optimizers
        self._parallel = parallel
        self._found: list[Step] = []

    def take(self, step: int, ready: Plan, *, watch: bool) -> None:
        """Raises FloatingPointError if the loss or a gradient is not finite; then nothing has moved."""
        adaptation, processes = self._adaptation, self._adaptation.processes
        self._schedule.set_lr(self._optimizers, step)
        rows = processes.share(len(ready.pages))
        loss = adaptation.loss_of(step, ready, rows)
        value = processes.sum([self._parallel.backward(loss)])[0] / processes.world_size
        parameters = list(adaptation.model.parameters())
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not math.isfinite(value) or not whole(norm).isfinite():
            where = not_finite((name, p.grad) for name, p in adaptation.model.named_parameters() if p.grad is not None)
            raise FloatingPointError(
                f"the loss is {value}" + (f", and the gradient of {where} is no number" if where else "")
            )
        descend(adaptation.model, self._optimizers, norm, self._schedule.optim.grad_clip)
        self._found.append(Step(value, float(whole(norm))))

    def found(self) -> list[Step]:
        found, self._found = self._found, []
        return found


def _nothing(model: Any) -> Any:
    """0, with a gradient of 0 for every parameter that trains: all processes must have one of the same parameters."""
    return sum((p * 0).sum() for p in model.parameters() if p.requires_grad)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
