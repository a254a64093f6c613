"""A server on a raw socket: a function answers each connection's one request, drip by drip or for ever."""

import socket
import ssl
import threading
from collections.abc import Callable
from typing import Self

Answer = Callable[[socket.socket, bytes], None]  # gets the connection and the request as it came


class PlainServer:
    """``with PlainServer(answer) as server:`` serves in threads. ``asked``: the requests so far."""

    def __init__(self, answer: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.asked: list[bytes] = []
        self._answer = answer
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # a thread that waits for a connection ends
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                taken, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(taken,), daemon=True).start()

    def _serve(self, taken: socket.socket) -> None:
        try:
            with (
                self._tls.wrap_socket(taken, server_side=True) if self._tls else taken as connected
            ):
                asked = b""
                while b"\r\n\r\n" not in asked:
                    piece = connected.recv(65536)
                    if not piece:
                        return
                    asked += piece
                self.asked.append(asked)
                self._answer(connected, asked)
        except OSError:
            pass  # the client left


def page(body: bytes, status: str = "200 OK", extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{extra}\r\n".encode() + body


def pages(table: dict[str, bytes]) -> Answer:
    """Whole answers by path, without the query; 404 for others."""

    def answer(connected: socket.socket, asked: bytes) -> None:
        path = asked.split(b" ", 2)[1].decode().partition("?")[0]
        connected.sendall(table.get(path, page(b'{"detail":"Not Found"}', "404 Not Found")))

    return answer
