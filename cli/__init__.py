"""The command line: ``plimsoll serve``, ``chat``, ``models``, ``ps`` and the rest."""

from plimsoll.cli.app import main

__all__ = ["main"]
