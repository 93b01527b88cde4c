"""Typed recipes: a TOML file, the bases it builds on, and overrides, checked into one frozen `Recipe`.

A recipe has the sections task, model, sleep, optim and train. It may build on another one: with `base = "depo/base"`
(a shipped recipe) or `base = "my.toml"` (a file beside it) tables merge key by key, and the recipe's own value wins.
Every mistake is a `UserError` of one sentence.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from reverie.backward import Backward
from reverie.errors import UserError
from reverie.model import Eviction, HybridConfig, PretrainedModel
from reverie.random_passes import RandomPasses
from reverie.recipe_errors import any_of, out_of_place, sentence, shown
from reverie.sleep import SleepConfig
from reverie.tasks import TASKS, AnyTask

Config = TypeVar("Config", bound=BaseModel)

_PACKAGE = Path(__file__).parent
# A wheel holds the recipes inside the package (setup.py), a checkout beside it.
_ROOT = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent / "recipes"


class OptimConfig(BaseModel):
    """Muon for matrices, AdamW for the rest, and the course of both learning rates."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    muon_lr: float = Field(gt=0)
    adamw_lr: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0, description="steps of a linear rise from zero, in every stage anew")
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    decay_start: float = Field(default=0.0, ge=0, lt=1, description="share of a stage at which the decay begins")
    final_lr_fraction: float = Field(default=0.1, ge=0, le=1, description="end of the decay, as a share of the peak")
    grad_clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")


class StageConfig(BaseModel):
    """A stretch of training: which parameters train in it, and under which eviction."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    share: float = Field(gt=0, description="length in proportion to the other stages")
    parameters: Literal["all", "fast_weights"] = Field(description="fast_weights: the fast-weight layers' mixers alone")
    eviction: Eviction


class TrainConfig(BaseModel):
    """How long to train on what, and how often to look."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="examples a step, over all processes")
    micro_batch: int | None = Field(
        default=None, ge=1, description="examples at a time, to save memory; their gradients add up to the batch's"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the data and of the initial parameters")
    eval_every: int = Field(default=100, ge=1, description="steps")
    eval_examples: int = Field(default=512, ge=1)
    checkpoint_every: int = Field(default=500, ge=1, description="steps")
    dtype: Literal["float32", "bfloat16"] = "float32"
    metric: Literal["question", "exact", "deepest"] = Field(
        default="question", description="the headline: questions, examples with all answered, or the deepest questions"
    )
    depth_curriculum: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the steps over which the deepest question asked grows to its full depth",
    )
    deepen_below: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="nats: the deepest question grows by one behind 64 steps whose mean loss is less; no schedule then",
    )
    stages: tuple[StageConfig, ...] = Field(
        default=(), description="one after the other; all parameters under sleep.eviction if absent"
    )
    data_workers: int = Field(
        default=0, ge=0, description="processes that make the data ahead; 0: the training process makes them"
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
    activation_checkpoint: Literal["none", "pass", "window"] = Field(
        default="none", description="what is computed again in the backward pass to save memory: passes, or windows too"
    )
    num_sleep_passes: RandomPasses | None = Field(
        default=None, description="drawn anew every step; sleep.num_sleep_passes if absent"
    )
    bptt_passes: int | None = Field(
        default=None, ge=1, description="last passes over a window that gradients go back through; all if absent"
    )
    bptt_windows: int | None = Field(
        default=None, ge=0, description="windows before its own that gradients of a label reach; all if absent"
    )

    @model_validator(mode="after")
    def _one_curriculum(self) -> TrainConfig:
        if self.deepen_below is not None and self.depth_curriculum:
            raise ValueError("deepen_below takes the place of depth_curriculum: leave one of them out")
        if self.deepen_below is not None and self.data_workers:
            raise ValueError("deepen_below decides too late for data made ahead: set data_workers to 0")
        return self

    @model_validator(mode="after")
    def _a_graph_is_of_a_whole_step(self) -> TrainConfig:
        if self.cuda_graph and self.micro_batch is not None:
            raise ValueError("cuda_graph records a step that takes its batch at once: leave out micro_batch, or it")
        return self

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


def _model_kind(model: Any) -> str:
    pretrained = "pretrained" in model if isinstance(model, Mapping) else isinstance(model, PretrainedModel)
    return "pretrained" if pretrained else "hybrid"


MODELS: dict[str, type[HybridConfig] | type[PretrainedModel]] = {"hybrid": HybridConfig, "pretrained": PretrainedModel}
AnyModel = Annotated[
    Annotated[HybridConfig, Tag("hybrid")] | Annotated[PretrainedModel, Tag("pretrained")], Discriminator(_model_kind)
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


_SECTIONS = [field for field in Recipe.model_fields if field != "name"]


def list_recipes() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.relative_to(_ROOT).with_suffix("").as_posix() for path in _ROOT.rglob("*.toml"))


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name ("depo/nano") or any recipe by the path of its .toml file.

    The recipe is named after its file.

    Args:
        overrides: "section.key=value", applied in order; the value is TOML, or else taken as a string.

    Raises UserError, in one sentence, for anything that is wrong with them.
    """
    path = _find(str(name), Path(), named_by="")
    data = _read_with_bases(path)
    for override in overrides:
        data = _merge(data, _parse_override(override))
    return _validate(_name_of(path), data)


def changed(recipe: Recipe, **sections: Mapping[str, Any]) -> Recipe:
    """The recipe with other values in some sections, checked as those of a file are.

    Raises UserError, in one sentence, for a value that is wrong.
    """
    data = recipe.model_dump(mode="json", exclude={"name": True, "model": {"vocab_size"}})  # the task decides it
    return _validate(recipe.name, _merge(data, sections))


def checked(config: type[Config], values: Mapping[str, Any], options: Mapping[str, str]) -> Config:
    """A config from options of the command line, checked as a recipe is; key `x` is option --x, or `options["x"]`.

    Raises UserError, in one sentence, for the first value that is wrong.
    """
    try:
        return config.model_validate(values, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        option = "".join(options.get(str(key), f"--{key}") for key in first["loc"][:1])  # none: it is the whole config
        if first["type"] == "value_error":
            raise UserError(f"{option} {first.get('ctx', {})['error']}".strip()) from None
        raise UserError(out_of_place(option, [{**first, "loc": ()}])) from None


def _find(name: str, folder: Path, named_by: str) -> Path:
    """The file of a shipped recipe, or of a path relative to `folder`."""
    shipped, is_path = list_recipes(), name.endswith(".toml")
    path = folder / name if is_path else _ROOT / f"{name}.toml"
    if path.is_file() if is_path else name in shipped:
        return path
    near = get_close_matches(name.removesuffix(".toml"), shipped, n=3, cutoff=0.5)
    hint = f"did you mean {any_of(near)}?" if near else f"there are {', '.join(shipped)}, or the path of a .toml file"
    raise UserError(f"there is no recipe {path if is_path else name}{named_by}; {hint}")


def _name_of(path: Path) -> str:
    path = path.resolve().with_suffix("")
    return path.relative_to(_ROOT.resolve()).as_posix() if path.is_relative_to(_ROOT.resolve()) else path.stem


def _read_with_bases(path: Path) -> dict[str, Any]:
    """The tables of a recipe merged over those of its base, of that one's base and so on."""
    chain, data = [path], {}
    while True:
        table = _read(path)
        base = table.pop("base", None)
        data = _merge(table, data)
        if base is None:
            return data
        if not isinstance(base, str):
            raise UserError(f"base must be the name or the path of a recipe, got {shown(base)} in {path}")
        path = _find(base, path.parent, named_by=f", the base of {path}")
        known = [link.resolve() for link in chain]
        chain.append(path)
        if path.resolve() in known:
            circle = " -> ".join(_name_of(link) for link in chain[known.index(path.resolve()) :])
            raise UserError(f"the bases run in a circle, {circle}; one of these recipes must do without a base")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both tables together, and tables inside them likewise; elsewhere `over` wins."""
    merged = {**under, **over}
    for key in under.keys() & over.keys():
        if isinstance(under[key], Mapping) and isinstance(over[key], Mapping):
            merged[key] = _merge(under[key], over[key])
    return merged


def _parse_override(override: str) -> dict[str, Any]:
    """The nested tables that "section.key=value" stands for."""
    keys, equals, text = override.partition("=")
    path = [key.strip() for key in keys.split(".")]
    if not equals or not all(path):
        raise UserError(
            f"the override {shown(override)} is not of the form section.key=value, like sleep.window_size=24"
        )
    try:
        [value] = tomllib.loads(f"value = {text}").values()
    except ValueError:
        value = text.strip()
    *tables, last = path
    nested = {last: value}
    for table in reversed(tables):
        nested = {table: nested}
    return nested


def _validate(name: str, data: dict[str, Any]) -> Recipe:
    """Strict: a string is no number, and true is not 1."""
    if "name" in data:
        raise UserError("name is not a key of a recipe, which is named after its file; take it out")
    try:
        return Recipe.model_validate({**_with_tuples(data), "name": name}, strict=True)
    except ValidationError as error:
        raise UserError(sentence(error, _keys(data), MODELS)) from None


def _with_tuples(value: Any) -> Any:
    """TOML knows lists, strict validation wants tuples."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _keys(data: Mapping[str, Any]) -> dict[str, list[str]]:
    """The keys that each section knows, and a stage; those of the task depend on its name."""
    task = data.get("task")
    chosen = TASKS.get(str(task.get("name"))) if isinstance(task, Mapping) else None
    configs: dict[str, Any] = {section: Recipe.model_fields[section].annotation for section in _SECTIONS} | {
        "task": chosen,
        "model": MODELS[_model_kind(data.get("model"))],
        "train.stages": StageConfig,
        "sleep.num_sleep_passes": RandomPasses,
    }
    return {section: list(config.model_fields) if config else [] for section, config in configs.items()}
