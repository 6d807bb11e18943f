"""Models that the coordinator promoted, at a site: fetched in parts, checked against what it signed, and told in use."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from excise.client import promoted
from excise.client.config import CoordinatorSettings, read_site_config
from excise.client.coordinator import Coordinator, CoordinatorSilent, PromotedModel, connected
from excise.client.deploy import doctor
from excise.client.forgotten import EVENT
from excise.client.joining import join
from excise.client.requests import Requests
from excise.common.api import coordinator_pb2 as pb
from excise.common.chain import append
from excise.common.errors import ConfigError, DataError, MessageError
from excise.common.signing import make_key, public_hex, sign
from excise.common.weights import digest, load_weights
from excise.server import members
from excise.server.registry import file_of, version
from tests.coordinators import DEVICE, Network, listening, network


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Network]:
    with network(tmp_path) as one, listening(one):
        one.join("a")
        yield one


def settings_of(made: Network) -> CoordinatorSettings:
    settings = read_site_config(made.sites["a"]).coordinator
    assert settings is not None
    return settings


def fetched(made: Network, number: int | None = None) -> Path:
    folder = made.sites["a"].parent
    with connected(folder, settings_of(made)) as coordinator:
        return promoted.fetch(folder, coordinator, settings_of(made).key, number)[1]


def test_the_model_in_use_is_fetched_checked_and_reported(made: Network, excise: Callable[..., Any]) -> None:
    weights, site = made.deployed(), made.sites["a"]
    code, out, err = excise("site", "fetch", "--use", "--site", site)
    assert code == 0, err
    assert "model 1" in out
    assert digest(load_weights(site.parent / "models" / "1.safetensors")) == digest(weights)
    (told,) = members.members(made.store)
    assert (told.version, told.release != "") == (1, True)
    assert promoted.in_use(site.parent) == 1
    assert "Model in use: 1" in excise("site", "status", "--site", site)[1]


def test_what_was_broken_off_goes_on_where_it_was(made: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    made.deployed()
    monkeypatch.setattr("excise.server.api.service.CHUNK", 1000)
    whole, offsets = Coordinator.fetch, []

    def breaks_off(self: Coordinator, number: int, offset: int) -> Iterator[tuple[int, bytes]]:
        offsets.append(offset)
        for at, data in whole(self, number, offset):
            yield at, data
            if len(offsets) == 1 and at >= 2000:
                raise CoordinatorSilent("the line is dead")

    monkeypatch.setattr(Coordinator, "fetch", breaks_off)
    with pytest.raises(CoordinatorSilent):
        fetched(made)
    assert not (made.sites["a"].parent / "models" / "1.safetensors").exists()
    assert digest(load_weights(fetched(made))) == version(made.store).digest
    assert offsets == [0, 3000]


def test_what_is_not_the_model_that_was_signed_is_thrown_away(made: Network) -> None:
    made.deployed()
    file = file_of(made.folder, version(made.store).digest)
    good = file.read_bytes()
    file.write_bytes(good[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(DataError, match="is not model 1, as the coordinator signed it"):
        fetched(made)
    file.write_bytes(good[:-100])
    with pytest.raises(DataError, match="is not whole yet"):
        fetched(made)
    file.write_bytes(good + b"more")
    with pytest.raises(DataError, match="out of their order"):
        fetched(made)
    file.write_bytes(good)
    assert fetched(made).read_bytes() == good
    assert {path.name for path in (made.sites["a"].parent / "models").iterdir()} == {"1.safetensors"}


def test_a_manifest_of_another_key_is_refused(made: Network) -> None:
    made.deployed()
    folder = made.sites["a"].parent
    with connected(folder, settings_of(made)) as coordinator, pytest.raises(MessageError, match="is not signed with the key"):
        promoted.fetch(folder, coordinator, "00" * 32)


def test_what_there_is_not_is_told(made: Network) -> None:
    with pytest.raises(ConfigError, match="no model was promoted yet"):
        fetched(made)
    made.deployed()
    with pytest.raises(ConfigError, match="there is no model 7"):
        fetched(made, 7)
    folder = made.sites["a"].parent
    with connected(folder, settings_of(made)) as coordinator, pytest.raises(ConfigError, match="model 1 is not here"):
        promoted.use(folder, coordinator, PromotedModel(1, {"requests": []}, 10, True))


def test_what_is_there_is_believed_only_when_it_is_what_was_signed(made: Network) -> None:
    made.deployed()
    path = fetched(made)
    good = path.read_bytes()
    for other in (good[:-4] + b"\x00\x00\x80\x3f", good[:100], b""):  # another coordinator's, or torn
        path.write_bytes(other)
        assert fetched(made).read_bytes() == good


def test_a_model_is_on_the_disk_before_it_has_its_name(made: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    made.deployed()
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        done.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def replaced(path: Path, target: Path) -> Path:
        done.append(f"replace {path.name}")
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", synced)
        patched.setattr(Path, "replace", replaced)
        path = fetched(made)
        path.rename(path.with_name("1.part.safetensors"))  # whole already, by a process that was killed
        fetched(made)
    ours = [event for event in done if "safetensors" in event]
    assert ours == ["fsync 1.part.safetensors", "replace 1.part.safetensors"] * 2


def test_without_being_asked_a_site_does_not_go_back_to_an_earlier_model(made: Network) -> None:
    made.deployed()
    models = made.sites["a"].parent / "models"
    models.mkdir()
    (models / "in-use.json").write_text('{"version": 2}')
    with pytest.raises(ConfigError, match=r"rolled back, or somebody replays.*--version 1"):
        fetched(made)
    assert [path.name for path in models.iterdir()] == ["in-use.json"]
    assert fetched(made, 1).name == "1.safetensors"


GOOD = {
    "format": "excise model 1",
    "version": 1,
    "digest": "ab" * 32,
    "file": {"sha256": "cd" * 32, "bytes": 10},
    "requests": ["mr7"],
}


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (GOOD | {"format": "excise model 2"}, "the format in the manifest of model 1 is 'excise model 2'"),
        (GOOD | {"version": 2}, "the version in the manifest of model 1 is 2, not 1"),
        (GOOD | {"version": True}, "the version"),
        (GOOD | {"file": {"sha256": "cd" * 32, "bytes": 11}}, "the size in the manifest of model 1 is 11, not 10"),
        (GOOD | {"file": {"bytes": 10}}, "cannot be read"),
        (GOOD | {"file": {"sha256": 5, "bytes": 10}}, "names no digest"),
        (GOOD | {"requests": "mr7"}, "names no digest or no requests"),
        ({key: value for key, value in GOOD.items() if key != "requests"}, "cannot be read"),
        ({key: value for key, value in GOOD.items() if key != "digest"}, "cannot be read"),
        ([], "cannot be read"),
        ("no JSON", "cannot be read"),
    ],
)
def test_a_manifest_that_is_not_of_its_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: Any, reason: str
) -> None:
    key = make_key(tmp_path / "key")

    def told(manifest: Any) -> pb.Models:
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        return pb.Models(models=[pb.Model(version=1, manifest=text, signature=sign(key, text.encode()), size=10)])

    with grpc.insecure_channel("localhost:1") as channel:
        coordinator = Coordinator(channel, "localhost:1")
        monkeypatch.setattr(coordinator, "_call", lambda *_: told(GOOD))
        assert [one.manifest for one in coordinator.models(public_hex(key))] == [GOOD]
        monkeypatch.setattr(coordinator, "_call", lambda *_: told(manifest))
        with pytest.raises(MessageError, match=reason):
            coordinator.models(public_hex(key))


def test_what_was_left_out_for_good_and_is_in_the_model_in_use_again_is_told(
    made: Network, excise: Callable[..., Any]
) -> None:
    site = made.sites["a"]
    made.deployed()
    kept = Requests(site.parent)
    kept.arrive(DEVICE)
    append(kept.log, EVENT, request=DEVICE.id, digest=DEVICE.digest, registered=0)

    def told() -> list[str]:
        assert excise("site", "fetch", "--use", "--site", site)[0] == 0
        out = excise("site", "status", "--site", site)[1]
        assert json.loads(excise("site", "status", "--json", "--site", site)[1])["forgotten_but_known"] == (
            ["mr7"] if "Left out" in out else []
        )
        return [line.partition(".")[0] for line in out.splitlines() if "Left out" in line]

    known = "Left out here for good, but model 1 has not forgotten: mr7"
    assert told() == [known]
    use = site.parent / "models" / "in-use.json"
    use.write_text('{"version": 1, "requests": ["mr7"]}')
    assert promoted.has_forgotten(site.parent) == {"mr7"}
    assert "Left out" not in excise("site", "status", "--site", site)[1]
    kept.note(DEVICE, "rolled back", "2026-01-01", ())
    assert "but rolled back at the coordinator: mr7" in excise("site", "status", "--site", site)[1]
    use.write_text('{"version": 1}')  # as an earlier release wrote it
    assert promoted.has_forgotten(site.parent) is None


@pytest.mark.parametrize(("size", "good"), [(16, True), (32, False)])
def test_the_doctor_compares_the_images_with_the_coordinators_model(made: Network, size: int, good: bool) -> None:
    made.deployed()
    config = read_site_config(made.sites["a"])
    config = config.model_copy(update={"data": config.data.model_copy(update={"size": size})})
    found = {one.name: one for one in doctor._service(made.sites["a"].parent, config)}["coordinator's model"]
    assert (found.good, found.required) == (good, False)
    assert found.told == ("model 1 fits this site's images" if good else "model 1 wants size 16, here 32")


def test_the_doctor_shows_the_fingerprint_to_who_is_not_let_in_yet(made: Network) -> None:
    toml = made.site("b")
    sent = members.invite(made.store, made.folder, made.config, "b", "tests")
    own = join(toml, sent, sent.fingerprint)
    found = {one.name: one for one in doctor._service(toml.parent, read_site_config(toml))}["coordinator's service"]
    assert (found.good, "not let in yet" in found.told, own in found.told, own in found.remedy) == (False, True, False, True)
