"""`excise server`: what a coordinator does."""

from excise.server.cli import members, models, requests, running, users
from excise.server.cli.shared import server

__all__ = ["members", "models", "requests", "running", "server", "users"]
