"""Values of command-line flags that several stages take, for ``type=`` of argparse."""

import argparse


def port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port from 0 to 65535 is wanted, found '{text}'")
    return int(text)


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"a number above 0 is wanted, found '{text}'")
    return value
