"""The dashboard of a coordinator, or of a folder of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from excise.common.terminal import tell

app = typer.Typer()


@app.command()
def dashboard(
    runs: Annotated[Path | None, typer.Option(help="A folder of runs, as excise simulate leaves them.")] = None,
    server_toml: Annotated[
        Path | None, typer.Option("--server", help="A coordinator's server.toml; the one that is here without --runs.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; with TLS when others can reach it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 8445,
) -> None:
    """Show runs as pages that are live, until stopped."""
    from excise.server.dashboard.place import place_of
    from excise.server.dashboard.serve import new_token, open_source, serve

    here = Path("server.toml")
    toml = server_toml or (here if runs is None and here.exists() else None)
    source = open_source(toml, runs or Path("runs"))
    place, token = place_of(source.toml, host, port), new_token()

    def listening(url: str) -> None:
        if source.store:
            tell(f"{url} shows the coordinator '{source.name}'; sign in as a user (excise server user add)")
        else:
            tell(f"Open {url}/enter?token={token}")
            tell(f"It shows the runs in {source.runs} to whoever has this address. Ctrl-C ends it.")

    serve(source, place, token, listening)
