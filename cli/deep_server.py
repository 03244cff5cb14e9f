"""The processes that ``plimsoll doctor --deep`` starts: a server of its own, and mlx-lm alone."""

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil

from plimsoll.catalog.installed import default_cache_dir
from plimsoll.cli.client import Client
from plimsoll.config import Config

# mlx-lm alone, in a process with a worker's environment: greedy tokens, and the seconds of so many streams at once.
MLX_LM_ALONE = """
import json, sys, time
import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.utils import load_model, load_tokenizer
folder, order = sys.argv[1], json.loads(sys.argv[2])
cpu = mx.default_device().type == mx.DeviceType.cpu
if cpu:
    mx.disable_compile()
from pathlib import Path
model, config = load_model(Path(folder), lazy=True)
if cpu:
    model.set_dtype(mx.float32)
    from mlx_lm.utils import dequantize_model
    model = dequantize_model(model)
    model.set_dtype(mx.float32)
tokenizer = load_tokenizer(Path(folder), eos_token_ids=config.get("eos_token_id"))
told = {"device": str(mx.default_device()), "device_info": {k: str(v) for k, v in mx.device_info().items()}}
told["text"], told["per_s"] = "", {}
for streams in order["streams"]:
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": order["ask"]}], add_generation_prompt=True)
    generator = BatchGenerator(model, completion_batch_size=32)
    uids = generator.insert([prompt] * streams, [order["tokens"]] * streams)
    times, said, left = [], [], set(uids)
    while left:
        for one in generator.next()[1]:
            times.append(time.perf_counter())
            if one.uid == uids[0] and one.finish_reason != "stop":
                said.append(one.token)
            if one.finish_reason:
                left.discard(one.uid)
    told["per_s"][streams] = (len(times) - streams) / max(times[-1] - times[0], 1e-9)
    told["text"] = told["text"] or tokenizer.decode(said)
told["peak_bytes"] = mx.get_peak_memory()
print("TOLD" + json.dumps(told))
"""


IDLE = "deep-check-idle"
"""A model without weights beside those of the configuration."""


class DeepServer:
    """On a free port, with the models of ``config`` and a log of its own; no request waits beyond ``ends_s``."""

    def __init__(self, config: Config, model: str, ends_s: float) -> None:
        self._config = config
        self._model = model
        self._ends_s = ends_s
        self._client: Client
        self._settings: dict[str, Any] = {}
        self._path = Path()
        self.own_limit: Any = None
        self.process: subprocess.Popen[str] | None = None

    @property
    def left_s(self) -> float:
        return max(1.0, self._ends_s - time.monotonic())

    def end(self) -> None:
        """End it with its workers, whatever it does."""
        if self.process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def start(self, folder: Path) -> None:
        # The configuration in force but for what would meet the user's own server.
        plain = json.loads(msgspec.json.encode(msgspec.to_builtins(self._config, enc_hook=str)))
        models = plain["models"] | {"cache_dir": str(default_cache_dir(self._config))}
        models["entries"] = {**models["entries"], IDLE: {"source": "fake:"}}
        self.own_limit = plain["memory"]["limit"]
        self._settings = {
            "server": {"port": 0},
            "models": {key: models[key] for key in ("builtin", "dir", "dirs", "programs", "cache_dir", "entries")},
            "memory": {"limit": self.own_limit},
            "engine": {"spare_worker": False, "disk_cache": 0},
            "logging": {"file": str(folder / "log"), "blackbox": "none"},
        }
        self._path = folder / "deep.yaml"
        self._write()
        self.process = subprocess.Popen(  # noqa: S603 - our own server
            [sys.executable, "-P", "-m", "plimsoll", "serve", "--config", str(self._path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        line = self.process.stdout.readline() if self.process.stdout else ""
        found = re.search(r"http://[\d.]+:\d+", line)
        if found is None:
            raise RuntimeError(f"the server did not start: {line.strip() or 'it said nothing'}")
        self._client = Client(found[0])

    def _write(self) -> None:
        self._path.write_text(json.dumps(self._settings), encoding="utf-8")  # JSON is YAML

    def set_limit(self, limit: Any) -> None:
        """Have the running server follow another ``memory.limit``, in bytes or as a configuration says it."""
        self._settings["memory"]["limit"] = limit
        self._write()
        self.post("/admin/reload", {})

    def used_of_limit(self) -> int | None:
        """Bytes that the limit's source says are used; None until a sample was taken with the present limit."""
        lines = self._client.lines("GET", "/metrics", silence_s=self.left_s)
        told = {
            name: float(value)
            for name, _, value in (line.partition(" ") for line in lines)
            if name[:1] != "#" and value
        }
        used, total = (told.get(f'plimsoll_memory_{what}_bytes{{source="limit"}}') for what in ("used", "total"))
        return int(used) if used is not None and total == self._settings["memory"]["limit"] else None

    def load(self, model: str) -> None:
        self.post(f"/admin/models/{model}/load", {})

    def model(self) -> dict[str, Any]:
        """What the server says of the model that is run."""
        listed: list[dict[str, Any]] = self.get("/admin/models")["models"]
        return next(one for one in listed if one["name"] == self._model)

    def get(self, path: str) -> Any:
        return self._client.get(path, timeout_s=self.left_s)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._client.post(path, body, timeout_s=self.left_s)

    def chat(self, ask: str, tokens: int, begun: threading.Event | None = None) -> dict[str, Any]:
        """One streamed answer, greedy: its text, when its first and last tokens came, its usage and how it ended.

        ``begun`` is set with the first token.
        """
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": ask}],
            "temperature": 0,
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began_s = time.monotonic()
        told: dict[str, Any] = {"text": "", "usage": {}, "ended": "", "tokens": 0, "cached": 0}
        lines = self._client.lines("POST", "/v1/chat/completions", body, silence_s=self.left_s)
        with contextlib.closing(lines):  # type: ignore[type-var] # it is a generator
            for line in lines:
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                told["ended"] = told["ended"] or event.get("error", {}).get("code", "")
                for choice in event.get("choices", ()):
                    if text := choice["delta"].get("content"):
                        told["text"] += text
                        told["last_s"] = time.monotonic()
                        told.setdefault("first_s", told["last_s"])
                        if begun:
                            begun.set()
                    told["ended"] = choice.get("finish_reason") or told["ended"]
                told["usage"] = event.get("usage") or told["usage"]
        told.setdefault("first_s", time.monotonic())
        told.setdefault("last_s", told["first_s"])
        told["waited_s"] = round(told["first_s"] - began_s, 3)
        told["tokens"] = told["usage"].get("completion_tokens", 0)
        told["cached"] = (told["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return told
