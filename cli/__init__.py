"""The command line: ``plimsoll serve``, ``chat``, ``models``, ``ps`` and the rest."""

import sys


def main() -> None:
    """Run it, also where Ctrl-C comes before anything is imported."""
    try:
        from plimsoll.cli.app import run  # noqa: PLC0415 - as said
    except KeyboardInterrupt:
        sys.exit(130)
    run()


__all__ = ["main"]
