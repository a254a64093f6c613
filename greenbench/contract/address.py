"""The address of a running server, as a person gives it."""

import ipaddress
from urllib.parse import urlsplit

EXAMPLE = "http://127.0.0.1:8000"


def address_fault(text: str) -> str | None:
    """What is wrong with an address, as a sentence that shows it and what one looks like; None: nothing."""
    what = _fault(text)
    return None if what is None else f"'{shown(text)}' {what}; an address looks like {EXAMPLE}"


def _fault(text: str) -> str | None:
    if text != text.strip() or any(c.isspace() or not c.isprintable() for c in text):
        return "holds white space"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:  # a port that is no number below 65536, half an IPv6 address
        return f"is no address ({error})"
    if parts.scheme not in ("http", "https") or not text.lower().startswith(f"{parts.scheme}://"):
        return "does not start with http:// or https://"
    if not parts.hostname:
        return "names no host"
    if port == 0:
        return "names port 0"
    if parts.username is not None or parts.password is not None:
        return "holds a user or password, which would be stored with every run"
    if parts.query or parts.fragment:
        return "goes on after its path ('?' or '#')"
    return None


def opened_warning(host: str, what: str) -> str | None:
    """What is said before ``what`` listens beyond this machine; None where ``host`` is of the loopback."""
    try:
        is_loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        is_loopback = host.lower() == "localhost"
    if is_loopback:
        return None
    return (
        f"{what} listens on {host or 'all addresses'}: everyone who reaches this machine can use it, without "
        "a password; keep it behind a firewall, or leave the address out for 127.0.0.1"
    )


def shown(text: str) -> str:
    """Without user and password."""
    head, at, tail = text.rpartition("@")
    scheme = head.partition("//")[0]
    return f"{scheme}//…@{tail}" if at else text
