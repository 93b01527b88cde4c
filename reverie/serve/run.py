"""Run a service until it is stopped, in one process or several over one store."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field

from reverie.errors import UserError, plain
from reverie.serve.app import create_app
from reverie.serve.connection import Connection
from reverie.serve.files import make_folder
from reverie.serve.guard import LOOPBACK
from reverie.serve.limits import Limits
from reverie.serve.refusal import Refusal
from reverie.serve.service import Service
from reverie.talk.sleeper import load_model

_SETTINGS = "REVERIE_SERVE"
_ALWAYS: dict[str, Any] = {
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "lifespan": "on",
    "http": Connection,
    "ws": "none",
    "timeout_graceful_shutdown": 10,  # seconds for answers that are being written when the server ends
    "timeout_worker_healthcheck": 60,  # seconds: loading a model may take long
}


class Settings(BaseModel):
    """How a server runs."""

    model: str
    store: Path
    device: str = "cpu"
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    int8: bool = False
    workers: int = 1
    idle_sleep_s: float | None = None
    limits: Limits = Field(default_factory=Limits)


def run(settings: Settings, tell: Callable[[str], None] = lambda sentence: None) -> None:
    """Serve until SIGTERM or Ctrl-C; `tell` gets a sentence that says where.

    Raises:
        UserError: the address is taken, there is no such model, or the store cannot be made.
    """
    with _bound(settings.host, settings.port) as sock:
        port = sock.getsockname()[1]
        told = f"[{settings.host}]" if ":" in settings.host else settings.host
        url = f"http://{told}:{port}"
        sentence = f"{url}/v1 serves {settings.model}, {url} is its page; its sessions are in {settings.store}"
        if settings.workers == 1:
            config = uvicorn.Config(app_of(settings), host=settings.host, port=port, **_ALWAYS)
            tell(sentence)
            return uvicorn.Server(config).run(sockets=[sock])
    load_model(settings.model, settings.device, int8=settings.int8)  # else each worker would tell what is wrong
    _make(settings.store)
    tell(sentence)
    os.environ[_SETTINGS] = settings.model_dump_json()  # for the workers, which are new processes
    name = f"{__name__}:{app_of_environment.__name__}"
    uvicorn.run(name, factory=True, workers=settings.workers, host=settings.host, port=port, **_ALWAYS)


def app_of(settings: Settings) -> FastAPI:
    """The application of one process."""
    write_log()
    sleeper = load_model(settings.model, settings.device, int8=settings.int8)
    _make(settings.store)
    idle = {"idle_sleep_s": settings.idle_sleep_s}
    service = Service(sleeper, settings.store, settings.keys, settings.limits, **idle)
    return create_app(service, hosts_of(settings.host))


def app_of_environment() -> FastAPI:
    """The application of a worker."""
    return app_of(Settings.model_validate_json(os.environ[_SETTINGS]))


def folder_for(store: str) -> Path:
    """The folder of a store. Raises UserError for what is none: a file, or the URL of an object store."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:[/:]", store) and not Path(store).drive:
        raise UserError(
            f"{plain(store)} is a URL, and sessions are kept in a folder, of a file system with locks: give its path"
        )
    if Path(store).exists() and not Path(store).is_dir():
        raise UserError(f"{store} is a file, not a folder to keep sessions in")
    return Path(store)


def _make(store: Path) -> None:
    """Make the folder of a store. Raises UserError where that cannot be."""
    try:
        make_folder(store)
    except Refusal as refusal:
        raise UserError(f"cannot keep sessions in {store}: {refusal}") from None


def _bound(host: str, port: int) -> socket.socket:
    """A socket at this address. Raises UserError where that cannot be."""
    try:
        [family, kind, number, _, address] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, number)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise UserError(f"cannot listen at {host}, port {port}: {error.strerror}") from None
    return sock


def hosts_of(host: str) -> Sequence[str]:
    """The names by which a server may be called that is bound to this address."""
    return LOOPBACK if host in LOOPBACK else ()


def write_log() -> None:
    """Lines of JSON on stderr, without what anybody said."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    log = logging.getLogger("reverie.serve")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        body = message if message.startswith("{") else json.dumps({"message": message})
        line = f'{{"time": "{self.formatTime(record)}", "level": "{record.levelname.lower()}", {body[1:]}'
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
