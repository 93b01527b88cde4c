"""The server of `reverie serve` under Ray Serve: replicas on the machines of a cluster, over one store.

    python examples/ray_serve.py --model example --store served --replicas 2

The store is a folder that all of these machines have, of a file system with locks. The environment variable
REVERIE_API_KEYS has the keys, separated by spaces. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ray import serve  # pyright: ignore[reportMissingImports]

from reverie.errors import UserError
from reverie.serve.guard import LOOPBACK
from reverie.serve.run import Settings, app_of, folder_for
from reverie.talk.sleeper import load_model


def application(settings: Settings, replicas: int) -> Any:
    """What Ray Serve runs: each replica makes the ASGI application for itself, with a model of its own."""

    def build() -> Any:
        return app_of(settings)

    limits = settings.limits
    deployment = serve.deployment(
        serve.ingress(build)(),
        name="reverie",
        num_replicas=replicas,
        # More than a replica takes on, which tells the others by 429 to come again.
        max_ongoing_requests=2 * (limits.running + limits.waiting),
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if settings.device == "cuda" else 0},
    )
    return deployment.bind()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="example", help="as for reverie serve")
    parser.add_argument("--store", default="served")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cuda gives every replica one GPU")
    options = parser.parse_args()
    keys = tuple(os.environ.get("REVERIE_API_KEYS", "").split())
    model = str(Path(options.model).resolve()) if Path(options.model).exists() else options.model
    try:
        store = folder_for(options.store)
        load_model(model)  # what is wrong with it is told once, and at once
        if options.host not in LOOPBACK and not keys:
            raise UserError(f"--host {options.host} lets others in: set REVERIE_API_KEYS")
    except UserError as error:
        parser.error(str(error))
    where: dict[str, Any] = {"host": options.host, "port": options.port}
    settings = Settings(model=model, store=store.resolve(), device=options.device, keys=keys, **where)
    serve.start(http_options=where)
    # Ray's own log of requests would have the ids in their paths.
    serve.run(application(settings, options.replicas), logging_config={"enable_access_log": False}, blocking=True)


if __name__ == "__main__":
    main()
