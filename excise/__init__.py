"""excise: cut what must be forgotten out of a deployed medical-imaging model, across hospitals, without moving data.

In a checkout the sub-packages ``common``, ``client``, ``server`` and ``simulations`` stand beside this folder; in a wheel
they stand inside it. Either way they are imported as ``excise.common``, ``excise.client`` and so on (docs/adr/0001-layout.md).
"""

from pathlib import Path

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "common" / "__init__.py").is_file():
    __path__.append(str(_root))

__version__ = "0.1.0"
