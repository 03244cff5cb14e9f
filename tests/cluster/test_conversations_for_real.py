"""The built-in model on two nodes: conversations stay where their prompt cache is."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from plimsoll import config
from plimsoll.catalog.installed import default_cache_dir
from plimsoll.catalog.source import BUILTIN

MODEL = BUILTIN.name
LOADED = f"model {MODEL} loaded into memory"


def test_a_second_turn_goes_to_the_replica_that_answered_the_first(cluster_server: Any) -> None:
    server = cluster_server(
        models={"builtin": True, "cache_dir": str(default_cache_dir(config.load()))},
        # Both nodes are on this machine: on disk they would find each other's conversations.
        engine={"dequantize": "never", "disk_cache": 0, "max_batch": 1},
        cluster={"grow_after": "100ms"},
    )
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda number: server.chat(MODEL, f"Say {number}.", max_tokens=8), range(3)))
    server.until(lambda: server.log.read_text().count(LOADED) == 2, "a replica of the busy model")

    first = [{"role": "user", "content": "Remember these words. " + " ".join(f"word{n}" for n in range(12))}]
    with server.stream(MODEL, "Count from one to a thousand.") as running:
        lines = running.iter_lines()
        next(line for line in lines if '"content"' in line)
        # Of two idle replicas the same one is always taken first: the other one answers this.
        answer = server.chat(MODEL, messages=first, max_tokens=4).json()
    server.until(lambda: not _active(server), "the end of the other answer")
    said = answer["choices"][0]["message"]
    second = [*first, {"role": "assistant", "content": said["content"]}, {"role": "user", "content": "And now?"}]
    usage = server.chat(MODEL, messages=second, max_tokens=8).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= answer["usage"]["prompt_tokens"] - 8


def _active(server: Any) -> int:
    models = server.http.get("/admin/models").json()["models"]
    return sum(model["active"] for model in models)
