"""`Recipe`: everything that decides a run, typed: the sections task, model, sleep, optim and train."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from reverie.errors import UserError
from reverie.model import Eviction, HybridConfig
from reverie.named import is_named
from reverie.pretrained.config import PretrainedModelConfig
from reverie.recipe.adapt import AdaptConfig
from reverie.recipe.optim import OptimConfig
from reverie.recipe.random_passes import RandomPasses
from reverie.sleep import SleepConfig
from reverie.sleep.gradients import Backward
from reverie.tasks import AnyTask
from reverie.tasks.reading import ReadingTask

TRACKERS = "tensorboard", "wandb"


class StageConfig(BaseModel):
    """A stretch of training: which parameters train in it, and under which eviction."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    share: float = Field(gt=0, description="length in proportion to the other stages")
    parameters: Literal["all", "fast_weights"] = Field(description="fast_weights: the fast-weight layers' mixers alone")
    eviction: Eviction


class BySuccess(BaseModel):
    """A curriculum: the deepest question grows by one after 64 steps whose mean loss is low enough."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    loss_below: float = Field(gt=0, description="nats")


Curriculum = Annotated[
    Annotated[float, Field(ge=0, le=1), Tag("share")] | Annotated[BySuccess, Tag("success")],
    Discriminator(lambda value: "success" if isinstance(value, Mapping | BySuccess) else "share"),
]


def with_present_names(train: Any) -> Any:
    """A section [train] that may be of earlier: `depth_curriculum` and `deepen_below` were what `curriculum` is."""
    if not isinstance(train, Mapping) or not train.keys() & {"depth_curriculum", "deepen_below"}:
        return train
    rest = dict(train)
    share, below = rest.pop("depth_curriculum", 0.0), rest.pop("deepen_below", None)
    return {**rest, "curriculum": share if below is None else {"loss_below": below}}


class TrainConfig(BaseModel):
    """Steps, batches, evaluations and checkpoints of a training, and how its gradients are computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1, le=10**9)
    batch_size: int = Field(ge=1, le=10**6, description="examples a step, over all processes")
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        le=10**6,
        description="examples at a time, to save memory; their gradients add up to the batch's",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the data and of the initial parameters")
    eval_every: int = Field(default=100, ge=1, le=10**9, description="steps")
    eval_examples: int = Field(default=512, ge=1, le=10**7)
    checkpoint_every: int = Field(default=500, ge=1, le=10**9, description="steps")
    dtype: Literal["float32", "bfloat16"] = "float32"
    metric: Literal["question", "exact", "deepest"] = Field(
        default="question", description="the headline: questions, examples with all answered, or the deepest questions"
    )
    curriculum: Curriculum = Field(
        default=0.0,
        description="how the deepest question asked grows to its full depth: over this share of the steps, or by "
        "success",
    )
    stages: tuple[StageConfig, ...] = Field(
        default=(), description="one after the other; all parameters under sleep.eviction if absent"
    )
    data_workers: int = Field(
        default=0, ge=0, le=1000, description="processes that make the data ahead; 0: the training process makes them"
    )
    compile: bool = Field(
        default=False, description="run the blocks through torch.compile: faster steps after a minute of compiling"
    )
    cuda_graph: bool = Field(
        default=False, description="record a step and have the GPU replay it: faster where kernels are many and small"
    )
    init_from: str | None = Field(
        default=None, description="folder of a run whose weights this one begins with; fresh ones if absent"
    )
    trackers: tuple[str, ...] = Field(
        default=("tensorboard",), description='what follows the run: "tensorboard", "wandb" or a module:Class'
    )
    activation_checkpoint: Literal["none", "pass", "window"] = Field(
        default="none", description="what is computed again in the backward pass to save memory: passes, or windows too"
    )
    num_sleep_passes: RandomPasses | None = Field(
        default=None, description="drawn anew every step; sleep.num_sleep_passes if absent"
    )
    bptt_passes: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="last passes over a window that gradients go back through; all if absent",
    )
    bptt_windows: int | None = Field(
        default=None,
        ge=0,
        le=10**9,
        description="windows before its own that gradients of a label reach; all if absent",
    )

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, data: Any) -> Any:
        return with_present_names(data)

    @field_validator("trackers")
    @classmethod
    def _trackers_have_names(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        for i, name in enumerate(trackers):
            if name not in TRACKERS and not is_named(name):
                known = ", ".join(map(repr, TRACKERS)).replace("'", '"')
                raise ValueError(f'must be of {known} or like "my_module:MyTracker", got "{name}"')
            if name in trackers[:i]:
                raise ValueError(f'has "{name}" twice')
        return trackers

    @model_validator(mode="after")
    def _success_is_not_known_ahead(self) -> TrainConfig:
        if isinstance(self.curriculum, BySuccess) and self.data_workers:
            raise ValueError("curriculum by success decides too late for data made ahead: set data_workers to 0")
        return self

    @model_validator(mode="after")
    def _a_graph_is_of_a_whole_step(self) -> TrainConfig:
        if self.cuda_graph and self.micro_batch is not None:
            raise ValueError("cuda_graph records a step that takes its batch at once: leave out micro_batch, or it")
        return self

    @property
    def untracked(self) -> TrainConfig:
        """The same without trackers."""
        return self.model_copy(update={"trackers": ()})

    @property
    def backward(self) -> Backward:
        return Backward(**{key: getattr(self, key) for key in Backward.model_fields})

    @property
    def stage_ends(self) -> list[int]:
        """The step before which each stage ends."""
        shares = [Fraction(stage.share) for stage in self.stages]  # exact, so that the last one ends at `steps`
        return [round(self.steps * part / sum(shares)) for part in accumulate(shares)] or [self.steps]

    @model_validator(mode="after")
    def _every_stage_has_a_step(self) -> TrainConfig:
        for i, (start, end) in enumerate(pairwise([0, *self.stage_ends])):
            if start == end:
                raise ValueError(
                    f"stages[{i}].share {self.stages[i].share:g} is too small for a single one of {self.steps} steps; "
                    f"raise it, or train.steps"
                )
        return self


_NOT_OF_ADAPTERS = (*("stages", "micro_batch", "cuda_graph", "compile", "num_sleep_passes"), *Backward.model_fields)
"""Keys of [train] that training an adapter does not heed."""


def kind_of_section(model: Any) -> str:
    pretrained = "pretrained" in model if isinstance(model, Mapping) else isinstance(model, PretrainedModelConfig)
    return "pretrained" if pretrained else "hybrid"


MODELS: dict[str, type[HybridConfig] | type[PretrainedModelConfig]] = {
    "hybrid": HybridConfig,
    "pretrained": PretrainedModelConfig,
}
AnyModel = Annotated[
    Annotated[HybridConfig, Tag("hybrid")] | Annotated[PretrainedModelConfig, Tag("pretrained")],
    Discriminator(kind_of_section),
]


class Recipe(BaseModel):
    """Everything that decides a run. `Recipe.model_validate(recipe.model_dump(mode="json"))` is the same recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    task: AnyTask
    model: AnyModel
    sleep: SleepConfig
    optim: OptimConfig
    train: TrainConfig
    adapt: AdaptConfig | None = None

    def same_curve(self, other: Recipe) -> bool:
        """True if both recipes train to the same curve: they may have other trackers."""
        ours, theirs = (one.model_copy(update={"train": one.train.untracked}) for one in (self, other))
        return ours == theirs

    @property
    def hybrid(self) -> HybridConfig:
        """The model's sizes. Raises UserError where it is a pretrained one."""
        if not isinstance(self.model, HybridConfig):
            raise UserError(
                f"recipe {self.name} starts from {self.model.pretrained}: this takes a model of reverie's own"
            )
        return self.model

    @model_validator(mode="before")
    @classmethod
    def _random_passes(cls, data: Any) -> Any:
        """`sleep.num_sleep_passes = {distribution, mean, max}` trains with random N, then sleeps with their mean."""
        sleep, train = (data.get(key) for key in ("sleep", "train")) if isinstance(data, Mapping) else (None, None)
        passes = sleep.get("num_sleep_passes") if isinstance(sleep, Mapping) else None
        if not isinstance(passes, Mapping) or not isinstance(sleep, Mapping) or not isinstance(train, Mapping):
            return data
        if train.get("num_sleep_passes") not in (None, passes):
            raise ValueError("train.num_sleep_passes must be left out beside a table in sleep.num_sleep_passes")
        mean = passes.get("mean")
        usual = max(round(mean), 1) if isinstance(mean, int | float) and 0 < mean < 1e9 else 1  # else that is the error
        sections = {"sleep": {**sleep, "num_sleep_passes": usual}, "train": {**train, "num_sleep_passes": passes}}
        return {**data, **sections}

    @field_validator("model", mode="before")
    @classmethod
    def _vocabulary_of_task(cls, model: Any, info: ValidationInfo) -> Any:
        if not isinstance(model, Mapping):
            return model
        vocab_size = info.data["task"].vocab_size if "task" in info.data else 2  # an invalid task is the error to tell
        return {"vocab_size": vocab_size, **model}

    @model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        if self.model.vocab_size != self.task.vocab_size:
            raise ValueError(
                f"model.vocab_size is {self.model.vocab_size}, but task {self.task.name} has {self.task.vocab_size} "
                f"tokens; leave it out, the task decides it"
            )
        if self.sleep.tolerance is not None:  # processes that train together must take the same passes
            raise ValueError("sleep.tolerance is for a model that has been trained: leave it out, and give it to eval")
        looped = self.sleep.looped_blocks
        if looped and isinstance(self.model, HybridConfig) and looped[1] > len(self.model.layers):
            raise ValueError(
                f"sleep.looped_blocks {list(looped)} must end at or before {len(self.model.layers)}, the number of "
                "model.layers"
            )
        return self

    @model_validator(mode="after")
    def _can_adapt(self) -> Recipe:
        if isinstance(self.task, ReadingTask) and self.task.window_tokens != self.sleep.window_size:
            raise ValueError(
                f"task.window_tokens is {self.task.window_tokens}, but sleep.window_size is {self.sleep.window_size}; "
                "they must be equal"
            )
        if self.adapt is None:
            return self
        if not isinstance(self.model, PretrainedModelConfig) or not isinstance(self.task, ReadingTask):
            raise ValueError("the section adapt is for a pretrained model and a task of pages and questions")
        if self.sleep.eviction != "hard":
            raise ValueError('sleep.eviction must be "hard" in a recipe with the section adapt')
        usual = TrainConfig(steps=1, batch_size=1)
        for name in _NOT_OF_ADAPTERS:
            if getattr(self.train, name) != getattr(usual, name):
                raise ValueError(f"train.{name} must be left out of a recipe with the section adapt")
        return self

    @model_validator(mode="after")
    def _stages_fit_the_model(self) -> Recipe:
        stages = self.train.stages
        for i, stage in enumerate(stages):
            if stage.parameters == "fast_weights" and not self.model.has_fast_weights:
                raise ValueError(
                    f'train.stages[{i}].parameters is "fast_weights", but model.layers has attention layers alone'
                )
        if stages and stages[-1].eviction != self.sleep.eviction:
            raise ValueError(
                f'train.stages[{len(stages) - 1}].eviction is "{stages[-1].eviction}", but sleep.eviction is '
                f'"{self.sleep.eviction}"; the last stage must train what is used afterwards'
            )
        return self
