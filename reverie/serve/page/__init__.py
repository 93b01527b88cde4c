"""The page at `/`: files that are served as they are, for who has no key too, since they hold nothing that was said."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

_FOLDER = Path(__file__).parent
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY = (
    "default-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "object-src 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
_HEADERS = {
    "content-security-policy": "; ".join(_POLICY),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
FILES = {f"/page/{path.name}": path for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES}
PAGE = ("/", *FILES)
router = APIRouter(include_in_schema=False)


async def _file(request: Request) -> Response:
    path = FILES.get(request.scope["route"].path, _FOLDER / "index.html")
    return Response(path.read_bytes(), media_type=_TYPES[path.suffix], headers=_HEADERS)


for _path in PAGE:
    router.add_api_route(_path, _file, methods=["GET", "HEAD"])
