"""Models: which is in use, what it has forgotten; evidence and promotion of what runs made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from excise.common.errors import ConfigError
from excise.common.terminal import tell
from excise.server.cli.shared import AsJson, By, RunName, ServerToml, Why, print_list, say, server

ARCHITECTURES = (
    "allcnn",
    "densenet121",
    "efficientnet_b0",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "resnet18",
    "resnet50",
    "vit_b_16",
)
"""`known_models()`, written out for the help, since that brings torch."""


@server.command("model")
def bring_in(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Its weights: safetensors, or a torch state dict.")],
    classes: Annotated[int, typer.Option(min=1, help="Classes of the model; labels with --multi-label.")],
    by: By,
    model: Annotated[
        str, typer.Option(help=f"Its architecture: {', '.join(ARCHITECTURES)}; or package.module:function, one of your own.")
    ] = "allcnn",
    size: Annotated[int, typer.Option(min=16, help="Side of its images, pixels.")] = 32,
    channels: Annotated[int, typer.Option(min=1, max=3, help="1 grey, 3 colour.")] = 1,
    width: Annotated[float, typer.Option(help="Of allcnn: its width.")] = 1.0,
    multi_label: Annotated[bool, typer.Option("--multi-label", help="An image has any number of labels.")] = False,
    why: Annotated[str, typer.Option("--why", help="Where it comes from.")] = "",
    server_toml: ServerToml = Path("server.toml"),
) -> None:
    """Bring in the model that is deployed, or another that was made elsewhere: it is the one in use from now on."""
    from excise.common.models import ModelSpec
    from excise.server.config import store_of
    from excise.server.registry import bring_in as take_in

    spec = ModelSpec(name=model, classes=classes, size=size, channels=channels, width=width, multi_label=multi_label)
    with store_of(server_toml) as store:
        version = take_in(store, server_toml.parent, file, spec, by, why)
    tell(f"model {version} is in use")


@server.command()
def models(server_toml: ServerToml = Path("server.toml"), as_json: AsJson = False) -> None:
    """Every model: which is in use, which it was made of, which requests it has forgotten; --json has the digests too."""
    from excise.server.config import store_of
    from excise.server.registry import versions

    with store_of(server_toml) as store:
        found = versions(store)
    if as_json:
        told = [{"current": one.current, "state": one.state, **json.loads(one.manifest)} for one in found]
        typer.echo(json.dumps(told, indent=2))
        return
    rows = [
        (
            str(one.version),
            "in use" if one.current else one.state,
            str(one.parent) if one.parent else "brought in",
            one.run or "–",
            ", ".join(one.requests) or "–",
        )
        for one in found
    ]
    print_list(("model", "state", "made of", "run", "has forgotten"), rows, whole="run")


@server.command()
def candidates(run: RunName, server_toml: ServerToml = Path("server.toml"), as_json: AsJson = False) -> None:
    """What a run tried, how each came out, and which was chosen.

    Accuracy on forget, retain and held-out images, and the membership AUC; --json has the digests too.
    """
    from excise.server.config import read_server_config

    path = read_server_config(server_toml).runs / run / "metrics.json"
    if not path.exists():
        raise ConfigError(f"the run '{run}' is not at its end, or there is none: excise server status")
    measured = json.loads(path.read_text())
    tried = measured.get("candidates") or {"unlearned": measured["unlearned"] | {"chosen": True, "on_front": True}}
    if as_json:
        typer.echo(json.dumps(tried, indent=2))
        return
    keys = ("forget_accuracy", "retain_accuracy", "held_out_accuracy", "membership_auc")
    columns = ("candidate", "chosen", "front", "forget", "retain", "held-out", "AUC")
    rows = [("the model before", "", "", *(_three(measured["original"]["pooled"].get(key)) for key in keys))]
    for name, one in tried.items():
        marks = ["✓" if one.get(key) else "" for key in ("chosen", "on_front")]
        rows.append((name, *marks, *(_three(one["pooled"].get(key)) for key in keys)))
    print_list(columns, rows, whole="candidate")


@server.command()
def verify(
    run: RunName,
    by: By,
    override: Annotated[
        str, typer.Option("--override", help="Why it is taken although a clause is missed or a site did not sign.")
    ] = "",
    server_toml: ServerToml = Path("server.toml"),
) -> None:
    """Find that the evidence of a run is complete: the acceptance rule is met, and every site signed."""
    from excise.server.config import read_server_config, store_of
    from excise.server.evidence import verify as find

    with store_of(server_toml) as store:
        find(store, server_toml.parent, read_server_config(server_toml), run, by, override)
    tell(f"'{run}' is verified. Next: excise server promote {run}")


@server.command()
def promote(run: RunName, by: By, why: Why, server_toml: ServerToml = Path("server.toml")) -> None:
    """Use the revised model of a verified run from now on; sites fetch it."""
    from excise.server.config import read_server_config, store_of
    from excise.server.decisions import promote as use

    config = read_server_config(server_toml)
    with store_of(server_toml) as store:
        used = use(store, server_toml.parent, config, run, by, why)
    tell(f"model {used.version} is in use: sites get it by excise site fetch")


@server.command()
def rollback(
    model: Annotated[int, typer.Argument(metavar="VERSION", help="The model that is in use, and is to be left.")],
    by: By,
    why: Why,
    server_toml: ServerToml = Path("server.toml"),
) -> None:
    """Use the model again that the present one was made of. Its requests count as not carried out."""
    from excise.server.config import read_server_config, store_of
    from excise.server.decisions import leave

    config = read_server_config(server_toml)
    with store_of(server_toml) as store:
        back = leave(store, server_toml.parent, config, model, by, why)
    tell(f"model {back.version} is in use again")
    if back.warning:
        tell(back.warning)


@server.command()
def export(
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write.")],
    version: Annotated[int | None, typer.Option(help="Which model; the one in use without.")] = None,
    server_toml: ServerToml = Path("server.toml"),
) -> None:
    """Write a model for others: safetensors, its signed manifest, and a model card."""
    from excise.server.config import store_of
    from excise.server.export import export as write

    with store_of(server_toml) as store:
        chosen = write(store, server_toml.parent, version, to)
    tell(f"model {chosen.version} is in {to}")


@server.command()
def evidence(run: RunName, server_toml: ServerToml = Path("server.toml"), as_json: AsJson = False) -> None:
    """Write the evidence of a run anew, as it is signed by now, and say whose signatures it has."""
    from excise.server.config import read_server_config, store_of
    from excise.server.evidence_pack import PACK, PAGE, pack_of, unsigned, write_pack

    config = read_server_config(server_toml)
    with store_of(server_toml) as store:
        write_pack(store, config, run)
        pack, missing = pack_of(store, run), unsigned(store, run)
    if as_json:
        typer.echo(json.dumps(pack, indent=2))
        return
    say(f"{config.runs / run / PACK}\n{config.runs / run / PAGE}")
    say(f"signed by {', '.join(one['signer'] for one in pack['signatures'])}; awaited: {', '.join(missing) or 'nobody'}")


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
