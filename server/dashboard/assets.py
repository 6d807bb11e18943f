"""Scripts, styles and pictures: read and compressed once, so that a browser's first look costs the server next to nothing."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

STATIC = Path(__file__).parent / "static"
assets = APIRouter()


@dataclass(frozen=True)
class Asset:
    """One file, plain and compressed; `tag` changes with its content."""

    plain: bytes
    packed: bytes
    kind: str
    tag: str


def _read(path: Path) -> Asset:
    content = path.read_bytes()
    kind = mimetypes.guess_type(path.name)[0] or "text/plain"
    return Asset(content, gzip.compress(content, mtime=0), kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


ASSETS = {str(path.relative_to(STATIC)): _read(path) for path in sorted(STATIC.rglob("*")) if path.is_file()}


@assets.get("/static/{name:path}")
async def asset(request: Request, name: str) -> Response:
    """A file of ours, or that it is as the browser has it.

    Raises
    ------
    HTTPException : there is none of this name
    """
    if name not in ASSETS:
        raise HTTPException(404)
    return answer(request, ASSETS[name])


def answer(request: Request, found: Asset) -> Response:
    """A file as a browser takes it."""
    headers = {"ETag": found.tag, "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == found.tag:
        return Response(status_code=304, headers=headers)
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(found.plain, media_type=found.kind, headers=headers)
    return Response(found.packed, media_type=found.kind, headers=headers | {"Content-Encoding": "gzip"})
