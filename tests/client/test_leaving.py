"""The one way out: the policy's privacy is applied to every update that leaves, in rounds and in dry runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from excise.client import app
from excise.client.accountant import Accountant, epsilon
from excise.client.config import SiteConfig, read_site_config
from excise.client.dryrun import dry_run
from excise.client.egress import Withheld
from excise.client.leaving import outgoing
from excise.client.permission import Forbidden
from excise.client.privacy import clipped, sparsified, total_norm
from excise.client.site import open_site
from excise.common import messages as m
from excise.common.errors import ConfigError, SiteError
from excise.common.models import ModelSpec, build_model
from excise.common.request import ForgetRequest, RequestKind
from excise.common.settings import TrainingSettings, UnlearningSettings
from excise.common.weights import Weights, digest, norm, snapshot
from excise.server.admission import admit
from excise.simulations.local_grid import LocalGrid
from tests.dicoms import write_hospital, write_site_toml

SPEC = ModelSpec(name="allcnn", classes=2, size=16, width=0.05)
DEVICE = ForgetRequest(id="mr7", kind=RequestKind.DEVICE, where="StationName = MR7", reason="retired")
TEACHER = snapshot(build_model(SPEC, 0))
FIT = m.FitInstruction(
    model=SPEC, weights=TEACHER, training=TrainingSettings(rounds=4, batch_size=8), round_index=0, seed=1, without=None
)
REFERENCE = m.ReferenceQuery(model=SPEC, teacher=TEACHER, request=DEVICE, points=4)
UNLEARN = m.UnlearnInstruction(
    model=SPEC,
    weights=TEACHER,
    teacher_digest=digest(TEACHER),
    request=DEVICE,
    settings=UnlearningSettings.model_validate({"local": {"steps": 1}, "search": {"max_steps": 2}}),
    a_k=0.5,
    reference={"all": (0.2, 0.9)},
    trained={},
    round_index=0,
    seed=1,
)
ALL_THREE = {"clip": 0.01, "noise_multiplier": 0.5, "keep_share": 0.25}
Asking = Callable[..., Any]


@pytest.fixture
def ask(tmp_path: Path) -> Asking:
    """Ask a site whose policy has this `privacy`; returns the record that leaves."""
    write_hospital(tmp_path, patients=20)

    def ask(question: m.Message, **privacy: Any) -> Any:
        toml = write_site_toml(tmp_path, data={"labels": "labels.csv"}, policy={"min_count": 1, "privacy": privacy})
        grid = LocalGrid(app.make_app(lambda _: toml), 1)
        (node,) = grid.get_node_ids()
        (reply,) = grid.send_and_receive([Message(question.to_record(), node, question.KIND)])
        return reply.content

    return ask


def update_of(ask: Asking, question: m.Message, **privacy: Any) -> m.SiteUpdate:
    ask(REFERENCE)
    return m.SiteUpdate.from_record(ask(question, **privacy))


def same(a: Weights, b: Weights) -> bool:
    return digest(a) == digest(b)


@pytest.mark.parametrize("question", [FIT, UNLEARN], ids=lambda question: question.KIND)
def test_each_part_is_applied_to_every_kind_of_update(ask: Asking, question: m.Message) -> None:
    bare = update_of(ask, question).delta
    clip = total_norm(bare) / 3
    assert same(update_of(ask, question, clip=clip).delta, clipped(bare, clip))
    assert same(update_of(ask, question, keep_share=0.25).delta, sparsified(bare, 0.25))
    assert same(update_of(ask, question, clip=clip, keep_share=0.25).delta, sparsified(clipped(bare, clip), 0.25))
    noisy = update_of(ask, question, clip=clip, noise_multiplier=1.0).delta
    numbers = sum(tensor.numel() for tensor in bare.values())
    far = norm({name: noisy[name] - tensor for name, tensor in clipped(bare, clip).items()})
    assert far / clip == pytest.approx(numbers**0.5, rel=0.1)


def test_an_update_with_all_three_is_admitted_and_the_rest_of_it_stays(ask: Asking) -> None:
    bare, found = update_of(ask, UNLEARN), update_of(ask, UNLEARN, **ALL_THREE)
    admit(found, TEACHER, digest(TEACHER), 100.0)
    # The second round finds the targets of the first prepared, so it took fewer passes.
    assert replace(found, delta=bare.delta, seconds=bare.seconds, passes=bare.passes) == bare
    kept = sum(int((tensor != 0).sum()) for tensor in found.delta.values())
    assert kept == round(0.25 * sum(tensor.numel() for tensor in found.delta.values()))


# --- the noise --------------------------------------------------------------------------------------------------------------


def config(tmp_path: Path, key: str = "a secret", name: str = "site-1", **privacy: Any) -> SiteConfig:
    toml = write_site_toml(tmp_path, name, split={"key": key}, policy={"privacy": {"clip": 1.0, **privacy}})
    return read_site_config(toml)


DELTA = {name: torch.ones_like(tensor) for name, tensor in TEACHER.items() if tensor.is_floating_point()}
UPDATE = m.SiteUpdate(weights_in=digest(TEACHER), delta=DELTA, passes=1, seconds=1.0)


def noise(question: m.Message, of: SiteConfig, update: m.SiteUpdate = UPDATE) -> torch.Tensor:
    """What was added, in units of the noise, but to variances."""
    sent = m.SiteUpdate.from_record(outgoing(update, question, of, frozenset(), None)).delta
    kept = clipped(update.delta, 1.0)
    added = [(sent[name] - kept[name]).flatten() for name in kept if not name.endswith("running_var")]
    return torch.cat(added) / of.policy.privacy.noise_multiplier


def test_the_noise_repeats_for_the_same_question_and_is_unlike_for_any_other(tmp_path: Path) -> None:
    """Whoever asks twice must not average it out, nor subtract the same noise of another update."""
    here = config(tmp_path, noise_multiplier=1.0)
    first = noise(FIT, here)
    assert torch.equal(noise(FIT, here), first)
    longer = {name: 2 * tensor for name, tensor in DELTA.items()}
    moved = {name: tensor + 1 for name, tensor in TEACHER.items()}
    others = {
        "another seed": noise(replace(FIT, seed=2), here),
        "another round": noise(replace(FIT, round_index=1), here),
        "another request": noise(replace(FIT, without=DEVICE), here),
        "other weights": noise(replace(FIT, weights=moved), here),
        "another kind": noise(UNLEARN, here),
        "another update": noise(FIT, here, replace(UPDATE, delta=longer)),  # which the clip makes the same
        "more noise": noise(FIT, config(tmp_path, noise_multiplier=2.0)),
        "another site": noise(FIT, config(tmp_path, name="site-2", noise_multiplier=1.0)),
        "another key": noise(FIT, config(tmp_path, key="another", noise_multiplier=1.0)),
    }
    for name, other in others.items():
        alike = float(torch.corrcoef(torch.stack([first, other]))[0, 1])
        assert abs(alike) < 5 / len(first) ** 0.5, name


def test_noise_wants_a_secret_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"noise_multiplier needs a split\.key of your own"):
        config(tmp_path, key="excise", noise_multiplier=1.0)
    assert config(tmp_path, key="excise").policy.privacy.clip == 1.0


# --- counting ---------------------------------------------------------------------------------------------------------------


def test_every_update_that_leaves_is_counted_and_nothing_else(ask: Asking, tmp_path: Path) -> None:
    for question in (
        m.StatusQuery(request=DEVICE),
        REFERENCE,
        m.AuditQuery(model=SPEC, candidates={"a": TEACHER}, request=DEVICE),
    ):
        ask(question, **ALL_THREE)
    assert Accountant(tmp_path).spent(1e-5).updates == 0
    for question in (FIT, UNLEARN, UNLEARN, replace(UNLEARN, request=DEVICE.model_copy(update={"id": "again"}))):
        m.SiteUpdate.from_record(ask(question, **ALL_THREE))
    ask(replace(UNLEARN, teacher_digest="0" * 64), **ALL_THREE)  # fails
    assert Accountant(tmp_path).spent(1e-5).updates == 4
    m.SiteUpdate.from_record(ask(FIT))
    assert (Accountant(tmp_path).spent(1e-5).updates, Accountant(tmp_path).spent(1e-5).bare) == (5, 1)


def test_at_the_bound_rounds_are_refused_before_anything_is_done(ask: Asking, tmp_path: Path) -> None:
    bound = {"clip": 1.0, "noise_multiplier": 1.0, "max_epsilon": epsilon({1.0: 2}, 1e-5)}
    ask(REFERENCE, **bound)
    for question in (FIT, UNLEARN):
        m.SiteUpdate.from_record(ask(question, **bound))
    requests = (tmp_path / "requests" / "rounds.json").read_text()
    for question in (FIT, UNLEARN):
        assert m.Failure.from_record(ask(question, **bound)).code == SiteError.FORBIDDEN
    assert (tmp_path / "requests" / "rounds.json").read_text() == requests
    m.SiteStatus.from_record(ask(m.StatusQuery(request=DEVICE), **bound))  # other questions are answered


def test_an_update_that_would_exceed_the_bound_by_now_does_not_leave(tmp_path: Path) -> None:
    """Two rounds may be worked on at once; both passed the first look."""
    here, accountant = config(tmp_path, noise_multiplier=1.0, max_epsilon=epsilon({1.0: 1}, 1e-5)), Accountant(tmp_path)
    outgoing(UPDATE, FIT, here, frozenset(), accountant)
    with pytest.raises(Forbidden, match="max_epsilon"):
        outgoing(UPDATE, FIT, here, frozenset(), accountant)
    assert accountant.spent(1e-5).updates == 1


def test_what_the_gate_keeps_back_is_not_counted(tmp_path: Path) -> None:
    odd = replace(UPDATE, metrics={"patient": 1.0})
    here = config(tmp_path)
    here = here.model_copy(update={"policy": here.policy.model_copy(update={"metrics": ()})})
    outgoing(odd, FIT, here, frozenset(), Accountant(tmp_path))  # the policy left the number out, so the gate saw none
    with pytest.raises(Withheld):
        outgoing(replace(UPDATE, weights_in="x"), FIT, here, frozenset(), Accountant(tmp_path))
    with pytest.raises(Withheld):
        outgoing(UPDATE, m.StatusQuery(), here, frozenset(), Accountant(tmp_path))
    assert Accountant(tmp_path).spent(1e-5).updates == 1


def test_damaged_counts_keep_updates_here(ask: Asking, tmp_path: Path) -> None:
    ask(FIT)
    Accountant(tmp_path).path.write_text("{")
    assert m.Failure.from_record(ask(FIT)).code == SiteError.BAD_DATA


def test_a_dry_run_shows_what_the_policy_makes_of_an_update_and_counts_nothing(tmp_path: Path) -> None:
    write_hospital(tmp_path)
    privacy = {"clip": 0.01, "keep_share": 0.1}
    toml = write_site_toml(tmp_path, data={"labels": "labels.csv"}, policy={"min_count": 1, "privacy": privacy})
    found = dry_run(open_site(toml), DEVICE, SPEC, tell=lambda _: None)
    (update,) = [leaving for leaving in found.leaving if leaving.kind == "update"]
    told = update.fields["delta"].values()
    kept = [int(text.split(", ")[-1].split(" of ")[0].replace(",", "")) for text in told]
    assert sum(kept) == round(0.1 * sum(tensor.numel() for tensor in DELTA.values()))
    norms = [float(text.split("norm ")[1].split(",")[0]) for text in told]
    assert 0 < sum(x * x for x in norms) <= 0.01**2 * 1.001
    assert not Accountant(tmp_path).path.exists()
