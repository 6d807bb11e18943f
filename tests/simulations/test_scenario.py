"""Scenario files: what they may say, and what is said when they may not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from excise.common.errors import ConfigError, PredicateError, RequestError
from excise.common.settings import PRESETS, UnlearningSettings
from excise.simulations.run import new_run_folder
from excise.simulations.scenario import Scenario, built_in, read_scenario, resumed_scenario

MINIMAL = """
name = "small"
[data]
source = "npz"
path = "data/images.npz"
[request]
id = "r-1"
kind = "samples"
where = "item = 3"
reason = "test"
"""


OF_A_CLASS = MINIMAL.replace('kind = "samples"\nwhere = "item = 3"', 'kind = "class"\nwhere = "class = 3"')


def read(folder: Path, text: str) -> Scenario:
    (folder / "mine.toml").write_text(text)
    return read_scenario("", folder / "mine.toml")


@pytest.mark.parametrize("name", built_in())
def test_every_built_in_scenario_reads(name: str) -> None:
    assert read_scenario(name).name == name


def test_an_unknown_scenario_names_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"unknown scenario 'brain-mir': did you mean 'brain-mri'\?, or give --scenario"):
        read_scenario("brain-mir")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[trainning]\nrounds = 2", r"mine\.toml: unknown key 'trainning': did you mean 'training'\?"),
        ("[training]\nround = 2", r"unknown key 'training\.round': did you mean 'rounds'\?"),
        ("[unlearning.serch]\neta = 1", r"unknown key 'unlearning\.serch': did you mean 'search'\?"),
        ("[unlearning.local]\nstep = 1", r"unknown key 'unlearning\.local\.step': did you mean 'steps'\?"),
        ('[unlearning]\npreset = "sample"', r"mine\.toml: unknown unlearning\.preset 'sample': did you mean 'samples'\?"),
        ('[unlearning]\npreset = ["samples"]', r"unknown unlearning\.preset"),
        ('[partition]\nkind = "iidd"', r"partition\.kind: .*'iid'.*got 'iidd'"),
        ("[training]\nrounds = 0", r"training\.rounds: .*greater than or equal to 1, got 0"),
        ("[training]\nlearning_rate = nan", r"training\.learning_rate: "),
        ("[unlearning.local]\nretain_batch = 0", r"retain_batch = 0 needs psi = 1"),
        (
            '[unlearning]\npreset = "classes"',
            r"for requests of whole classes; 'r-1' is of kind samples",
        ),
        ('[[candidates]]\nname = "a"\nunlearning = { preset = "classes" }', r"for requests of whole classes"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, f"{MINIMAL}\n{more}")


def test_volumes_are_read_from_arrays_alone(tmp_path: Path) -> None:
    of_folders = MINIMAL.replace('"npz"', '"image-folder"') + '\n[model]\nname = "densenet121"\ndims = 3'
    with pytest.raises(
        ConfigError, match=r"model\.dims = 3 needs data\.source = 'npz': volumes are not read from 'image-folder'"
    ):
        read(tmp_path, of_folders)


@pytest.mark.parametrize("table", ["training", "unlearning", "rounds"])
def test_what_should_be_a_table_is_named(tmp_path: Path, table: str) -> None:
    with pytest.raises(ConfigError, match=rf"mine\.toml: {table}: "):
        read(tmp_path, f"{table} = 3\n{MINIMAL}")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.toml: missing key 'request'"):
        read(tmp_path, MINIMAL.split("[request]")[0])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('source = "npz"', "source 'npz' needs a path"),
        ('source = "csv"\npath = "x"', "source 'csv' needs labels"),
        ('source = "brain-mri"\nlimit = 3', "greater than or equal to 40"),
    ],
)
def test_data_without_what_its_source_needs(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, MINIMAL.replace('source = "npz"\npath = "data/images.npz"', source))


def test_a_faulty_predicate_is_told_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(PredicateError, match="at character"):
        read(tmp_path, MINIMAL.replace("item = 3", "item = = 3"))
    with pytest.raises(RequestError, match="kind 'class' expects"):
        read(tmp_path, MINIMAL.replace('"samples"', '"class"'))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no scenario file at .*No such file"):
        read_scenario("", tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"no scenario file at .*Is a directory"):
        read_scenario("", tmp_path)
    with pytest.raises(ConfigError, match="is not TOML"):
        read(tmp_path, "name = ")
    (tmp_path / "mine.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match="is not TOML"):
        read_scenario("", tmp_path / "mine.toml")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_alone_is_the_preset(tmp_path: Path, preset: str) -> None:
    assert read(tmp_path, f'{OF_A_CLASS}\n[unlearning]\npreset = "{preset}"').unlearning == PRESETS[preset]


def test_a_preset_is_changed_by_the_other_keys_alone(tmp_path: Path) -> None:
    more = '[unlearning]\npreset = "classes"\npsi = 0.7\n[unlearning.local]\nsteps = 3\n[unlearning.search]\nnoise = "uniform"'
    got, preset = read(tmp_path, f"{OF_A_CLASS}\n{more}").unlearning, PRESETS["classes"]
    assert got == preset.model_copy(
        update={
            "psi": 0.7,
            "local": preset.local.model_copy(update={"steps": 3}),
            "search": preset.search.model_copy(update={"noise": "uniform"}),
        }
    )


def test_without_a_preset_unlearning_is_for_samples(tmp_path: Path) -> None:
    assert read(tmp_path, MINIMAL).unlearning == PRESETS["samples"] == UnlearningSettings()
    assert read(tmp_path, f"{MINIMAL}\n[unlearning]\npsi = 0.9").unlearning == UnlearningSettings(psi=0.9)


def test_candidates_change_the_scenarios_own_settings(tmp_path: Path) -> None:
    more = """
[unlearning]
psi = 0.3
[[candidates]]
name = "as-it-is"
[[candidates]]
name = "gentle"
composition = { rule = "mean" }
unlearning = { psi = 0.1, target = { overshoot = 1.2 } }
[[candidates]]
name = "whole-class"
unlearning = { preset = "classes" }
[[merges]]
name = "soup"
forget = ["gentle", "as-it-is"]
"""
    found = read(tmp_path, OF_A_CLASS.replace("[data]", 'composition = "ties"\n[data]') + more)
    as_it_is, gentle, whole_class = found.candidates
    assert (as_it_is.unlearning, as_it_is.composition.rule) == (found.unlearning, "ties")
    assert (gentle.unlearning.psi, gentle.unlearning.target.overshoot, gentle.composition.rule) == (0.1, 1.2, "mean")
    assert gentle.unlearning.local == found.unlearning.local
    assert whole_class.unlearning == PRESETS["classes"]
    assert found.merges[0].forget == ("gentle", "as-it-is")
    assert resumed_scenario(new_run_folder(tmp_path / "runs", found)) == found


def test_one_request_or_several(tmp_path: Path) -> None:
    several = MINIMAL.replace("[request]", "[[requests]]")
    found = read(tmp_path, several)
    assert (found.request, found.requests) == (read(tmp_path, MINIMAL).request, (found.request,))
    with pytest.raises(ConfigError, match=r"give \[request\] or \[\[requests\]\], not both"):
        read(tmp_path, MINIMAL + several[several.index("[[requests]]") :].replace("item = 3", "item = 4"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('[[candidates]]\nname = "a"\n[[candidates]]\nname = "a"', "'a' cannot name a candidate"),
        ('[[candidates]]\nname = "retrained"', "'retrained' cannot name a candidate"),
        ('[[candidates]]\nname = "a"\n[[merges]]\nname = "m"\nforget = ["b"]', "names 'b', which is no candidate: a"),
        ('[[candidates]]\nname = "a/b"', "candidates.0.name"),
        ('[[candidates]]\nname = "a"\nunlearning = { psi = 2 }', "candidates.0.unlearning.psi"),
        ('[[candidates]]\nname = "a"\nunlearning = { preset = "clases" }', "did you mean 'classes'"),
        ('[[candidates]]\nname = "a"\ncomposition = "meen"', "did you mean 'mean'"),
        ('[[candidates]]\nname = "a"\ncomposition = { rule = "ties", density = 5 }', "density must lie in"),
        ('[[candidates]]\nname = "a"\ncolour = "red"', "colour"),
        ("candidates = 3", "candidates"),
    ],
)
def test_wrong_candidates_are_named_before_anything_starts(tmp_path: Path, more: str, said: str) -> None:
    text = MINIMAL.replace("[data]", f"{more}\n[data]", 1) if "=" in more.split("\n")[0] else f"{MINIMAL}\n{more}"
    with pytest.raises(ConfigError, match=re.escape(said)):
        read(tmp_path, text)


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = MINIMAL.replace('source = "npz"', 'source = "csv"\nlabels = "../labels.csv"')
    data = read(tmp_path, text).data
    assert data.path == tmp_path / "data" / "images.npz"
    assert data.labels is not None
    assert data.labels.resolve() == tmp_path.parent / "labels.csv"
    (tmp_path / "mine.toml").write_text(text)
    assert read_scenario("", Path("../mine.toml")).data.path == data.path
    absolute = MINIMAL.replace("data/images.npz", "/data/images.npz")
    assert read(tmp_path, absolute).data.path == Path("/data/images.npz")


@pytest.mark.parametrize(
    "more", ["", 'at = 2025-01-31T12:00:00+01:00\n[unlearning]\npreset = "published"\n[partition]\nkind = "dirichlet"']
)
def test_the_config_of_a_run_is_its_scenario(tmp_path: Path, more: str) -> None:
    scenario = read(tmp_path, f"{MINIMAL}\n{more}")
    folder = new_run_folder(tmp_path / "runs", scenario)
    assert resumed_scenario(folder) == scenario
    assert read_scenario("", folder / "config.toml") == scenario


@pytest.mark.parametrize("name", built_in())
def test_the_config_of_a_built_in_scenario_is_the_scenario(tmp_path: Path, name: str) -> None:
    scenario = read_scenario(name).model_copy(update={"seed": 3})
    assert resumed_scenario(new_run_folder(tmp_path, scenario)) == scenario


def test_run_folders_do_not_meet(tmp_path: Path) -> None:
    scenario = read(tmp_path, MINIMAL)
    assert len({new_run_folder(tmp_path, scenario) for _ in range(3)}) == 3


def test_a_folder_that_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run folder"):
        resumed_scenario(tmp_path)
