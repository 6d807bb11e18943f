"""Reports and evidence as PDF, made by `excise pdf` in a process of its own: laying a page out takes many seconds."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from excise.common.errors import ConfigError
from excise.server.dashboard.access import Refused, Seen
from excise.server.dashboard.formats import without_paths
from excise.server.dashboard.runner import reason
from excise.server.dashboard.shown import shown_of

PATIENCE = 120.0
"""Most seconds that one takes."""
MOST = 16
"""Most PDFs that are kept."""
QUEUE = 4
"""Most who wait for one."""
printing = APIRouter()


class Printer:
    """Makes one PDF at a time, and keeps the last ones. For one event loop."""

    def __init__(self) -> None:
        self._one, self._waiting = asyncio.Semaphore(), 0
        self._made: dict[tuple[Path, int, int], bytes] = {}

    async def print(self, page: Path) -> bytes:
        """The PDF of a page.

        Raises
        ------
        ConfigError : it cannot be made; says why, and what to do
        Refused : too many wait
        """
        told = page.stat()
        key = (page, told.st_size, told.st_mtime_ns)
        if key in self._made:
            return self._made[key]
        if self._waiting >= QUEUE:
            raise Refused(429, "several PDFs are being made just now: try again in a minute", 60)
        self._waiting += 1
        try:
            async with self._one:
                if key not in self._made:
                    made = await _made(page)
                    if len(self._made) >= MOST:
                        self._made.pop(next(iter(self._made)))
                    self._made[key] = made
                return self._made[key]
        finally:
            self._waiting -= 1


async def _made(page: Path) -> bytes:
    called = f"{page.parent.name}/{page.name}"  # where the runs are is no browser's matter
    with tempfile.TemporaryDirectory(prefix="excise-pdf-") as folder:
        out = Path(folder, "page.pdf")
        command = [sys.executable, "-m", "excise.cli", "pdf", str(page), "--out", str(out)]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "1000"},
        )
        try:
            _, said = await asyncio.wait_for(process.communicate(), PATIENCE)
        except TimeoutError:
            raise ConfigError(f"the PDF was not made within {PATIENCE:.0f} s: excise pdf {called} makes it") from None
        finally:
            if process.returncode is None:  # it took too long, or the dashboard ends
                process.kill()
                await process.wait()
        if process.returncode != 0:
            told = without_paths(reason(said.decode(errors="replace")).replace(str(page), called))
            raise ConfigError(told or f"the PDF cannot be made: excise pdf {called} says why")
        return await run_in_threadpool(out.read_bytes)


@printing.get("/runs/{run}/{name}.pdf")
async def as_pdf(request: Request, session: Seen, run: str, name: str, download: bool = False) -> Response:
    """A report, or evidence, as PDF.

    Raises
    ------
    ConfigError : there is no such document, or it cannot be made a PDF of
    """
    page = await run_in_threadpool(shown_of(request).document, run, f"{name}.html")
    printer: Printer = request.app.state.printer
    made = await printer.print(page)
    how, called = "attachment" if download else "inline", quote(f"{run}-{name}.pdf", safe="")
    return Response(made, media_type="application/pdf", headers={"Content-Disposition": f"{how}; filename*=UTF-8''{called}"})
