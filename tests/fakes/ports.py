"""A port for a program that cannot take one itself and say which."""

import socket


def free_port() -> int:
    """One of 127.0.0.1 that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
