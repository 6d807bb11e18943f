"""A round that takes too long is given up, whatever it is doing; one of too many steps or too few images is not begun."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Message
from torch import nn

from excise.client import app
from excise.client.extent import OutOfTime, check_images, check_steps, limited_to, watch
from excise.client.permission import Forbidden
from excise.client.policy import LimitSettings
from excise.common.errors import MessageError
from excise.common.messages import AuditQuery
from excise.common.models import ModelSpec, build_model
from excise.common.request import ForgetRequest, RequestKind
from excise.common.weights import snapshot
from excise.simulations.local_grid import LocalGrid
from tests.dicoms import write_hospital, write_site_toml


def test_a_model_runs_within_its_time_and_no_longer() -> None:
    model, x = nn.Linear(2, 2), torch.zeros(1, 2)
    watch(model)
    model(x)  # without a limit there is none
    with limited_to(60):
        model(x)
    with limited_to(-1), pytest.raises(OutOfTime, match=r"limits\.seconds"):
        model(x)
    model(x)


def test_steps_are_counted_before_they_are_done() -> None:
    check_steps(10, LimitSettings(steps=10))
    with pytest.raises(Forbidden, match=r"11 gradient steps in a round; limits\.steps allows 10"):
        check_steps(11, LimitSettings(steps=10))


@pytest.mark.parametrize(
    ("terms", "allowed"),
    [
        ([(0.5, 10), (0.5, 10)], True),
        ([(0.5, 1), (0.5, 10)], True),  # few images to forget, beside enough others
        ([(0.95, 1), (0.05, 10)], True),
        ([(0.96, 1), (0.04, 10)], False),  # the update would be theirs alone
        ([(1 - 1e-9, 1), (1e-9, 24)], False),
        ([(0.04, 10), (0.96, 1)], False),
        ([(0.5, 9), (0.5, 1)], False),  # ten, but neither is enough for the other
        ([(1.0, 10), (0.0, 1)], True),
        ([(1.0, 9), (0.0, 100)], False),
        ([(1.0, 9)], False),
        ([], False),
    ],
)
def test_an_update_comes_from_enough_images(terms: list[tuple[float, int]], allowed: bool) -> None:
    if allowed:
        check_images(terms, 10)
    else:
        with pytest.raises(Forbidden, match=r"an update would come from"):
            check_images(terms, 10)


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(MessageError, match=r"should lie in \[0, 1\]"):
        check_images([(weight, 100), (1 - weight, 100)], 10)


def test_the_coordinator_is_told_by_a_code(tmp_path: Path) -> None:
    write_hospital(tmp_path)
    site = write_site_toml(tmp_path, data={"labels": "labels.csv"}, limits={"seconds": 1e-9})
    spec = ModelSpec(name="allcnn", classes=2, size=16, width=0.05)
    request = ForgetRequest(id="mr7", kind=RequestKind.DEVICE, where="StationName = MR7", reason="r")
    query = AuditQuery(model=spec, candidates={"a": snapshot(build_model(spec))}, request=request)
    grid = LocalGrid(app.make_app(lambda _: site), 1)
    (reply,) = grid.send_and_receive([Message(query.to_record(), next(iter(grid.get_node_ids())), query.KIND)])
    told = reply.content["message"]
    assert isinstance(told, ConfigRecord)
    assert told["code"] == "out_of_time"
