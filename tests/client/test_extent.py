"""A round that takes too long or too many steps is given up, whatever it is doing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Message
from torch import nn

from excise.client import app
from excise.client.extent import LimitReached, limited_to, watch
from excise.client.policy import LimitSettings
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
    with limited_to(LimitSettings(seconds=60)):
        model(x)
    with limited_to(LimitSettings(seconds=1e-9)), pytest.raises(LimitReached, match=r"limits\.seconds") as reached:
        model(x)
    assert reached.value.code == "out_of_time"
    model(x)


def test_passes_in_training_are_counted_and_others_are_not() -> None:
    model, x = nn.Linear(2, 2), torch.zeros(1, 2)
    watch(model)
    with limited_to(LimitSettings(steps=2)):
        model.eval()
        for _ in range(5):
            model(x)
        model.train()
        with torch.no_grad():
            model(x)
        model(x)
        model(x)
        with pytest.raises(LimitReached, match=r"limits\.steps") as reached:
            model(x)
    assert reached.value.code == "forbidden"
    model(x)


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
