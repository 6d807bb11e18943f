"""The only door for sites: nginx in front of the SuperLink, through which Flower's fleet passes and nothing else.

The SuperLink serves its fleet, its control and its runtime on one port, and the latter two ask for no login. It therefore
listens on loopback alone, and this configuration publishes the paths below ``/v1/fleet/``. nginx compares the path after it
has resolved dots, double slashes and escapes, and passes on the path that it compared.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from excise.common.errors import ConfigError
from excise.common.files import storage_errors, write_atomically
from excise.server.config import ServerConfig
from excise.server.setup import AUTHORITY, SERVER_CERTIFICATE, SERVER_KEY

BODY = "32m"
"""Largest body of one request: Flower sends models in pieces of 5 MB."""
CONFIGURATION = """\
# Written by excise server up; changes are lost.
daemon off;
worker_processes 1;
pid {state}/nginx.pid;
error_log stderr warn;

events {{
    worker_connections 1024;
}}

http {{
    # Neither addresses nor paths of those who asked are kept: runs and their events are told by the coordinator's own log.
    access_log off;
    server_tokens off;
    client_body_temp_path {state}/nginx/body;
    proxy_temp_path {state}/nginx/proxy;
    fastcgi_temp_path {state}/nginx/fastcgi;
    uwsgi_temp_path {state}/nginx/uwsgi;
    scgi_temp_path {state}/nginx/scgi;
    client_max_body_size {body};
    client_body_timeout 60s;
    client_header_timeout 30s;
    limit_conn_zone $binary_remote_addr zone=sites:1m;

    server {{
        listen {port} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;
        limit_conn sites 64;

        location /v1/fleet/ {{
            proxy_pass https://127.0.0.1:{link}/v1/fleet/;
            proxy_ssl_trusted_certificate {authority};
            proxy_ssl_verify on;
            proxy_ssl_name localhost;  # nginx compares names, not addresses
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_request_buffering off;
            proxy_connect_timeout 10s;
            proxy_read_timeout 300s;
        }}

        location = /v1/fleet {{
            return 403;
        }}

        location / {{
            return 403;
        }}
    }}
}}
"""


def nginx() -> str:
    """The program.

    Raises
    ------
    ConfigError : it is not installed
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise ConfigError("nginx is not installed: sites are let in through it. On Debian: apt-get install nginx-light")
    return program


def write_configuration(folder: Path, config: ServerConfig) -> Path:
    """Write ``nginx.conf`` into the coordinator's state, and make the folders that it names.

    Raises
    ------
    ConfigError : a path holds what nginx cannot be told
    StorageError : it cannot be written
    """
    with storage_errors(config.state):
        (config.state / "nginx").mkdir(parents=True, exist_ok=True)
    paths = {
        "state": config.state,
        "certificate": folder / SERVER_CERTIFICATE,
        "key": folder / SERVER_KEY,
        "authority": folder / AUTHORITY,
    }
    for path in paths.values():
        if any(letter in str(path) for letter in " ;{}\"'$\\\n"):
            raise ConfigError(f"nginx cannot be told the path {path}: choose one without blanks, quotes, $, ; and braces")
    text = CONFIGURATION.format(body=BODY, port=config.fleet_port, link=config.link_port, **paths)
    write_atomically(config.state / "nginx.conf", text)
    return config.state / "nginx.conf"
