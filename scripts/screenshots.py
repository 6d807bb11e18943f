"""Makes the pictures of docs/dashboard.md from the runs of a folder: python scripts/screenshots.py RUNS [OUT]."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from excise.simulations.bench.browser import SIZE, chromium


def main(runs: Path, out: Path) -> None:
    """Write one picture a page."""
    command = [sys.executable, "-m", "excise.cli", "dashboard", "--runs", str(runs), "--port", "0"]
    shown = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert shown.stderr is not None
    try:
        address = re.search(r"Open (\S+)", shown.stderr.readline())
        assert address, "the dashboard does not begin"
        base = address[1].partition("/enter")[0]
        names = sorted((path.parent.name for path in runs.glob("*/metrics.json")), reverse=True)
        out.mkdir(parents=True, exist_ok=True)
        with chromium() as browser:
            for theme, name, path in (
                ("light", "overview", "/"),
                ("light", "compare", f"/compare?a={names[0]}&b={names[min(1, len(names) - 1)]}"),
                ("dark", "embeddings", "/embeddings"),
            ):
                page = browser.new_context(viewport=SIZE, color_scheme=theme).new_page()  # type: ignore[arg-type]
                page.goto(address[1])
                page.goto(base + path)
                page.wait_for_function("() => document.getElementById('live').textContent === 'live'")
                page.wait_for_timeout(1500)  # charts
                page.screenshot(path=out / f"dashboard-{name}.png")
    finally:
        shown.terminate()
        shown.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs/images"))
