"""The child's side of ``child``: ``python -P -m plimsoll.catalog.lifeline MODULE ARGUMENTS...``.

Its stdin is a pipe that nobody writes to. It closes when the parent is gone, however that went, and the child then
ends at once.
"""

import os
import runpy
import sys
import threading


def main() -> None:
    """Watch stdin, then become the module."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
