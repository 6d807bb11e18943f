"""The result page as one HTML file: no script, nothing fetched, pictures in it, every value escaped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import excise.server
from excise.simulations.contest.report.markdown import LEGEND

if TYPE_CHECKING:
    from excise.simulations.contest.report.page import Report

FOLDERS = (Path(__file__).parent / "templates", Path(excise.server.__file__).parent / "templates")
"""Ours; and those of the reports of runs, whose style is shared."""


def html(report: Report) -> str:
    """The page."""
    environment = Environment(loader=FileSystemLoader(FOLDERS), autoescape=True, undefined=StrictUndefined)
    environment.filters["drawn"] = Markup  # pictures are drawn by us
    return environment.get_template("benchmark.html.j2").render(report=report, legend=LEGEND)
