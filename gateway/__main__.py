"""`python -m gateway --policy policy.yaml --pool NAME=URL …`: see docs/gateway.md."""

import logging
import resource
import signal
import socket
import sys
from contextlib import suppress

import uvicorn

from gateway.app import App
from gateway.connection import Connection
from gateway.options import read_options
from gateway.policy_file import summary
from greenbench.contract.address import opened_warning
from greenbench.contract.errors import exit_on_user_error

log = logging.getLogger("gateway")
BACKLOG = 4096
KEEP_ALIVE_S = 75  # longer than clients keep idle ones: no request meets a closed connection


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    return exit_on_user_error(lambda: serve(argv))


def serve(argv: list[str] | None) -> int:
    options = read_options(argv)
    if warning := opened_warning(options.host, "the gateway"):
        log.warning("%s", warning)
    app = App(options)
    raise_file_limit()
    listener = listen(options.host, options.port)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(
        f"gateway at http://{shown}:{port} ({summary(app.policy.now.policy)})",
        file=sys.stderr,
        flush=True,
    )
    running = server(app)

    def end(*_: object) -> None:
        """Of one that comes before uvicorn has its own handler; uvicorn raises its own again at the end."""
        running.should_exit = True

    signal.signal(signal.SIGTERM, end)
    running.run(sockets=[listener])
    return 0


def server(app: App) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http=Connection,
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            log_level="critical",  # what goes wrong with a request is said by the access log
            proxy_headers=False,  # an X-Forwarded-For must not pass for this machine
            server_header=False,
            date_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """Raises OSError, e.g. where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listener.setblocking(False)
    return listener


def raise_file_limit() -> None:
    """Each stream holds two sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))


if __name__ == "__main__":
    raise SystemExit(main())
