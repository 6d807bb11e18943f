"""`excise site`: what a hospital engineer does beside the images."""

from excise.client.cli import coordination, data, requests, running
from excise.client.cli.shared import site

__all__ = ["coordination", "data", "requests", "running", "site"]
