"""What stands for ssh in tests: the command runs in a session of its own, and only pipes lead to it.

``python far_shell.py LOG HOST COMMAND``: as ssh's, its end closes the command's streams, and nothing else ends it.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path


def pump(source: int, sink: int) -> None:
    """Copy until the source ends, then close the sink."""
    while data := os.read(source, 1 << 16):
        view = memoryview(data)
        while view:
            view = view[os.write(sink, view) :]
    os.close(sink)


if __name__ == "__main__":
    with Path(sys.argv[1]).open("a") as log:
        log.write(f"{sys.argv[2]}\n")
    child = subprocess.Popen(
        ["sh", "-c", " ".join(sys.argv[3:])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert child.stdin
    assert child.stdout
    threading.Thread(target=pump, args=(0, child.stdin.fileno()), daemon=True).start()
    pump(child.stdout.fileno(), 1)
    os._exit(child.wait() & 0xFF)
