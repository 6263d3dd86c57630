"""Running the application: the socket, Ctrl-C, the end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn

from kandiga_run.errors import RunError
from kandiga_run.server.app import create_app
from kandiga_run.server.service import Service
from kandiga_run.terminal.output import Output

#: Seconds between the end of the answers and that of connections whose clients do not read.
_GRACE_SECONDS = 5


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address. Raises RunError when that is not to be had.

    Before a model is loaded: a port in use is told at once.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise RunError(f"--host {host}: {error.strerror}") from error
    bound = socket.socket(family, kind, protocol)
    try:
        # Else a server started again would have to wait for its own old connections.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()
    except OSError as error:
        bound.close()
        raise RunError(
            f"port {port} of {host}: {error.strerror}; --port chooses another"
        ) from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the address under which a browser reaches the server."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(service: Service, bound: socket.socket, output: Output, *, drain_seconds: float) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises KeyboardInterrupt after Ctrl-C."""
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(drain_seconds) + _GRACE_SECONDS,
        # What other protocols would bring is not used, and their packages need not be there.
        http="h11",
        ws="none",
        lifespan="off",
    )
    server = _Server(config, service, output, url_of(bound), drain_seconds)
    server.run(sockets=[bound])
    if server.is_interrupted:
        raise KeyboardInterrupt


class _Server(uvicorn.Server):
    """Lets answers finish for a while when asked to stop, and gives them up when asked again."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        output: Output,
        url: str,
        drain_seconds: float,
    ) -> None:
        super().__init__(config)
        self._service, self._output, self._url = service, output, url
        self._drain_seconds = drain_seconds
        self.is_interrupted = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where the server is, once it answers."""
        await super().startup(sockets)
        model = self._service.settings.model
        self._output.notice(f"{model} is served at {self._url} (Ctrl-C stops)")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no further request, let answers go on for a while, cancel the rest."""
        close = self._service.scheduler.close
        closing = asyncio.create_task(asyncio.to_thread(close, self._drain_seconds))
        await super().shutdown(sockets)
        await closing

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals without raising them again: after Ctrl-C there is more to close."""
        taken = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End at the first signal; at the second give up what is being answered."""
        self.is_interrupted |= sig == signal.SIGINT
        if self.should_exit:
            # In a thread: this may have interrupted somebody who holds the scheduler's lock.
            threading.Thread(target=self._service.scheduler.close, args=(0.0,)).start()
            return
        self.should_exit = True
