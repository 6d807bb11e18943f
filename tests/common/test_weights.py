"""Weights: a digest that sees every difference and no order, and files that are old or new but never half."""

from __future__ import annotations

import errno
import gc
import io
import os
import pickle
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from excise.common.errors import DataError, StorageError
from excise.common.weights import (
    Weights,
    difference,
    digest,
    floating,
    is_statistic,
    load_weights,
    moved,
    norm,
    save_weights,
    snapshot,
)


def _weights() -> Weights:
    return {
        "b.weight": torch.arange(6.0).reshape(2, 3),
        "a.running_var": torch.tensor([1.0, 2.0]),
        "a.num_batches_tracked": torch.tensor(3),
    }


# --- digest ----------------------------------------------------------------------------------------------------------------


def test_digest_does_not_depend_on_order_or_layout() -> None:
    weights = _weights()
    assert digest(dict(reversed(weights.items()))) == digest(weights)
    other_layout = weights | {"b.weight": weights["b.weight"].t().contiguous().t()}
    assert not other_layout["b.weight"].is_contiguous()
    assert digest(other_layout) == digest(weights)
    assert digest(weights | {"b.weight": nn.Parameter(weights["b.weight"])}) == digest(weights)


@pytest.mark.parametrize(
    "change",
    [
        {"b.weight": torch.arange(6.0).reshape(3, 2)},
        {"b.weight": torch.arange(6.0).reshape(2, 3).double()},
        {"b.weight": torch.arange(6).reshape(2, 3).int()},
        {"b.weight": torch.nextafter(torch.arange(6.0), torch.tensor(9.0)).reshape(2, 3)},
        {"a.running_var": torch.tensor([2.0, 1.0])},
        {"a.running_var": torch.tensor([1.0, 2.0]).view(torch.int32)},
        {"a.num_batches_tracked": torch.tensor(4)},
        {"a.num_batches_tracked": torch.tensor([3])},
        {"c": torch.empty(0)},
    ],
)
def test_digest_sees_every_change(change: Weights) -> None:
    assert digest(_weights() | change) != digest(_weights())


def test_digest_sees_names() -> None:
    tensor = torch.ones(2)
    assert digest({"a": tensor}) != digest({"b": tensor})
    assert digest({}) != digest({"a": torch.empty(0)})
    swapped = {"a": torch.ones(2), "b": torch.zeros(2)}
    assert digest(swapped) != digest({"a": torch.zeros(2), "b": torch.ones(2)})


def test_digest_is_stable() -> None:
    """Records of earlier runs quote it, so a change of what it hashes breaks them."""
    assert digest({"w": torch.tensor([1.0, -2.0])}) == "de194eee82d3130e7a1a823fde8d32d6847e1db44d9235fa6d0a94ca61c73be7"


# --- arithmetic ------------------------------------------------------------------------------------------------------------


def test_difference_and_moved_undo_each_other() -> None:
    before = _weights()
    after = before | {"b.weight": before["b.weight"] * 3, "a.num_batches_tracked": torch.tensor(9)}
    delta = difference(after, before)
    assert set(delta) == set(floating(before)) == {"b.weight", "a.running_var"}
    result = moved(before, delta)
    assert torch.equal(result["b.weight"], after["b.weight"])
    assert int(result["a.num_batches_tracked"]) == 3
    assert moved(before, {"b.weight": torch.ones(2, 3).double()})["b.weight"].dtype == torch.float32
    result["a.num_batches_tracked"].zero_()
    assert digest(before) == digest(_weights()), "moved must copy"


def test_norm_leaves_statistics_out() -> None:
    delta = {"w": torch.tensor([3.0]), "b": torch.tensor([4.0]), "bn.running_mean": torch.tensor([100.0])}
    assert norm(delta) == pytest.approx(5)
    assert norm({}) == 0


def test_norm_is_the_same_to_the_last_digit_in_any_order_and_memory_format() -> None:
    generator = torch.Generator().manual_seed(0)
    delta = {f"layer{i}": torch.randn(7, 5, 3, 3, generator=generator) for i in range(20)}
    strided = {name: delta[name].to(memory_format=torch.channels_last) for name in reversed(delta)}
    assert norm(strided) == norm(delta)


def test_reading_a_file_leaves_nothing_behind(tmp_path: Path) -> None:
    """Of files by their names, safetensors 0.8.0 never frees two objects a tensor."""
    save_weights({f"layer{i}": torch.ones(3) for i in range(50)}, tmp_path / "w.safetensors")
    load_weights(tmp_path / "w.safetensors")
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(20):
        load_weights(tmp_path / "w.safetensors")
    gc.collect()
    assert sys.getallocatedblocks() - before < 500  # it was 2,000
    names = ("bn.running_mean", "bn.running_var", "bn.weight", "running_mean.bias")
    assert [is_statistic(name) for name in names] == [True, True, False, False]


def test_snapshot_is_a_copy() -> None:
    model = nn.BatchNorm1d(2)
    before = snapshot(model)
    with torch.no_grad():
        model.weight.add_(1)
    assert torch.equal(before["weight"], torch.ones(2))
    assert not before["weight"].requires_grad


# --- files -----------------------------------------------------------------------------------------------------------------


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model.safetensors"
    save_weights(_weights() | {"t": torch.arange(6.0).reshape(2, 3).t()}, path, {"request": "r1"})
    loaded = load_weights(path)
    assert digest({name: tensor for name, tensor in loaded.items() if name != "t"}) == digest(_weights())
    assert torch.equal(loaded["t"], torch.arange(6.0).reshape(2, 3).t())
    assert b'"request":"r1"' in path.read_bytes()
    torch.save(_weights(), tmp_path / "model.pt")
    assert digest(load_weights(tmp_path / "model.pt")) == digest(_weights())


def _full_disk(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("owner", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(_weights(), path)
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if owner == "fsync" else (Path, "replace")), _full_disk)
        with pytest.raises(StorageError, match="No space left") as caught:
            save_weights({"b.weight": torch.zeros(9)}, path)
    assert str(path) in str(caught.value)
    assert digest(load_weights(path)) == digest(_weights())
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"], "no temporary file may stay behind"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("none.safetensors", "none.pt"):
        with pytest.raises(DataError, match=name):
            load_weights(tmp_path / name)


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    save_weights(_weights(), tmp_path / "model.safetensors")
    torch.save(_weights(), tmp_path / "model.pt")
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(DataError, match=r"Expected \.safetensors or a torch state dict"):
            load_weights(path)


class _Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("by_torch", [True, False])
def test_a_pickle_with_code_is_refused_unrun(tmp_path: Path, by_torch: bool) -> None:
    path, mark = tmp_path / "model.pt", tmp_path / "ran"
    if by_torch:
        torch.save({"w": _Trap(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"w": _Trap(mark)}, protocol=2))
    with pytest.raises(DataError, match=r"model\.pt: it is damaged or holds more than tensors") as caught:
        load_weights(path)
    assert "weights_only" not in str(caught.value), "torch's advice to allow code must not be passed on"
    assert not mark.exists()


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=40), cut=st.integers(0, 400), places=st.lists(st.integers(0, 10_000), max_size=3))
def test_any_bytes_load_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cut: int, places: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pt"
    old = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, old, _use_new_zipfile_serialization=False)
    damaged = bytearray(old.getvalue()[: len(old.getvalue()) - cut])
    for place in places if damaged else []:
        damaged[place % len(damaged)] ^= 0x55
    for data in (content, bytes(damaged)):
        path.write_bytes(data)
        try:
            load_weights(path)
        except DataError:
            continue


@pytest.mark.parametrize("wrong", [[torch.zeros(1)], {"epoch": 3, "state": {}}, torch.zeros(2)])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, wrong: object) -> None:
    torch.save(wrong, tmp_path / "model.pt")
    with pytest.raises(DataError, match="not a state dict"):
        load_weights(tmp_path / "model.pt")
