"""What a coordinator must not lose: sites, requests and their lives, models, evidence. SQLite or PostgreSQL, by SQLAlchemy."""

from excise.server.store.opening import Store, open_store

__all__ = ["Store", "open_store"]
