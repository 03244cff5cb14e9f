"""What recording costs: 100,000 requests with 20 batches each, per request, and the list of the newest.

    python ops/bench/recording.py

The tokens go into a black box in a folder that is removed afterwards. Target: 20 us for what a request costs beside its
batches of tokens, which are counted for /metrics in any case.
"""

import gc
import logging
import tempfile
import time
from pathlib import Path

import msgspec

from plimsoll.actors.replies import Delta, Finished, Waiting
from plimsoll.engine.protocol import Usage
from plimsoll.http.recorder import Recorder
from plimsoll.http.request_log import RequestLog, row_of
from plimsoll.journal.blackbox import BlackBox

REQUESTS = 100_000


def play(recorder: Recorder, number: int) -> None:
    """One request: it waits, reads, and ends with its first tokens."""
    record = recorder.begin("openai", f"model-{number % 5}", key=f"key-{number % 7}", request_id=f"{number:032x}")
    record.batch([Waiting("queue")])
    record.batch([Waiting("prefill", 1, 2)])
    record.batch([Delta("a", 1)])
    record.batch([Delta("b", 2), Finished("stop", Usage(100, 2, 50, "memory", 50))])


def main() -> None:
    """Print the figures."""
    logging.getLogger("plimsoll").setLevel(logging.WARNING)  # the line of each request is not new
    with tempfile.TemporaryDirectory() as folder:
        box = BlackBox(Path(folder) / "box.sqlite")
        box.start()
        recorder = Recorder(log=RequestLog(lambda one: box.tokens(one.model, one.key, (one.prompt_tokens, 0, 1))))
        gc.collect()
        # The time of the thread that serves; the black box writes on its own.
        began = time.thread_time()
        for number in range(REQUESTS):
            play(recorder, number)
        spent_s = time.thread_time() - began
        box.flush(30.0)
        box.close("bench")
    print(f"{REQUESTS:,} requests: {1e6 * spent_s / REQUESTS:.1f} us each with their batches; {box.dropped} rows lost")
    began = time.perf_counter()
    body = msgspec.json.encode({"requests": [row_of(one) for one in recorder.log.select()]})
    print(f"the list of {len(recorder.log.newest)}: {1e3 * (time.perf_counter() - began):.1f} ms, {len(body):,} bytes")


if __name__ == "__main__":
    main()
