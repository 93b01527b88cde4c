"""`[optim]` of a recipe: an optimiser by name for each group of parameters, and the course of their learning rates."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from torch.optim import Optimizer
from typing_extensions import TypeIs

from reverie.recipe.errors import any_of, out_of_place, shown

_USUAL = {"muon": "Muon", "adamw": "AdamW"}  # by their names in recipes; others are called what torch.optim calls them
_UNFIT = {
    "LBFGS": "computes the loss several times a step, and a step of a recipe has it once",
    "SparseAdam": "takes sparse gradients alone",
}
_NOT_FOR_RECIPES = {"self", "params", "lr", "weight_decay", "capturable", "differentiable"}


def optimizer_class(name: str) -> type[Optimizer]:
    """The class of torch.optim that a recipe means by `name`.

    Raises:
        ValueError: there is none, or it cannot take the steps of a recipe; the message goes on after the key.
    """
    if name in _UNFIT:
        raise ValueError(f"must be another one than {name}, which {_UNFIT[name]}")
    found = getattr(torch.optim, _USUAL.get(name, name), None)
    if _is_optimizer(found):
        return found
    others = {key for key, item in vars(torch.optim).items() if _is_optimizer(item)} - {*_USUAL.values(), *_UNFIT}
    known = {key.lower(): key for key in (*_USUAL, *sorted(others))}
    near = [known[key] for key in get_close_matches(name.lower(), known, n=3)]
    hint = f"did you mean {any_of(near)}?" if near else f"there are {', '.join(known.values())}"
    raise ValueError(f"must be muon, adamw or a class of torch.optim, got {shown(name)}; {hint}")


def _is_optimizer(item: Any) -> TypeIs[type[Optimizer]]:
    return inspect.isclass(item) and issubclass(item, Optimizer) and item is not Optimizer


def arguments_of(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of an optimiser that a recipe may set besides lr and weight_decay."""
    ours = _NOT_FOR_RECIPES | ({"adjust_lr_fn"} if name == "muon" else set())  # our Muon has one way to scale steps
    signature = inspect.signature(optimizer_class(name), eval_str=True).parameters
    return {key: argument for key, argument in signature.items() if key not in ours}


def takes(name: str, argument: str) -> bool:
    """True if that optimiser of torch.optim has such an argument."""
    return argument in inspect.signature(optimizer_class(name)).parameters


class OptimizerConfig(BaseModel):
    """An optimiser by name, its peak learning rate, and arguments of its own, such as `momentum`."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    name: str = Field(description='"muon", "adamw", or a class of torch.optim such as "SGD"')
    lr: float = Field(gt=0, description="at its peak")
    weight_decay: float | None = Field(default=None, ge=0, description="optim.weight_decay if absent")

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of its own, without the ones that have their usual value."""
        return dict(self.model_extra or {})

    @model_validator(mode="before")
    @classmethod
    def _own_arguments(cls, data: Any) -> Any:
        """Checked against the optimiser's signature; what has its usual value is left out, so that equal is equal."""
        name = data.get("name") if isinstance(data, Mapping) else None
        if not isinstance(name, str):
            return data
        name = {usual: short for short, usual in _USUAL.items()}.get(name, name)
        try:
            known = arguments_of(name)
        except ValueError:  # that of the name is the mistake to tell
            return data
        fields = {key: data[key] for key in data if key in cls.model_fields}
        own = {key: _checked(name, key, known, data[key]) for key in data if key not in fields}
        return {**fields, "name": name, **{key: x for key, x in own.items() if x != known[key].default}}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        optimizer_class(name)
        return name

    @model_validator(mode="after")
    def _accepted(self) -> OptimizerConfig:
        """By the optimiser itself, which knows the ranges of its arguments."""
        try:
            optimizer_class(self.name)([torch.nn.Parameter(torch.zeros(2, 2))], lr=self.lr, **self.arguments)  # pyright: ignore[reportCallIssue]
        except (ValueError, RuntimeError, TypeError) as error:
            raise ValueError(f"is not what {self.name} takes: {error}") from None
        return self

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {key: value for key, value in self if value is not None}


def _checked(name: str, key: str, known: Mapping[str, inspect.Parameter], value: Any) -> Any:
    """The value of an argument, of the type that the signature says. Raises ValueError."""
    if key not in known:
        near = get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
        raise ValueError(f"has {key}, which is no argument of {name}; {hint}")
    settings = ConfigDict(arbitrary_types_allowed=True, strict=True, allow_inf_nan=False)
    value = tuple(value) if isinstance(value, list) else value
    try:
        return TypeAdapter(known[key].annotation, config=settings).validate_python(value)
    except ValidationError as error:  # a union may offer a tensor, which no recipe holds
        told = [details for details in error.errors() if details["type"] != "is_instance_of"]
        raise ValueError(f"is wrong: {out_of_place(key, told)}") from None


class OptimConfig(BaseModel):
    """An optimiser for each group of parameters, and the course of all learning rates."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    matrices: OptimizerConfig | None = Field(
        default=None, description="of the weights of linear layers but the head; rest's if absent"
    )
    rest: OptimizerConfig = Field(description="of embeddings, head, convolutions, biases and gains")
    pretrained: OptimizerConfig | None = Field(
        default=None, description="of what rest would move outside the fast-weight layers; without a name, as rest"
    )
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(
        default=0, ge=0, le=10**9, description="steps of a linear rise from zero, in every stage anew"
    )
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    decay_start: float = Field(default=0.0, ge=0, lt=1, description="share of a stage at which the decay begins")
    final_lr_fraction: float = Field(default=0.1, ge=0, le=1, description="end of the decay, as a share of the peak")
    grad_clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")

    @property
    def optimizers(self) -> dict[str, OptimizerConfig]:
        """By group, those that the recipe names."""
        chosen = {"matrices": self.matrices, "rest": self.rest, "pretrained": self.pretrained}
        return {group: optimizer for group, optimizer in chosen.items() if optimizer is not None}

    def weight_decay_of(self, group: str) -> float:
        own = self.optimizers[group].weight_decay
        return self.weight_decay if own is None else own

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, data: Any) -> Any:
        data = with_present_optimizers(data)
        rest, pretrained = (data.get(key) for key in ("rest", "pretrained")) if isinstance(data, Mapping) else (0, 0)
        if isinstance(rest, Mapping) and isinstance(pretrained, Mapping) and "name" not in pretrained:
            try:
                OptimizerConfig.model_validate(rest)
            except ValidationError:  # is to be told once
                return {**data, "pretrained": None}
            return {**data, "pretrained": {**rest, **pretrained}}
        return data

    @model_validator(mode="after")
    def _fit_their_groups(self) -> OptimConfig:
        for group, optimizer in self.optimizers.items():
            if optimizer.name == "muon" and group != "matrices":
                raise ValueError(f"{group}.name must be another one than muon, which moves matrices alone")
            if self.weight_decay_of(group) and not takes(optimizer.name, "weight_decay"):
                raise ValueError(f"{group}.name is {optimizer.name}, which has no weight decay: leave weight_decay out")
        return self


def with_present_optimizers(section: Any) -> Any:
    """A section [optim], or a part of one, that may be of earlier: `muon_lr`, `adamw_lr`, `pretrained_lr` and
    `adamw_beta2` were what the tables `matrices`, `rest` and `pretrained` are.

    Raises:
        ValueError: it has a key of earlier and the table that came after it.
    """
    if not isinstance(section, Mapping):
        return section
    rest = dict(section)
    earlier = {key: rest.pop(key) for key in ("muon_lr", "adamw_lr", "pretrained_lr", "adamw_beta2") if key in rest}
    groups: dict[str, dict[str, Any]] = {}
    for key, value in earlier.items():
        group = {"muon_lr": "matrices", "pretrained_lr": "pretrained"}.get(key, "rest")
        if group in rest:
            raise ValueError(f"{key} is an earlier name for what optim.{group} says: leave it out beside that")
        if value is not None:
            name = {"muon_lr": {"name": "muon"}, "pretrained_lr": {}}.get(key, {"name": "adamw"})
            said = {"betas": (0.9, value)} if key == "adamw_beta2" else {"lr": value}
            groups[group] = {**groups.get(group, {}), **name, **said}
    return {**rest, **groups}


def ready_to_merge(under: Any, over: Any) -> Any:
    """The section [optim] `under`, to be merged with `over`: an optimiser of another name keeps the rate alone."""
    if not isinstance(under, Mapping) or not isinstance(over, Mapping):
        return under

    def other(group: str) -> bool:
        before, after = under[group], over[group]
        named = isinstance(before, Mapping) and isinstance(after, Mapping) and "name" in after
        return named and str(before.get("name")).lower() != str(after["name"]).lower()

    others = [group for group in under.keys() & over.keys() if other(group)]
    return {**under, **{group: {key: under[group][key] for key in under[group] if key == "lr"} for group in others}}
