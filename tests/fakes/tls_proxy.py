"""A gateway before a server: TLS, a path prefix that it takes off, a connection that ends with each reply."""

import socket
from pathlib import Path
from urllib.parse import urlsplit

from tests.fakes.certificates import server_context
from tests.fakes.plain_server import Answer, PlainServer, page

READ_BYTES = 65_536


def tls_proxy(upstream: str, prefix: str, certificate: Path) -> PlainServer:
    """Serves ``upstream`` (http://host:port) at https://…/prefix; other paths are 404."""
    target = urlsplit(upstream)
    return PlainServer(
        _forward((str(target.hostname), int(target.port or 80)), prefix.encode()),
        server_context(certificate),
    )


def _forward(target: tuple[str, int], prefix: bytes) -> Answer:
    def answer(client: socket.socket, asked: bytes) -> None:
        head, _, body = asked.partition(b"\r\n\r\n")
        first, *fields = head.split(b"\r\n")
        method, path, version = first.split(b" ", 2)
        if not path.startswith(prefix + b"/"):
            client.sendall(page(b"no such route", "404 Not Found", "connection: close\r\n"))
            return
        passed = [field for field in fields if not field.lower().startswith(b"connection:")]
        length = next(
            (int(f.partition(b":")[2]) for f in fields if f.lower().startswith(b"content-length:")),
            0,
        )
        with socket.create_connection(target) as server:
            first = b" ".join((method, path.removeprefix(prefix), version))
            server.sendall(b"\r\n".join((first, *passed, b"connection: close", b"", body)))
            sent = len(body)
            while sent < length:
                piece = client.recv(READ_BYTES)
                server.sendall(piece)
                sent += len(piece)
            while piece := server.recv(READ_BYTES):
                client.sendall(piece)

    return answer
