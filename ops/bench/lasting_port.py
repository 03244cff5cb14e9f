"""Ports for servers that are not there yet, or come back on the same port."""

import random
import socket

# Below those that systems give to whoever asks for any: Linux begins at 32768, macOS at 49152.
_PORTS = range(15_000, 32_000)


def lasting_port() -> int:
    """A free port that no other process is given while its server is not there."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
