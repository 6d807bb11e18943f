"""What code runs: a digest over the source of installed packages, which evidence names."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from types import ModuleType


@lru_cache
def source_digest(*packages: ModuleType) -> str:
    """SHA-256 over the Python files of packages, by name and content; 64 hexadecimal digits."""
    sha = hashlib.sha256()
    for package in packages:
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            sha.update(f"{package.__name__}/{path.relative_to(root).as_posix()}\n".encode())
            sha.update(hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()
