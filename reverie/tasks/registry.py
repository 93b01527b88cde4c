"""Tasks by name: registered ones, those of installed packages (entry points of the group `reverie.tasks`), and any
"module:Class".
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, PlainSerializer, PlainValidator, SerializationInfo
from pydantic_core import PydanticKnownError, to_json

from reverie.errors import UserError
from reverie.named import OutsideError, find_named
from reverie.tasks.base import Task

GROUP = "reverie.tasks"
TASKS: dict[str, type[Any]] = {}
"""Registered tasks, by name."""

_MEMBERS = sorted(m for m in {*vars(Task), *Task.__annotations__} - {"name"} if not m.startswith("_"))
AnyClass = TypeVar("AnyClass", bound=type)


def register_task(task: AnyClass) -> AnyClass:
    """Make a task known by the default of its field `name`; returns it, so that it may stand above a class as `@`.

    Raises:
        UserError: it is no task, has no such name, or another task has it.
    """
    _check(task, "register_task takes")
    field = cast(type[BaseModel], task).model_fields.get("name")
    name = field.default if field else None
    if not isinstance(name, str) or not name or ":" in name:
        raise UserError(f"{_of(task)} needs a field name whose default is its name as a task, without a colon")
    known = TASKS.setdefault(name, task)
    if _of(known) != _of(task):
        raise UserError(f"{_of(task)} cannot be the task {name}, which is {_of(known)}: give it another name")
    TASKS[name] = task  # its module may have been loaded again
    return task


def task_names() -> list[str]:
    """Names of all tasks that are registered or that installed packages bring."""
    return list(dict.fromkeys([*TASKS, *(point.name for point in importlib.metadata.entry_points(group=GROUP))]))


def find_task(name: str) -> type[Any] | None:
    """The class of a task; None if there is no such name.

    Raises:
        OutsideError: its module is missing or cannot be imported, or what it names is no task.
    """
    if name in TASKS:
        return TASKS[name]
    if ":" in name:
        return _check(find_named(name, "task.name"), f"task.name is {name}, which must be")
    for point in importlib.metadata.entry_points(group=GROUP, name=name):
        return _check(find_named(point.value.replace(" ", ""), f"the task {name}"), f"the task {name} must be")
    return None


def task_from(value: Any) -> Any:
    """The task that a section of a recipe describes, by its `name`; a task is returned as it is.

    Values are taken as JSON has them, strictly: a string is no number, and a list may become a tuple.
    """
    if isinstance(value, BaseModel):
        _check(type(value), "task must be")
        return _named(value, getattr(value, "name", None))
    if not isinstance(value, Mapping):
        raise PydanticKnownError("model_attributes_type")
    if "name" not in value:
        raise PydanticKnownError("union_tag_not_found", {"discriminator": "'name'"})
    name = value["name"]
    task = find_task(name) if isinstance(name, str) else None
    if task is None:
        tags = {"discriminator": "'name'", "tag": str(name), "expected_tags": ", ".join(task_names())}
        raise PydanticKnownError("union_tag_invalid", tags)
    own = task.model_fields["name"].default if "name" in task.model_fields else None
    settings = {key: part for key, part in value.items() if key != "name" or own == name}
    return _named(task.model_validate_json(to_json(settings, inf_nan_mode="constants"), strict=True), name)


def nearest_task(name: str) -> str | None:
    """The known name that is most like another."""
    return next(iter(get_close_matches(name, task_names(), n=1)), None)


def _named(task: BaseModel, name: str | None) -> BaseModel:
    """The task under the name that it is asked for by, which its class need not know."""
    if name is None or (":" not in name and find_task(name) is None):
        name = f"{type(task).__module__}:{type(task).__qualname__}"
        if name.startswith("__main__:") or "<locals>" in name:
            raise OutsideError(f"the task {name} cannot be found again: put its class into a module, or register it")
    return task if getattr(task, "name", None) == name else task.model_copy(update={"name": name})


def dumped(task: Any, info: SerializationInfo) -> dict[str, Any]:
    """Its settings, with the name that it was asked for by."""
    return {**task.model_dump(mode=info.mode, warnings=False), "name": task.name}


AnyTask = Annotated[Task, PlainValidator(task_from), PlainSerializer(dumped)]
"""A task in a pydantic model, by its name."""


def _of(task: type) -> str:
    return f"{task.__module__}:{task.__qualname__}"


def _check(task: Any, must_be: str) -> Any:
    """The class, if it is a task."""
    right = f"{must_be} a frozen pydantic model with the members of reverie.tasks.Task, as TaskSettings is"
    if not isinstance(task, type) or not issubclass(task, BaseModel):
        found = getattr(task, "__qualname__", type(task).__qualname__)
        raise OutsideError(f"{right}; {found} is {'another class' if isinstance(task, type) else 'no class'}")
    if not task.model_config.get("frozen"):
        raise OutsideError(f'{right}; {_of(task)} is not frozen: its model_config needs "frozen": True')
    abstract = getattr(task, "__abstractmethods__", frozenset())
    missing = [m for m in _MEMBERS if m in abstract or not (hasattr(task, m) or m in task.model_fields)]
    if missing:
        raise OutsideError(f"{right}; {_of(task)} lacks {', '.join(missing)}")
    return task
