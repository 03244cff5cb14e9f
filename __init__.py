"""Plimsoll: an MLX API server that does not run out of memory."""

__version__ = "0.1.0"
