"""`create_app`: the routes, and what every error is answered by."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from reverie.errors import UserError
from reverie.serve import completions, memories_routes, page, responses_routes, shapes
from reverie.serve.asked import account_of, refusal_of, service_of
from reverie.serve.described import ERRORS, gives, gives_bytes
from reverie.serve.guard import Guard, headers_of
from reverie.serve.refusal import Refusal, not_found
from reverie.serve.service import Service

router = APIRouter()


def create_app(service: Service, hosts: Collection[str] = ()) -> FastAPI:
    """The application, which starts the service and stops it.

    Args:
        hosts: as for `Guard`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.start)
        try:
            yield
        finally:
            await asyncio.to_thread(service.stop)

    app = FastAPI(title="reverie serve", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service, app.state.created = service, int(time.time())
    for part in (completions.router, responses_routes.router, memories_routes.router, page.router, router):
        app.include_router(part, responses=ERRORS)
    for kind in (Refusal, UserError, RequestValidationError, OSError, Exception):
        app.add_exception_handler(kind, _refused)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_middleware(Guard, service=service, hosts=hosts)
    return app


@router.get("/healthz")
async def healthz(request: Request) -> Response:
    """Whether the model answers."""
    alive = service_of(request).engine.alive
    return JSONResponse({"status": "ok" if alive else "the engine has stopped"}, 200 if alive else 503)


@router.get("/metrics", response_class=Response, responses=gives_bytes("text/plain"))
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/v1/models", responses=gives("list"))
async def list_models(request: Request) -> Response:
    """The model, and each memory as one more."""
    service, names = service_of(request), await asyncio.to_thread(account_of(request).memories.names)
    models = [service.name, *(f"{service.name}@{name}" for name in names)]
    return JSONResponse({"object": "list", "data": [shapes.model(id, request.app.state.created) for id in models]})


@router.get("/v1/models/{id:path}", responses=gives("model"))
async def get_model(request: Request, id: str) -> Response:
    """One of these."""
    service = service_of(request)
    name, at, memory = id.partition("@")
    if name != service.name or (at and memory not in await asyncio.to_thread(account_of(request).memories.names)):
        raise not_found("model of that name", "model_not_found", "model")
    return JSONResponse(shapes.model(id, request.app.state.created))


async def _refused(request: Request, error: Exception) -> Response:
    refusal = refusal_of(error)
    return JSONResponse(refusal.body, refusal.status, headers=headers_of(refusal))


async def _of_http(request: Request, error: Exception) -> Response:
    """What the router itself refuses."""
    assert isinstance(error, HTTPException)
    said = {404: "there is nothing at this address", 405: "this address does not take that method"}
    refusal = Refusal(error.status_code, said.get(error.status_code, "the request cannot be read"), code="no_route")
    return JSONResponse(refusal.body, refusal.status, headers=error.headers)
