"""mkdocs hook: pages of the reference, made of what they describe: commands, keys of recipes, and docstrings."""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.cli import get_docs_for_click
from typer.main import get_command

from reverie.cli.app import app
from reverie.model import HybridConfig
from reverie.pretrained.config import PretrainedModelConfig
from reverie.recipe import AdaptConfig, OptimConfig, TrainConfig
from reverie.sleep import SleepConfig
from reverie.tasks import TASKS

ROOMS = ("", "sleep", "model", "memory", "talk", "hf", "tasks", "recipe", "ops")


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for name, content in pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def pages() -> dict[str, str]:
    """Markdown of each page, by its name; of docstrings mkdocstrings makes the rest."""
    found = {"commands": commands(), "recipes": recipes()}
    for room in ROOMS:
        name = f"reverie.{room}".rstrip(".")
        found[name] = public_names(name)
    return found


def commands() -> str:
    command = get_command(app)
    return get_docs_for_click(obj=command, ctx=command.context_class(command), name="reverie", title="Commands")


def public_names(module: str) -> str:
    """Docstrings of what a room says is public."""
    names = importlib.import_module(module).__all__
    return f"# {module}\n\n" + "\n".join(f"::: {module}.{name}\n" for name in names)


def recipes() -> str:
    """Every key of a recipe, with its default."""
    sections = [
        *((f'[task], name = "{name}"', "", task) for name, task in TASKS.items()),
        ("[model]", "A model of reverie's own; `vocab_size` is the task's.", HybridConfig),
        ("[model], pretrained", "A pretrained model.", PretrainedModelConfig),
        ("[sleep]", "", SleepConfig),
        ("[optim]", "", OptimConfig),
        ("[train]", "", TrainConfig),
        ("[adapt]", "Of `reverie adapt` alone.", AdaptConfig),
    ]
    parts = ["# Recipes\n\nEvery key of a recipe, with its default. `base` names a recipe that this one changes."]
    for title, note, schema in sections:
        parts += [f"## {title}", note, table(schema)]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(schema: type[BaseModel]) -> str:
    lines = ["| key | type | default | |", "| --- | --- | --- | --- |"]
    for name, type_, default, description in keys(schema):
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (name, type_, default, description)) + " |")
    return "\n".join(lines)


def keys(schema: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    for name, field in schema.model_fields.items():
        yield f"`{name}`", f"`{type_name(field.annotation)}`", default_of(field), description_of(field)


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or value is None:
        return ""
    if isinstance(value, BaseModel):
        return ", ".join(f"`{key} = {toml(part)}`" for key, part in value.model_dump(exclude_none=True).items())
    return f"`{toml(value)}`"


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def description_of(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{sign} {getattr(part, name):,}"
        for part in field.metadata
        for name, sign in signs.items()
        if isinstance(getattr(part, name, None), int | float)
    ]
    return "; ".join(part for part in (field.description or "", ", ".join(bounds)) if part)


def type_name(annotation: Any) -> str:
    """A type as a reader of TOML knows it: no modules, literals as their values."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "absent"
    if hasattr(annotation, "__metadata__"):  # Annotated
        return type_name(arguments[0])
    if origin is Literal:
        return " or ".join(map(toml, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(part) for part in arguments if part is not type(None))
    if origin is tuple or origin is list:
        inner = [type_name(part) for part in arguments if part is not Ellipsis]
        return f"[{inner[0]}, …]" if Ellipsis in arguments or origin is list else f"[{', '.join(inner)}]"
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(type_name, arguments))}]"
    return getattr(annotation, "__name__", str(annotation))
