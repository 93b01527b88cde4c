"""No number in a recipe is without bounds: a file must not make a run endless or ask for more than any machine has."""

from __future__ import annotations

import typing
from collections.abc import Iterator

import annotated_types
import pytest
from pydantic import BaseModel

from reverie.errors import UserError
from reverie.recipe import Recipe, load_recipe


def models(kind: object, seen: set[type]) -> Iterator[type[BaseModel]]:
    """All models that an annotation reaches."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if kind not in seen:
            seen.add(kind)
            yield kind
            for field in kind.model_fields.values():
                yield from models(field.annotation, seen)
                for part in field.metadata:
                    yield from models(part, seen)
        return
    for part in typing.get_args(kind):
        yield from models(part, seen)


def is_bounded(metadata: list[object], annotation: object) -> bool:
    given = [*metadata, *(getattr(annotation, "__metadata__", ()))]
    limits = [*given, *(part for x in given for part in getattr(x, "metadata", ()))]
    if any(isinstance(x, annotated_types.Le | annotated_types.Lt) or hasattr(x, "le") for x in limits):
        return True
    inner = [part for part in typing.get_args(annotation) if part not in (type(None), ...)]
    return bool(inner) and all(is_bounded([], part) for part in inner if counts(part))


def counts(annotation: object) -> bool:
    """True if whole numbers may stand there."""
    if annotation is int:
        return True
    return any(counts(part) for part in typing.get_args(annotation) if not isinstance(part, str | int))


def test_every_count_of_a_recipe_has_an_upper_bound() -> None:
    found, lacking = 0, set[str]()
    for model in models(Recipe, set()):
        for name, field in model.model_fields.items():
            if counts(field.annotation):
                found += 1
                if not is_bounded(field.metadata, field.annotation):
                    lacking.add(name)
    assert found >= 40
    assert lacking <= {
        "after",
        "looped_blocks",
        "trained_blocks",
        "lora_blocks",
        "pages",
    }  # blocks of the model, pages of the pool


@pytest.mark.parametrize(
    "override",
    [
        "sleep.num_sleep_passes=1000000000000",
        "model.width=1099511627776",
        "train.steps=1000000000000000",
        "task.max_hops=10000000",
    ],
)
def test_a_number_above_it_is_refused_by_name(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(UserError, match=f"{key} must be at most"):
        load_recipe("depo/nano", [override])


def test_nested_tables_are_refused(tmp_path) -> None:
    path = tmp_path / "deep.toml"
    for content in ("a = " + "[" * 100_000, "[" + ".".join("a" * 20_000) + "]\nb = 1", "a = " + "{a=" * 20_000):
        path.write_text(content)
        with pytest.raises(UserError):
            load_recipe(path)
    for override in (
        ".".join("a" * 20_000) + "=1",
        "train.steps=" + "[" * 50_000,
        "task." + ".".join("a" * 5_000) + "=1",
    ):
        with pytest.raises(UserError):
            load_recipe("depo/nano", [override])
