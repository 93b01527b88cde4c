"""What a session knows: its time, its log, and what earlier calls found out."""

from __future__ import annotations

import hashlib
import io
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

import reverie
from reverie.errors import UserError
from reverie.files import write_atomic

RECORD_NAME = "session.json"
LOG_NAME = "log.txt"
RESERVE_S = 40.0  # of a call: to stop training, draw figures and write the parts
RESERVE_SHARE = 0.12  # of a short call
GRACE_S = 15.0  # for a step, and a checkpoint, that are going when the time is up
MEASURED = ("ceilings", "kernels", "ways")  # anew on another machine, or of other code
TELLING = ("device", "cpu", "gpu", "compute_capability", "versions", "code")  # that it is another one


class Budget:
    """The seconds of one call, counted from `begun` (of `time.monotonic`) or from now."""

    def __init__(self, seconds: float, begun: float | None = None) -> None:
        self.seconds, self._begun = seconds, time.monotonic() if begun is None else begun

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._begun

    @property
    def left(self) -> float:
        """For whatever leaves nothing to be written but the results."""
        return self.seconds - self.elapsed - min(RESERVE_S, RESERVE_SHARE * self.seconds)

    def share(self, share: float, most: float) -> float:
        """The seconds that a part may take that should leave time for others."""
        return max(min(share * self.seconds, most, self.left), 0.0)


class Log:
    """Lines with the time of the call in front, on the terminal and in the state folder."""

    def __init__(self, path: Path, budget: Budget) -> None:
        self._path, self._budget = path, budget
        lines: Any = _Lines(self)
        self.console = Console(file=lines, width=160, force_terminal=False, no_color=True)

    def say(self, text: str) -> None:
        for line in text.rstrip("\n").split("\n"):
            stamped = f"[{self._budget.elapsed:6.1f} s] {line.rstrip()}"
            print(stamped, flush=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(stamped + "\n")


class _Lines(io.TextIOBase):
    """What a rich console writes, line by line into the log."""

    def __init__(self, log: Log) -> None:
        self._log, self._begun = log, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._log.say(line)
        return len(text)


class Record(dict[str, Any]):
    """`session.json` in the state folder: what is measured, chosen and done. Saved after every change."""

    def __init__(self, path: Path, plan: str) -> None:
        super().__init__({"kind": "gpu-session", "plan": plan, "calls": [], "groups": {}, "runs": {}})
        self._path = path
        if path.is_file():
            self.update(_read(path))
        if self["plan"] != plan:
            raise UserError(f"{path.parent} holds the state of plan {self['plan']}, not {plan}: give another --state")

    def begin_call(self, seconds: float) -> None:
        self["calls"].append({"date": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": seconds})
        self.save()

    def note_machine(self, found: dict[str, Any]) -> None:
        """Forget what was measured on another machine, with other libraries, or of other code."""
        found, before = found | {"code": code_hash()}, self.get("machine", {})
        telling = [key for key in TELLING if key != "cpu" or not found.get("gpu")]
        if any(before.get(key) != found.get(key) for key in telling):
            for key in MEASURED:
                self.pop(key, None)
        self["machine"] = found
        self.save()

    def note_run(self, name: str, **facts: Any) -> None:
        self["runs"][name] = {**self["runs"].get(name, {"notes": []}), **facts}
        self.save()

    def add_note(self, name: str, note: str) -> None:
        """A sentence that belongs beside the card of a run."""
        notes = self["runs"].get(name, {}).get("notes", [])
        self.note_run(name, notes=[*notes, note])

    def save(self) -> None:
        write_atomic(self._path, (json.dumps(self, indent=1) + "\n").encode())


def code_hash() -> str:
    """Of the package that runs: there may be no commit where there is no repository."""
    package = Path(reverie.__file__).parent
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{path} is not the record of a session ({error}): delete it, the runs beside it stay"
        ) from None
    if not isinstance(content, dict) or content.get("kind") != "gpu-session":
        raise UserError(f"{path} is not the record of a session: give another --state")
    return content
