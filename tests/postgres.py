"""A PostgreSQL server of the tests' own, on loopback: Debian's program, started in a folder that is thrown away."""

from __future__ import annotations

import getpass
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text

from tests.deployment import free_port

URL = "EXCISE_TEST_POSTGRES"
"""Variable of the environment with the URL of another server's empty database, to be used instead."""


def programs() -> Path | None:
    """Where PostgreSQL's programs are, the newest; None without them."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextmanager
def postgres(at: Path) -> Iterator[str]:
    """The URL of a server that listens."""
    # It does not run as root; Debian has a user for it, who has to be able to come to the folder.
    as_user = ["runuser", "-u", "postgres", "--"] if getpass.getuser() == "root" else []
    folder, port = Path(tempfile.mkdtemp(prefix="excise-postgres-")), free_port()
    if as_user:
        shutil.chown(folder, "postgres")
    data = folder / "data"

    def call(program: str, *arguments: object) -> None:
        command = [*as_user, str(at / program), *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=120, cwd=folder)

    call("initdb", "-D", data, "-U", "excise", "--auth", "trust", "--no-sync")
    options = f"-p {port} -h 127.0.0.1 -k {folder}"
    call("pg_ctl", "-D", data, "-l", folder / "log", "-o", options, "-w", "start")
    try:
        yield f"postgresql+psycopg://excise@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


def emptied(url: str) -> str:
    """The same URL, once everything in its database is gone."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return url
