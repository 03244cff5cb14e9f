"""Who is measured side by side, on the same weights and the same BLAS: Plimsoll, mlx_lm.server and the raw loop."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import uvloop
from load import Answer, stream
from served import Served

from plimsoll.engine.handle.environment import find_openblas

MODEL = "model"
QUIET = {"file": "none", "blackbox": "none"}
Message = dict[str, str]
_START_S = 180.0
_DENSE = """
import shutil, sys
from pathlib import Path
import mlx.core as mx
from mlx_lm.utils import dequantize_model, load_model, save_config, save_model

source, target = map(Path, sys.argv[1:])
model, config = load_model(source, lazy=True)
model.set_dtype(mx.float32)
dequantize_model(model)
save_model(target, model)
for file in source.glob("*token*"):
    shutil.copy(file, target)
plain = {key: value for key, value in config.items() if not key.startswith("quantization")}
save_config({**plain, "torch_dtype": "float32"}, config_path=target / "config.json")
"""

_HALF = """
import shutil, sys
from pathlib import Path
import mlx.core as mx

source, target = map(Path, sys.argv[1:])
shutil.copytree(source, target)
for file in target.glob("*.safetensors"):
    arrays = mx.load(str(file)).items()
    half = {name: one.astype(mx.float16) if one.dtype == mx.float32 else one for name, one in arrays}
    mx.save_safetensors(str(file), half, {"format": "mlx"})
"""


def environment() -> dict[str, str]:
    """The same BLAS for those that don't look for one by themselves."""
    library = find_openblas() if sys.platform == "linux" else None
    return {**os.environ, **({"LD_PRELOAD": library} if library else {})}


class Setup:
    """The models and the scratch folder of one run; ``rounds`` is how often the candidates take turns."""

    def __init__(self, cache_dir: Path, scratch: Path, rounds: int) -> None:
        self.scratch = scratch
        self.rounds = rounds
        self.quantized = cache_dir / "builtin" / "smollm2-135m"
        if not self.quantized.exists():
            raise SystemExit("the built-in model is not here yet: run make serve once, it fetches it")
        self.dense = dense_weights(self.quantized, cache_dir / "bench" / "smollm2-135m-float32")


class Plimsoll:
    """The server as a user starts it, with one entry: the folder that all share."""

    name = "Plimsoll"

    def __init__(
        self, setup: Setup, *, folder: Path | None = None, entries: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        named = {MODEL: {"source": str(folder or setup.dense)}, **(entries or {})}
        models = {"builtin": False, "cache_dir": str(setup.scratch / "cache"), "entries": named}
        models |= settings.pop("models", {})
        self.served = Served(setup.scratch, {"logging": QUIET, "models": models, **settings})
        self.host, self.port, self.model = self.served.host, self.served.port, MODEL

    def memory_mb(self, kind: str = "rss") -> float:
        return self.served.memory_mb(kind)

    def close(self) -> None:
        self.served.stop()


class MlxLmServer:
    """mlx_lm.server with its own defaults."""

    name = "mlx_lm.server"

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.host, self.model = "127.0.0.1", str(folder)
        command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), "--port", str(self.port)]
        self.process = psutil.Popen(
            [*command, "--log-level", "ERROR"], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            time.sleep(0.1)
        raise RuntimeError("mlx_lm.server did not start")

    def memory_mb(self, kind: str = "rss") -> float:
        return float(getattr(self.process.memory_full_info(), kind)) / 1e6

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


class Ceiling:
    """The raw loop in a process of its own."""

    name = "raw BatchGenerator"

    def __init__(self, folder: Path) -> None:
        script = Path(__file__).with_name("ceiling.py")
        self.process = psutil.Popen(
            [sys.executable, str(script), str(folder)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(self, prompts: list[list[Message]], max_tokens: int) -> list[Answer]:
        self.process.stdin.write(json.dumps({"prompts": prompts, "max_tokens": max_tokens}) + "\n")
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline())
        return [Answer(0.0, times, times[-1], len(times), 0, 200) for times in told["times"]]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)


Peer = Plimsoll | MlxLmServer | Ceiling


def ask(
    peer: Peer, prompts: list[list[Message]], max_tokens: int, *, model: str = "", texts: bool = False
) -> list[Answer]:
    """All prompts at once, greedily, each streamed; the answers in their order, with what they say if ``texts``."""
    if isinstance(peer, Ceiling):
        return peer.run(prompts, max_tokens)
    bodies = [
        {"model": model or peer.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        for messages in prompts
    ]

    async def together() -> list[Answer]:
        return list(await asyncio.gather(*(stream(peer.host, peer.port, body, texts=texts) for body in bodies)))

    answers = uvloop.run(together())
    for answer in answers:
        if answer.error:
            raise RuntimeError(f"{peer.name}: {answer.error}")
    return answers


def dense_weights(source: Path, target: Path) -> Path:
    """The built-in model as dense float32 in a folder of its own, made once, in a process of its own."""
    if not (target / "config.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-c", _DENSE, str(source), str(target)], check=True)
    return target


def half_precision(source: Path, target: Path) -> Path:
    """A packed model with all that is not packed in float16, as models are published, made in a process of its own."""
    subprocess.run([sys.executable, "-c", _HALF, str(source), str(target)], check=True)
    return target
