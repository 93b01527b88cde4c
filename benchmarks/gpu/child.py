"""The process of `worker.py`, seen from the session: jobs go in, results come out; started anew when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

Kind = Literal["refused", "memory", "failed", "stopped", "died", "overdue"]
START_S = 180.0  # for imports, and for CUDA
PATIENCE_S = 15.0  # with a process that was asked to end
OVERDUE_PATIENCE_S = 4.0  # with one that should have ended already
LAST_WORDS = 3  # lines


class JobFailed(Exception):
    """A job has no result; `kind` says why, and the sentence goes into the log."""

    def __init__(self, kind: Kind, reason: str) -> None:
        self.kind: Kind = kind
        super().__init__(reason)


class Child:
    """At most one process, started when a job needs it."""

    def __init__(self, device: str, folder: Path, environment: Mapping[str, str]) -> None:
        """`folder` is where it works, and where what it says in its own words is kept."""
        self._device, self._folder, self._environment = device, folder, environment
        self._errors = folder / "errors.txt"
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._said = 0  # bytes of the file of errors before this process

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def do(
        self,
        job: str,
        *,
        limit: float,
        on_event: Callable[[dict[str, Any]], None] = lambda event: None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """The result of a job.

        Raises:
            JobFailed: it went wrong, took longer than `limit` seconds, or its process died.
        """
        deadline = time.monotonic() + limit
        self._start(deadline)
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died; that is what the answers will say
            self._process.stdin.write(json.dumps({"do": job, **arguments}) + "\n")
            self._process.stdin.flush()
        while True:
            answer = self._next(deadline)
            if "result" in answer:
                return {**answer["result"], "job_s": answer["seconds"]}
            if "kind" in answer:  # in words that mean the same in another folder
                raise JobFailed(answer["kind"], answer["error"].replace(f"{self._folder}/", ""))
            on_event(answer)

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """End the process: after its step, if it is training."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
        # And what it has started itself: processes that make data, or compile.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _start(self, deadline: float) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._answers = queue.Queue()
        with self._errors.open("a", encoding="utf-8") as errors:
            self._said = errors.tell()
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("worker.py")), self._device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=dict(self._environment),
                cwd=self._folder,
                start_new_session=True,  # a Ctrl-C is for the session, which passes it on
            )
        threading.Thread(target=_listen, args=(self._process.stdout, self._answers), daemon=True).start()
        while "ready" not in self._next(min(deadline, time.monotonic() + START_S)):
            pass

    def _next(self, deadline: float) -> dict[str, Any]:
        try:
            answer = self._answers.get(timeout=max(deadline - time.monotonic(), 0.0))
        except queue.Empty:
            self.close(OVERDUE_PATIENCE_S)
            raise JobFailed("overdue", "it took longer than there was time for") from None
        if answer is None:
            assert self._process is not None
            code = self._process.wait()
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            self.close()
            raise JobFailed("died", f"its process died ({how}){self._last_words()}")
        return answer

    def _last_words(self) -> str:
        with self._errors.open(encoding="utf-8", errors="replace") as errors:
            errors.seek(self._said)
            lines = [line.strip() for line in errors if line.strip()]
        return f": {' | '.join(lines[-LAST_WORDS:])}"[:600] if lines else ""


def _listen(stream: Any, answers: queue.Queue[dict[str, Any] | None]) -> None:
    for line in stream:
        with contextlib.suppress(ValueError):
            answers.put(dict(json.loads(line)))
    answers.put(None)
