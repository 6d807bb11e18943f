"""The golden trajectory of the boundary search: how its losses move on a model small enough to check by hand.

After a change that is meant to move the search, from the root of the checkout:

    PYTHONPATH=. python tests/golden/regenerate.py

and commit the new ``search.txt`` with the reason. Weights and images are written out, and the noise has fewer than 16 numbers
a step, which torch draws one by one: no processor draws them otherwise.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from excise.client.unlearning.boundary import boundary_search, path_losses
from excise.common.settings import SearchSettings

GOLDEN = Path(__file__).with_name("search.txt")

X = [[0.10, 0.20, 0.30, 0.90], [0.80, 0.70, 0.05, 0.40], [0.50, 0.00, 1.00, 0.60]]
Y = [0, 1, 2]
CASES = {
    "plain": SearchSettings(epsilon=0.3, eta=0.05, max_steps=8, stop="never"),
    "pulled back": SearchSettings(epsilon=0.3, eta=0.05, max_steps=8, stop="never", lam=4.0, lam_schedule="inverse"),
    "noisy": SearchSettings(epsilon=0.3, eta=0.05, max_steps=8, stop="never", gamma=0.5),
    "until crossed": SearchSettings(epsilon=0.5, eta=0.02, max_steps=8, stop="crossed"),
    "boundary shrink": SearchSettings(epsilon=0.1, eta=0.1, max_steps=1, stop="never"),
}


def _model() -> nn.Module:
    first, last = nn.Linear(4, 3).double(), nn.Linear(3, 3).double()
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[2.0, -1.0, 0.5, 1.5], [-1.0, 2.0, -1.5, 0.5], [0.5, -0.5, 2.0, -1.0]]))
        first.bias.copy_(torch.tensor([-0.5, 0.25, 0.1]))
        last.weight.copy_(torch.tensor([[1.5, -1.0, 0.2], [-0.7, 1.8, -0.4], [-0.3, -0.6, 1.6]]))
        last.bias.copy_(torch.tensor([0.2, 0.1, -0.1]))
    return nn.Sequential(first, nn.Tanh(), last)


def trajectory() -> str:
    """One block a case: losses of every image at every step, then the mean ascent and the steps taken."""
    x, y_N = torch.tensor(X, dtype=torch.float64), torch.tensor(Y)
    lines = []
    for name, search in CASES.items():
        path = boundary_search(_model(), x, y_N, search, Generator().manual_seed(0))
        lines.append(f"# {name}")
        lines += [f"{t:2d}  {_row(losses_N)}" for t, losses_N in enumerate(path_losses(path.logits_TNC, y_N))]
        lines.append(f"ascent {_row(path.ascent_T)}")
        lines.append(f"steps {path.steps_N.tolist()}")
    return "\n".join(lines) + "\n"


def _row(values: Tensor) -> str:
    return " ".join(f"{value:.5f}" for value in values.tolist())


if __name__ == "__main__":
    GOLDEN.write_text(trajectory(), encoding="utf-8")
