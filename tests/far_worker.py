"""A rank on a host whose memory a file says: ``python far_worker.py FILE``; FILE holds percent of 100 GiB used."""

import sys
from pathlib import Path

from plimsoll.engine import worker
from plimsoll.memory.sample import Reading
from plimsoll.memory.sources import host

GIB = 1024**3

if __name__ == "__main__":
    file = Path(sys.argv[1])
    host.reader = lambda *_: lambda _failures: Reading("host", 100 * GIB, int(float(file.read_text()) * GIB))
    sys.argv[1:] = ["stdio"]
    worker.main()
