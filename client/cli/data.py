"""Making a site, and looking through its images."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from excise.client.cli.shared import AsJson, SiteToml, print_counts, say, site
from excise.client.config import read_site_config
from excise.common.errors import ConfigError
from excise.common.invite import SITE_NAME
from excise.common.terminal import progress, tell

TITLES = {"scan": "Looking through the folder", "prepare": "Preparing images"}


class Source(StrEnum):
    """Kinds of places that images come from."""

    DICOM = "dicom"
    DICOMWEB = "dicomweb"
    IMAGE_FOLDER = "image-folder"
    CSV = "csv"
    NPZ = "npz"


def _holds_no_site(folder: Path) -> Path:
    """Before anything is asked."""
    from excise.client.setup import check_is_new

    check_is_new(folder)
    return folder


def _is_a_name(name: str) -> str:
    """What is not accepted at a prompt is asked for again at once."""
    if not re.fullmatch(SITE_NAME, name):
        raise typer.BadParameter(f"'{name}' is no name of a site: small letters, digits and hyphens, at most 64")
    return name


def _is_there(context: typer.Context, path: str) -> str:
    """Whether there are images there, where it is known by now of which kind they are."""
    if context.params.get("source", Source.DICOMWEB) != Source.DICOMWEB and not Path(path).exists():
        raise typer.BadParameter(f"there is no '{path}'")
    return path


def _is_a_file(labels: str) -> str:
    if labels and not Path(labels).is_file():
        raise typer.BadParameter(f"there is no file '{labels}'")
    return labels


@site.command()
def init(
    name: Annotated[
        str,
        typer.Option(
            help="Name of the site: small letters, digits and hyphens.", prompt="Name of the site", callback=_is_a_name
        ),
    ],
    source: Annotated[Source, typer.Option(help="Kind of the images' source.", prompt="Kind")] = Source.DICOM,
    path: Annotated[
        str,
        typer.Option(
            help="Folder of the images, the npz file, or the address of the PACS' DICOMweb service.",
            prompt="Where",
            callback=_is_there,
        ),
    ] = "images",
    labels: Annotated[
        str,
        typer.Option(
            help="CSV of labels, for dicom, dicomweb and csv.",
            prompt="CSV of labels, for dicom, dicomweb and csv",
            callback=_is_a_file,
        ),
    ] = "",
    classes: Annotated[
        str, typer.Option(help="Classes in the order that all sites share, parted by commas; read from the labels without.")
    ] = "",
    multi_label: Annotated[bool, typer.Option("--multi-label", help="An image has any number of labels.")] = False,
    folder: Annotated[
        Path, typer.Option(help="Folder of the site, which is made.", callback=_holds_no_site, is_eager=True)
    ] = Path(),
) -> None:
    """Make a site: a commented site.toml, which is yours, and its keys, which never leave. Asks for what is not given."""
    from excise.client.setup import init as make_site

    if source is not Source.DICOMWEB and not Path(path).exists():  # --path may have come before --source
        raise ConfigError(f"there is no '{path}', where images should be")
    table = Path(labels).absolute() if labels else None
    where = path if source is Source.DICOMWEB else str(Path(path).absolute())
    named = [one.strip() for one in classes.split(",") if one.strip()] or _classes_of(source, Path(path), table, multi_label)
    make_site(folder, name, source, where, table, named, multi_label)
    tell(f"{folder / 'site.toml'} is written: read it, it says what may leave. The keys are in {folder / 'keys'}.")
    tell("Next: excise site scan, then excise site doctor")


def _classes_of(source: Source, path: Path, labels: Path | None, multi_label: bool) -> list[str]:
    """The classes that the site's own labels name, in the order of the alphabet."""
    from excise.client.labels import read_labels
    from excise.client.sources import named_labels

    if source is Source.IMAGE_FOLDER:
        found = {at.name for at in path.iterdir() if at.is_dir()} if path.is_dir() else set()
    elif labels and source in (Source.DICOM, Source.DICOMWEB, Source.CSV):
        lines = read_labels(labels, "image" if source is Source.CSV else "SOPInstanceUID")
        found = {name for line in lines.values() for name in named_labels(line["label"], multi_label)}
    else:
        raise ConfigError("name the classes in the order that all sites share: --classes 'no tumour,tumour'")
    tell(f"classes, as your own labels name them: {', '.join(sorted(found))}. Every site needs the same, in the same order.")
    return sorted(found)


@site.command()
def keys(site_toml: SiteToml = Path("site.toml"), as_json: AsJson = False) -> None:
    """The public signing key of this site, to be told by telephone or letter: what --key of excise evidence verify takes."""
    from excise.client.setup import SIGNING_KEY
    from excise.common.signing import public_hex, read_key

    name, key = read_site_config(site_toml).name, public_hex(read_key(site_toml.parent / "keys" / SIGNING_KEY))
    if as_json:
        typer.echo(json.dumps({name: key}, indent=2))
        return
    say(f"{name}={key}")


@site.command()
def scan(
    site_toml: SiteToml = Path("site.toml"),
    problems: Annotated[bool, typer.Option("--problems", help="List every file that is skipped, with its reason.")] = False,
    as_json: AsJson = False,
) -> None:
    """Index the images, prepare those that are new or changed, and tell what there is. Nothing leaves the site."""
    from excise.client.forgotten import Register
    from excise.client.images import load_images
    from excise.client.sources import index_of
    from excise.client.summary import summarise

    config = read_site_config(site_toml)
    with progress(TITLES) as report:
        if config.data.is_dicom:
            index_of(config).scan(lambda found, read: report("scan", read, found, ""))
        forgotten = Register(site_toml.parent, config.split.key).holds
        found, _ = load_images(config, lambda done, total: report("prepare", done, total, ""), forgotten, retry=True)
    summary = summarise(found)
    skipped = [(problem.item, problem.reason) for problem in found.problems]
    if as_json:
        told = {**summary, "problems": [{"item": item, "reason": reason} for item, reason in skipped]} if problems else summary
        typer.echo(json.dumps(told, indent=2))
        return
    _print_summary(summary)
    if problems:
        for item, reason in skipped:
            say(f"{item}: {reason}")
    elif skipped:
        for reason, count in Counter(reason for _, reason in skipped).most_common(5):
            tell(f"skipped {count}: {reason}")
        tell("Every skipped file and its reason: excise site scan --problems")


@site.command()
def stats(site_toml: SiteToml = Path("site.toml"), as_json: AsJson = False) -> None:
    """Numbers of images as the last scan found them, by modality, maker, model, year, class and split."""
    from excise.client.site import open_site
    from excise.client.summary import summarise

    opened = open_site(site_toml.absolute())
    summary = summarise(opened.scan)
    summary["total"]["forgotten"] = opened.forgotten
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    _print_summary(summary)
    if opened.forgotten:
        say(f"{opened.forgotten:,} more are left out: they were forgotten")


def _print_summary(summary: dict[str, dict[str, int]]) -> None:
    total = summary["total"]
    say(f"{total['images']:,} images of {total['patients']:,} patients; {total['skipped']:,} skipped")
    print_counts({name: counts for name, counts in summary.items() if name != "total"})


@site.command()
def crosswalk(
    mapping: Annotated[Path, typer.Argument(help="CSV: original,patient. You may delete it afterwards.")],
    site_toml: SiteToml = Path("site.toml"),
) -> None:
    """Let lists of the hospital's own patient numbers find de-identified images. Only keyed hashes of the numbers are kept."""
    from excise.client.crosswalk import Crosswalk, read_pairs

    walk = Crosswalk(site_toml.parent, read_site_config(site_toml).split.key)
    new = walk.add(read_pairs(mapping))
    tell(f"{new:,} new pairs, {len(walk):,} in all")


cache = typer.Typer(no_args_is_help=True, help="The prepared images that the site keeps, so as not to decode them anew.")
site.add_typer(cache, name="cache")


@cache.command("purge")
def purge_cache(site_toml: SiteToml = Path("site.toml")) -> None:
    """Delete every prepared image and all that was computed from images. The next scan makes them again."""
    from excise.client.images import IMAGES
    from excise.client.preparation import PREPARATIONS

    state, size = read_site_config(site_toml).state, 0
    for folder in (state / IMAGES, state / PREPARATIONS):
        size += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if folder.exists():
            shutil.rmtree(folder)
    tell(f"{size / 1e6:,.1f} MB deleted; excise site scan prepares the images again")
