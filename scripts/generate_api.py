"""Make the Python of the coordinator's service from common/api/coordinator.proto; a test compares it with what is committed.

.venv/bin/python scripts/generate_api.py [FOLDER]     into common/api, or another folder
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

API = Path(__file__).resolve().parent.parent / "common" / "api"
NAME = "coordinator"


def generate(to: Path) -> None:
    """Write the generated modules into `to`."""
    with tempfile.TemporaryDirectory() as root:
        package = Path(root, "excise", "common", "api")  # the generated modules import each other by this path
        package.mkdir(parents=True)
        shutil.copy(API / f"{NAME}.proto", package)
        outputs = [f"--{kind}_out={root}" for kind in ("python", "pyi", "grpc_python")]
        source = f"excise/common/api/{NAME}.proto"
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", *outputs, source], check=True, cwd=root)
        for made in package.glob(f"{NAME}_pb2*"):
            shutil.copy(made, to)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else API)
