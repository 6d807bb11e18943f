"""`excise site`: what a hospital engineer does beside the images."""

from excise.client.cli import data, requests, running
from excise.client.cli.shared import site

__all__ = ["data", "requests", "running", "site"]
