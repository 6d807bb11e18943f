"""What keeps a site running: the node, its apps, and the site's word on bundles."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from excise.client.config import CoordinatorSettings, read_site_config
from excise.client.deploy.node import allowed, bundles_of
from excise.client.deploy.supervisor import HANGS, commands_of, folder_of, node_status, supervisor_of
from excise.common.errors import ConfigError
from tests.dicoms import write_site_toml


def test_a_site_that_has_not_joined_cannot_be_supervised(tmp_path: Path) -> None:
    site = write_site_toml(tmp_path)
    with pytest.raises(ConfigError, match="excise site join"):
        supervisor_of(site, read_site_config(site), print)


def test_the_node_has_the_key_and_its_apps_have_neither_key_nor_address(tmp_path: Path) -> None:
    coordinator = CoordinatorSettings(
        address="fleet.example.org:8443", api="fleet.example.org:8444", key="00" * 32, ca=tmp_path / "ca.crt"
    )
    node, apps = commands_of(tmp_path / "site.toml", coordinator, tmp_path / "secret", 4242).values()
    assert {str(tmp_path / "keys" / "node"), "fleet.example.org:8443"} <= set(node)
    assert not any("keys" in part or "example.org" in part for part in apps)
    assert "127.0.0.1:4242" in apps


def test_a_node_without_a_sign_of_life_hangs(tmp_path: Path) -> None:
    site = write_site_toml(
        tmp_path, coordinator={"address": "localhost:1", "api": "localhost:2", "key": "00" * 32, "ca": "ca.crt"}
    )
    config = read_site_config(site)
    unit, watcher = supervisor_of(site, config, print).units
    assert (unit.name, watcher.name) == ("node", "watcher")
    folder_of(config).mkdir(parents=True)
    assert unit.hangs() == "its state was deleted"
    unit.commands()
    assert unit.hangs() == ""
    assert (folder_of(config) / "secret").stat().st_mode & 0o777 == 0o600
    long_ago = time.time() - HANGS - 1
    os.utime(folder_of(config) / "heartbeat", (long_ago, long_ago))
    assert unit.hangs() == "the node gave no sign of life for 180 s"


def test_a_site_that_was_never_up_has_no_status(tmp_path: Path) -> None:
    assert node_status(read_site_config(write_site_toml(tmp_path))) is None


def test_the_bundles_that_may_run_are_those_of_site_toml_now(tmp_path: Path) -> None:
    site = write_site_toml(tmp_path, policy={"bundles": ["a"]})
    assert bundles_of(site) == {"a"}
    write_site_toml(tmp_path, policy={"bundles": ["b", "c"]})
    assert bundles_of(site) == {"b", "c"}
    site.write_text("no TOML [")
    assert bundles_of(site) == frozenset()


def test_only_a_bundle_on_the_list_that_is_what_it_says_may_run() -> None:
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # of b"hello"
    assert allowed(b"hello", digest, frozenset({digest}))
    assert not allowed(b"hello", digest, frozenset())
    assert not allowed(b"hello!", digest, frozenset({digest}))
    assert not allowed(b"hello", "0" * 64, frozenset({digest}))
