"""A TLS proxy for tests that keeps every byte that leaves a site, as it was before encryption."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.deployment import free_port


class Recorder:
    """What went through the proxy, from the sites to the SuperLink."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.sent = bytearray()


@contextlib.contextmanager
def recorder(certificate: Path, key: Path, superlink: int) -> Iterator[Recorder]:
    """A proxy in front of the SuperLink at the port `superlink`, with the same certificate."""
    recorded = Recorder(free_port())
    inward = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inward.load_cert_chain(certificate, key)
    outward = ssl.create_default_context(cafile=str(certificate))
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keep: bool) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await reader.read(2**16):
                if keep:
                    recorded.sent += data
                writer.write(data)
                await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", superlink, ssl=outward)
        pipes = [asyncio.ensure_future(pipe(reader, forth, keep=True)), asyncio.ensure_future(pipe(back, writer, keep=False))]
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in pipes:
                one.cancel()
            for end in (forth, writer):
                end.transport.abort()

    async def listen() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", recorded.port, ssl=inward)
        ready.set()
        await stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.2)  # in which the transports close

    thread = threading.Thread(target=lambda: loop.run_until_complete(listen()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield recorded
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
