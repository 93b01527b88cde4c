"""File format of memories, in safetensors, and its checks.

    metadata   `format`, `memory` (JSON: how it was made, what each tensor is), `sha256` of that JSON and the tensors
    tensors    fast_weights.{block}, cache.{block}.{field} under sliding eviction, history.{name}

Nothing is unpickled, and no name in a file is used as a path or as code: unknown names are refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from reverie.errors import UserError, plain
from reverie.files import opened
from reverie.memory.fingerprint import content_hash
from reverie.memory.history import History
from reverie.model import CACHE_ENTRIES, State
from reverie.sleep import SleepConfig

FORMAT = "reverie memory 1"
MOST_HEADER_BYTES = 2**22
MOST_NOTES_BYTES = 2**16
FIRST_BYTES = 2**16  # read first; longer than the header of most memories
MOST_PASSES = 10_000  # largest N in a memory's config
_LENGTH_BYTES = 8  # of the number before the header, which is its length

# No control characters but line breaks and tabs: others could steer a terminal.
Text = Annotated[str, Field(pattern=r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]

Fetch = Callable[[int], bytes]
"""Returns the first n bytes of a file, or all if there are fewer."""


def _bounded(config: SleepConfig) -> SleepConfig:
    """Refuse more than `MOST_PASSES`: a file must not make the next sleep endless."""
    if config.num_sleep_passes > MOST_PASSES:
        raise ValueError(f"more than {MOST_PASSES:,} passes")
    return config


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MemoryInfo(_Strict):
    """Description of a memory in its file's header, readable without its tensors."""

    tokens: list[Count] = Field(min_length=1, description="number consolidated, by row of the batch")
    passes: list[Count] = Field(description="number spent, by row")
    config: Annotated[SleepConfig, AfterValidator(_bounded)]
    fingerprint: str = Field(pattern="^[0-9a-f]{64}$")
    notes: dict[Text, Text]
    nbytes: Count = Field(description="of all tensors")
    created: str = Field(pattern=r"^[0-9T:+-]{1,40}$")
    made_with: dict[Text, Text] = Field(default={}, description="function.py; not in files of earlier versions")
    accepted: list[Text] = Field(default=[], description="what differed where it was loaded with approximate=True")

    @model_validator(mode="after")
    def _fits(self) -> MemoryInfo:
        if len(self.tokens) != len(self.passes):
            raise ValueError("tokens and passes have different numbers of rows")
        return self


class Part(_Strict):
    """Description of one block: its cache's type and fields, with names in the place of tensors."""

    fast_weights: bool
    cache: str | None
    fields: dict[str, Any]


class _Content(_Strict):
    info: MemoryInfo
    parts: list[Part]
    history: bool


class Header(NamedTuple):
    """The checked header of a file."""

    content: _Content
    text: str  # the JSON of `content`
    sha256: str
    tensors: dict[str, tuple[tuple[int, ...], str]]  # shape, and dtype as safetensors writes it
    history_bytes: int
    file_bytes: int

    @property
    def info(self) -> MemoryInfo:
        return self.content.info


class Content(NamedTuple):
    """Content of a file, checked against its header and checksum."""

    info: MemoryInfo
    state: State
    history: dict[str, Tensor] | None

    def recorded(self, where: str) -> History | None:
        """The history, if there is one. Raises UserError, in which the file is called `where`, if it is none."""
        try:
            return None if self.history is None else History.from_tensors(self.history)
        except ValueError as error:
            raise UserError(f"{where} is not a memory: {error}") from None


def to_bytes(info: MemoryInfo, state: State, history: Mapping[str, Tensor] | None) -> bytes:
    """The bytes of a file. Raises UserError for notes above `MOST_NOTES_BYTES`."""
    if len(json.dumps(info.notes).encode()) > MOST_NOTES_BYTES:
        raise UserError(f"the notes of a memory must fit into {MOST_NOTES_BYTES // 2**10} KiB")
    parts, tensors = described(state)
    tensors |= {f"history.{name}": x for name, x in (history or {}).items()}
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    text = _Content(info=info, parts=parts, history=history is not None).model_dump_json()
    return save_safetensors(tensors, {"format": FORMAT, "memory": text, "sha256": _checksum(text, tensors)})


def described(state: State) -> tuple[list[Part], dict[str, Tensor]]:
    """The description of each block of a state, and the tensors by name."""
    parts, tensors = [], dict[str, Tensor]()
    for i, (fast_weights, entry) in enumerate(zip(state.fast_weights, state.cache, strict=True)):
        if fast_weights is not None:
            tensors[f"fast_weights.{i}"] = fast_weights
        fields = {} if entry is None else _named(entry, f"cache.{i}", tensors)
        kind = None if entry is None else type(entry).__name__
        if kind is not None and CACHE_ENTRIES.get(kind) is not type(entry):
            raise UserError(
                f"the mixer of block {i} keeps a {kind}, which is to be named as its cache: a file of a memory "
                "could not be read again"
            )
        parts.append(Part(fast_weights=fast_weights is not None, cache=kind, fields=fields))
    return parts, tensors


def header_size(start: bytes, where: str) -> int:
    """Number of bytes before the tensors, from the first eight or more bytes of a file.

    Raises UserError if no memory begins so; sentences call the file `where`.
    """
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if len(start) < _LENGTH_BYTES or not 2 <= length <= MOST_HEADER_BYTES:
        raise UserError(f"{where} is not a memory: it does not begin like one that reverie wrote")
    return _LENGTH_BYTES + length


def read_header(start: bytes, where: str) -> Header:
    """Read and check the header, from the first `header_size` or more bytes of a file.

    Raises UserError if it is not the header of a memory.
    """
    end = header_size(start, where)
    if len(start) < end:
        raise UserError(f"{where} is cut short: it ends within its header")
    try:
        entries = json.loads(start[_LENGTH_BYTES:end])
        metadata = entries.pop("__metadata__")
        text, sha256, format = metadata["memory"], metadata["sha256"], metadata["format"]
        ends = [0, *(entry["data_offsets"][1] for entry in entries.values())]
        tensors = {name: (tuple(map(int, entry["shape"])), str(entry["dtype"])) for name, entry in entries.items()}
        spans = {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in entries.items()}
        history_bytes = int(sum(span for name, span in spans.items() if name.startswith("history.")))
        size = int(max(ends))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, OverflowError):
        raise UserError(f"{where} is not a memory: its header is not one that reverie wrote") from None
    if format != FORMAT:
        raise UserError(f"{where} is not a memory of this version: its format is {format!r:.40}, not {FORMAT!r}")
    try:
        content = _Content.model_validate_json(text)
    except (ValidationError, TypeError) as error:
        fault = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "no text"}
        place = plain(".".join(map(str, fault["loc"])))[:60] or "all of it"
        message = plain(str(fault["msg"]))[:80]
        raise UserError(f"{where} is not a memory: its description is wrong at {place} ({message})") from None
    if content.info.nbytes != size or not isinstance(sha256, str):
        raise UserError(f"{where} is not a memory: its header does not agree with itself")
    return Header(content, text, sha256, tensors, history_bytes, end + size)


def read_info(source: bytes | str | Path, where: str | None = None, *, size: int | None = None) -> MemoryInfo:
    """Read the description of a memory without its tensors.

    Args:
        source: the path of a file, or its first `header_size` or more bytes.
        where: what sentences call the file; its path if absent.
        size: bytes of the whole file, if `source` is its beginning and the size is known.

    Raises:
        UserError: it is not a memory, or is cut short.
    """
    if isinstance(source, bytes):
        start, where = source, where or "this"
    else:
        path, where = Path(source), where or str(source)
        start = _beginning(file_reader(path), where)
        size = path.stat().st_size
    header = read_header(start, where)
    if size is not None:
        _check_size(header, size, where)
    return header.info


def read_memory(fetch: Fetch, where: str, check: Callable[[Header], None] = lambda header: None) -> Content:
    """Read a file; sentences call it `where`. `check` may refuse its header before a tensor is read.

    Raises:
        UserError: it is no memory, is cut short or was changed, `check` refuses it, or `fetch` raises it.
    """
    start = _beginning(fetch, where)
    checked = read_header(start, where)
    check(checked)
    size = checked.file_bytes
    data = start if size < FIRST_BYTES else fetch(size + 1)  # one more byte shows a file that is too long
    header = read_header(data, where)
    if header != checked:  # the file was replaced meanwhile; a check hashes the whole model
        check(header)
    _check_size(header, len(data), where)
    try:
        tensors = load_safetensors(data)
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{where} is not a memory: {str(error).splitlines()[0]:.120}") from None
    if _checksum(header.text, tensors) != header.sha256:
        raise UserError(f"{where} was changed after it was written: its checksum is wrong")
    history = {name.removeprefix("history."): tensors.pop(name) for name in [*tensors] if name.startswith("history.")}
    try:
        state = _state(header.content.parts, tensors)
    except (KeyError, TypeError):
        raise UserError(f"{where} is not a memory: its tensors are not those that its header describes") from None
    if tensors or bool(history) != header.content.history:
        raise UserError(f"{where} is not a memory: it holds tensors that its header does not describe")
    return Content(header.info, state, history if header.content.history else None)


def file_reader(path: Path) -> Fetch:
    """A function that reads the first n bytes of a file. It raises UserError if there is none, or it cannot be read."""

    def fetch(end: int) -> bytes:
        try:
            with opened(path) as file:
                return file.read(min(end, os.fstat(file.fileno()).st_size))  # else `end` bytes would be allocated
        except FileNotFoundError:
            raise UserError(f"there is no memory at {path}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {plain(str(path))}: {getattr(error, 'strerror', None) or error}") from None

    return fetch


def _beginning(fetch: Fetch, where: str) -> bytes:
    """The header and perhaps more, all from one version of the file."""
    wanted = FIRST_BYTES
    while (needed := header_size(start := fetch(wanted), where)) > wanted:
        wanted = needed
    return start


def _check_size(header: Header, size: int, where: str) -> None:
    if size != header.file_bytes:
        fault = "is cut short" if size < header.file_bytes else "is too long"
        raise UserError(f"{where} {fault}: it holds {size:,} of {header.file_bytes:,} bytes")


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    return content_hash(text, ((f"{name} ", x) for name, x in sorted(tensors.items())))


def _named(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` with each tensor replaced by its name; the tensors are added to `tensors`."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, tuple):
        fields = value._asdict().items() if hasattr(value, "_asdict") else enumerate(value)  # pyright: ignore
        parts = {str(key): _named(part, f"{name}.{key}", tensors) for key, part in fields}
        return parts if hasattr(value, "_asdict") else [*parts.values()]
    return value


def _state(parts: list[Part], tensors: dict[str, Tensor]) -> State:
    """Build the state and remove its tensors from `tensors`. Raises KeyError or TypeError if they do not fit."""
    fast_weights = [tensors.pop(f"fast_weights.{i}") if part.fast_weights else None for i, part in enumerate(parts)]
    fields = [{key: _value(value, tensors) for key, value in part.fields.items()} for part in parts]
    cache = (CACHE_ENTRIES[part.cache](**of) if part.cache else None for part, of in zip(parts, fields, strict=True))
    return State(tuple(fast_weights), tuple(cache))


def _value(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return tensors.pop(value["tensor"])
    if isinstance(value, list):
        return tuple(_value(part, tensors) for part in value)
    if value is None or isinstance(value, int | float):
        return value
    raise TypeError(f"no part of a cache: {value!r}")
