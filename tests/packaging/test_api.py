"""The Python of the coordinator's service is what its proto makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_generated_modules_are_those_of_the_proto(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "generate_api.py", tmp_path], check=True, cwd=ROOT)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["coordinator_pb2.py", "coordinator_pb2.pyi", "coordinator_pb2_grpc.py"]
    for name in made:
        assert (tmp_path / name).read_text() == (ROOT / "common" / "api" / name).read_text(), (
            f"scripts/generate_api.py: {name}"
        )
