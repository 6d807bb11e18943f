"""Check the types of excise: mypy over a tree of links shaped as the wheel is.

In a checkout `excise.common` is the folder `common/`, found at run time through the `__path__` of `excise/__init__.py`.
mypy does not run code, so it would see none of it. Hence ``build/typing/excise/``, which links every module and package to
where the wheel will hold it; what mypy says of a link is printed with the name of the file behind it.

    .venv/bin/python scripts/typecheck.py
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = ("client", "common", "server", "simulations")
ROOT = Path(__file__).resolve().parent.parent


def link_tree(root: Path, tree: Path) -> None:
    """Make `tree`/excise anew: links to what `root` holds in excise/ and in the packages beside it."""
    package = tree / "excise"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for source in [*(root / "excise").glob("*.py"), *(root / name for name in PACKAGES)]:
        (package / source.name).symlink_to(source)


def check(tree: Path, config: Path, cache: Path) -> tuple[int, str]:
    """Run mypy over `tree`/excise; return its exit code and what it says, file names as in the checkout."""
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(cache), "-p", "excise"]
    # mypy looks into the current folder first; from the checkout's root it would find excise/ without the links
    run = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    return run.returncode, re.sub(rf"^excise/(?=({'|'.join(PACKAGES)})/)", "", run.stdout + run.stderr, flags=re.MULTILINE)


def main() -> int:
    """Check this checkout; the exit code is mypy's."""
    tree = ROOT / "build" / "typing"
    link_tree(ROOT, tree)
    code, report = check(tree, ROOT / "pyproject.toml", ROOT / ".mypy_cache")
    print(report, end="")
    return code


if __name__ == "__main__":
    sys.exit(main())
