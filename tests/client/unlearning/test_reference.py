"""How uncertain the teacher would be on forget images that it had never seen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from excise.client.unlearning.reference import as_if_unseen, loss_quantiles, reference_by_stratum

_losses = st.lists(st.floats(0, 9, width=32), min_size=1, max_size=12).map(lambda values: torch.tensor(sorted(values)))


def slowly(losses_N: Tensor, trained_Q: Tensor, unseen_Q: Tensor) -> list[float]:
    """The unseen loss of each image's rank among trained images, ascending."""
    found = []
    for loss in losses_N.tolist():
        below = sum(t < loss for t in trained_Q.tolist()) + sum(t <= loss for t in trained_Q.tolist())
        place = below / (2 * len(trained_Q)) * (len(unseen_Q) - 1)
        low, high = int(place), min(int(place) + 1, len(unseen_Q) - 1)
        found.append(unseen_Q[low].item() * (1 - place + low) + unseen_Q[high].item() * (place - low))
    return sorted(found)


def of_one_class(losses_N: Tensor, trained_Q: Tensor, unseen_Q: Tensor) -> Tensor:
    y_N = torch.full((len(losses_N),), 4)
    return as_if_unseen(losses_N, y_N, {4: trained_Q.double()}, {4: unseen_Q.double()})[4]


def test_quantiles_are_evenly_spaced() -> None:
    assert loss_quantiles(torch.arange(101.0), 2).tolist() == [25.0, 75.0]


@given(losses=_losses, trained=_losses, unseen=_losses)
def test_each_image_gets_the_unseen_loss_of_its_rank(losses: Tensor, trained: Tensor, unseen: Tensor) -> None:
    expected = loss_quantiles(torch.tensor(slowly(losses, trained, unseen)).double(), len(unseen))
    torch.testing.assert_close(of_one_class(losses, trained, unseen), expected, atol=1e-4, rtol=1e-4)


def test_images_like_the_retain_images_are_calibrated_on_the_unseen_ones_as_they_are() -> None:
    generator = Generator().manual_seed(0)
    trained, unseen = (torch.rand(4000, generator=generator) ** 3 for _ in range(2))
    reference_Q = loss_quantiles(2 * unseen + 0.1, 32)
    found_Q = of_one_class(torch.rand(4000, generator=generator) ** 3, loss_quantiles(trained, 200), reference_Q)
    torch.testing.assert_close(found_Q, reference_Q, atol=0.05, rtol=0.1)


def test_easier_images_are_asked_for_less_and_harder_ones_for_more() -> None:
    trained_Q, unseen_Q = loss_quantiles(torch.rand(999), 64), loss_quantiles(3 * torch.rand(999), 64)
    easy, hard = (of_one_class(losses, trained_Q, unseen_Q).mean() for losses in (0.3 * torch.rand(99), 0.7 + torch.rand(99)))
    assert float(easy) < float(unseen_Q.mean()) < float(hard)


def test_each_side_of_each_label_has_its_own() -> None:
    losses, y_NL = torch.rand(20, 2), torch.ones(20, 2)
    y_NL[:7, 1] = 0
    trained, unseen = ({s: torch.rand(q).sort().values.double() for s in (1, 2, 3)} for q in (8, 6))
    found = as_if_unseen(losses, y_NL, trained, unseen)
    for s, own in {1: losses[:, 0], 2: losses[:7, 1], 3: losses[7:, 1]}.items():
        torch.testing.assert_close(found[s], of_one_class(own, trained[s].float(), unseen[s].float()))
    assert list(found) == [1, 2, 3]  # everybody has the first label: nothing is 0
    found = reference_by_stratum(losses, y_NL, 4, torch.tensor([[0.0, 0.0]]))
    torch.testing.assert_close(found[0], loss_quantiles(losses[:7, 1], 4))  # nobody lacks it: as another label's absence
    torch.testing.assert_close(found[2], loss_quantiles(losses[:7, 1], 4))


def test_one_level_is_that_level() -> None:
    assert of_one_class(torch.tensor([0.5]), torch.tensor([1.0, 2.0]), torch.tensor([0.7])).tolist() == pytest.approx([0.7])


def test_each_class_has_its_own_and_one_without_images_that_of_all() -> None:
    losses_N, y_N = torch.tensor([1.0, 1.0, 3.0]), torch.tensor([0, 0, 1])
    found = reference_by_stratum(losses_N, y_N, 1, of=torch.tensor([1, 2, 2]))
    assert {c: q.tolist() for c, q in found.items()} == {1: [3.0], 2: [1.0]}
