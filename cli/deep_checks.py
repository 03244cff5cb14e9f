"""``plimsoll doctor --deep`` and ``ops/machine_check.py``: run a model on this machine, and compare with mlx-lm alone.

A server of its own is started on a free port, with a configuration of its own and one model. What is told are findings
with their figures: a user can attach the report to an issue. Takes at most ten minutes, after a download of 93 MB where
the built-in model is not here.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import psutil

from plimsoll import __version__
from plimsoll.catalog.fetch import resolve
from plimsoll.catalog.installed import default_cache_dir
from plimsoll.catalog.names import Catalog
from plimsoll.catalog.source import BUILTIN
from plimsoll.cli.client import Unreachable
from plimsoll.cli.deep_pressure import PressureCheck
from plimsoll.cli.deep_server import MLX_LM_ALONE, DeepServer
from plimsoll.cli.machine_checks import OK, PROBLEM, WARNING, Finding
from plimsoll.config import Config
from plimsoll.engine.handle.environment import worker_environment
from plimsoll.journal.lines import size
from plimsoll.memory.sources import sample

MOST_S = 600.0
_ASK = "Name three things that a ship carries, and say in one sentence each what they are for."
# Two ways of adding the same numbers up differ in the last bits, so answers may part where two tokens are as likely.
_LEAST_SAME = 0.5
_SLOW = 0.8
_PACKAGES = ("mlx", "mlx-metal", "mlx-cuda-12", "mlx-cuda-13", "mlx-lm", "transformers", "sanic", "pykka", "numpy")
# What is less of a machine's memory may be hidden by what other programs take.
_BACK, _NOISE = 0.5, 0.01


class Effort(msgspec.Struct, frozen=True):
    """How much is run: ``streams`` at once, and the tokens of each answer."""

    streams: tuple[int, ...] = (1, 8, 16)
    tokens: int = 48


class Report(msgspec.Struct):
    """What was found; ``figures`` are for programs, ``versions`` say of what."""

    findings: list[Finding]
    versions: dict[str, str]
    figures: dict[str, Any]
    seconds: float


def versions() -> dict[str, str]:
    """Of Plimsoll and what it stands on, and of the machine."""
    found = {"plimsoll": __version__, "python": sys.version.split()[0], "platform": sys.platform}
    found["machine"] = " ".join(os.uname()[index] for index in (0, 2, 4))
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def examine_deeply(config: Config, model: str = BUILTIN.name, effort: Effort | None = None) -> Report:
    """Run everything on the ``model`` of this configuration, each check on its own: one that fails stops no other."""
    began_s = time.monotonic()
    report = Report([], versions(), {}, 0.0)
    check = _Check(config, model, effort or Effort(), report, began_s + MOST_S)
    with tempfile.TemporaryDirectory(prefix="plimsoll-deep-") as folder:
        for step in check.steps():
            subject = step.__name__.strip("_").replace("_", " ")
            if time.monotonic() > check.ends_s:
                report.findings.append(Finding(WARNING, subject, f"left out: {MOST_S:g} s have passed"))
                continue
            try:
                for finding in step(Path(folder)):
                    report.findings.append(finding)  # also where the next one raises
            except Exception as error:  # noqa: BLE001 - a check that breaks is a finding
                report.findings.append(Finding(PROBLEM, subject, f"{type(error).__name__}: {error}"))
        check.end()
    report.seconds = round(time.monotonic() - began_s, 1)
    report.findings.append(Finding(OK, "took", f"{report.seconds:.0f} s"))
    return report


class _Check:
    def __init__(self, config: Config, model: str, effort: Effort, report: Report, ends_s: float) -> None:
        self._config = config
        self._model = model
        self._effort = effort
        self._figures = report.figures
        self._raw: dict[str, Any] = {}
        self._server = DeepServer(config, model, ends_s)
        self.ends_s = ends_s
        self.end = self._server.end

    def steps(self) -> Sequence[Callable[[Path], Iterator[Finding]]]:
        return (
            self._mlx_lm_alone,
            self._load,
            self._greedy_tokens,
            self._streams,
            self._prefix_reuse,
            self._memory_sources,
            self._pressure_levels,
            self._unload,
            self._stop_during_a_step,
            self._system_service,
        )

    # ---- the checks

    def _mlx_lm_alone(self, _folder: Path) -> Iterator[Finding]:
        cache_dir = default_cache_dir(self._config)
        source = Catalog(self._config.models).find(self._model).source
        files = resolve(source, cache_dir=cache_dir, offline=False, progress=lambda *_: None)
        order = {"ask": _ASK, "streams": self._effort.streams, "tokens": self._effort.tokens}
        done = subprocess.run(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-P", "-c", MLX_LM_ALONE, str(files), json.dumps(order)],
            env={**os.environ, **worker_environment(self._config.engine.blas, cache_dir)},
            capture_output=True,
            text=True,
            timeout=self._server.left_s,
            check=False,
        )
        told = done.stdout.rpartition("TOLD")[2]
        if done.returncode or not told:
            yield Finding(PROBLEM, "mlx-lm", (done.stderr.strip().splitlines() or ["it said nothing"])[-1])
            return
        self._raw = self._figures["mlx_lm"] = json.loads(told)
        rates = ", ".join(f"{count} at once {rate:.1f}" for count, rate in self._raw["per_s"].items())
        text = f"on {self._raw['device']}, tokens/s: {rates}; {size(self._raw['peak_bytes'])} at most"
        yield Finding(OK, "mlx-lm", text)

    def _load(self, folder: Path) -> Iterator[Finding]:
        self._server.start(folder)
        before = used()
        began_s = time.monotonic()
        self._server.load(self._model)
        took_s = time.monotonic() - began_s
        model = self._server.model()
        after = used()
        self._figures["load"] = {
            "seconds": round(took_s, 2),
            "used_before": before,
            "used_after": after,
            "model": model,
        }
        text = f"{took_s:.1f} s, {size(model['footprint_bytes'])}; {_changes(before, after)}"
        yield Finding(OK, "load", text)

    def _greedy_tokens(self, _folder: Path) -> Iterator[Finding]:
        # A server drops the space with which most tokenizers begin a text.
        said = self._server.chat(_ASK, self._effort.tokens)["text"].strip()
        theirs = str(self._raw.get("text", "")).strip()
        alike = next((at for at, (one, other) in enumerate(zip(said, theirs, strict=False)) if one != other), None)
        same = (min(len(said), len(theirs)) if alike is None else alike) / max(1, len(theirs), len(said))
        self._figures["greedy"] = {"said": said, "mlx_lm": theirs, "same": round(same, 3)}
        level = OK if same == 1 else WARNING if same >= _LEAST_SAME else PROBLEM
        hint = "a near tie may part two answers; from the first letter on they should be the same" * (level != OK)
        yield Finding(level, "greedy tokens", f"{same:.0%} of the answer are mlx-lm's", hint)

    def _streams(self, _folder: Path) -> Iterator[Finding]:
        for count in self._effort.streams:
            answers: list[dict[str, Any]] = [{} for _ in range(count)]

            def one(index: int, answers: list[dict[str, Any]] = answers) -> None:
                answers[index] = self._server.chat(_ASK, self._effort.tokens)

            threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(self._server.left_s)
            whole = [answer for answer in answers if answer]
            if len(whole) < count:
                yield Finding(PROBLEM, "streams", f"{count - len(whole)} of {count} at once brought no answer")
                continue
            spent_s = max(one["last_s"] for one in whole) - min(one["first_s"] for one in whole)
            rate = (sum(one["tokens"] for one in whole) - count) / max(spent_s, 1e-9)
            first_s = sorted(one["waited_s"] for one in whole)
            raw = float(self._raw.get("per_s", {}).get(str(count), 0.0))
            share = rate / raw if raw else 0.0
            figures = {"per_s": round(rate, 1), "of_mlx_lm": round(share, 2), "first_s": first_s}
            self._figures.setdefault("streams", {})[count] = figures
            text = f"{count} at once: {rate:.1f} tokens/s"
            text += f", {share:.2f} of mlx-lm alone" * bool(raw)
            text += f"; first token after {first_s[count // 2]:.2f} s, at most {first_s[-1]:.2f} s"
            yield Finding(WARNING if raw and share < _SLOW else OK, "streams", text)

    def _prefix_reuse(self, _folder: Path) -> Iterator[Finding]:
        long = _ASK + " " + " ".join(f"Think of number {index}." for index in range(60))
        first, second = self._server.chat(long, 2), self._server.chat(long, 2)
        self._figures["prefix_reuse"] = {"first_s": first["waited_s"], "again_s": second["waited_s"]} | second["usage"]
        cached, count = second["cached"], second["usage"]["prompt_tokens"]
        level = OK if cached else PROBLEM
        waits = f"first token after {first['waited_s']:.2f} s, then {second['waited_s']:.2f} s"
        yield Finding(level, "prefix reuse", f"{cached} of {count} tokens were known at the second time; {waits}")

    def _memory_sources(self, _folder: Path) -> Iterator[Finding]:
        health = self._server.get("/health?cleanup=no")
        self._figures["health"] = health
        text = ", ".join(f"{name} {percent:.1f}%" for name, percent in health["sources"].items())
        text += f", level {health['level']}"
        problems = health["problems"]
        yield Finding(WARNING if problems else OK, "memory sources", "; ".join([text, *problems]))

    def _pressure_levels(self, _folder: Path) -> Iterator[Finding]:
        yield from PressureCheck(self._server, self._model, _ASK, self._figures).findings()

    def _unload(self, _folder: Path) -> Iterator[Finding]:
        model = self._server.model()
        before, held = used(), int(model["footprint_bytes"])
        began_s = time.monotonic()
        self._server.post(f"/admin/models/{self._model}/unload", {"grace_s": 0})
        gone_s = time.monotonic() - began_s
        back_s: dict[str, float | None] = dict.fromkeys(before)
        while time.monotonic() - began_s < gone_s + 20 and None in back_s.values():
            now, at_s = used(), time.monotonic() - began_s
            for source, begun in before.items():
                if back_s[source] is None and begun - now.get(source, begun) >= _BACK * held:
                    back_s[source] = round(at_s, 2)
            time.sleep(0.1)
        self._figures["unload"] = {"seconds": round(gone_s, 2), "held": held, "back_s": back_s}
        seen = [f"{source} after {at_s:.2f} s" for source, at_s in back_s.items() if at_s is not None]
        text = f"{gone_s:.2f} s; half of {size(held)} are back by {', '.join(seen) or 'no source'}"
        worst = PROBLEM if held > _NOISE * psutil.virtual_memory().total else WARNING
        yield Finding(OK if seen else worst, "unload", text)

    def _stop_during_a_step(self, _folder: Path) -> Iterator[Finding]:
        server = self._server.process
        if server is None:
            yield Finding(PROBLEM, "stop", "no server runs")
            return
        answer: dict[str, Any] = {}
        begun = threading.Event()

        def stream() -> None:
            try:
                answer.update(self._server.chat(_ASK, 8 * self._effort.tokens, begun))
            except Unreachable as error:
                answer["ended"] = f"cut off: {error.message}"

        thread = threading.Thread(target=stream, daemon=True)
        thread.start()
        if not begun.wait(self._server.left_s):
            yield Finding(PROBLEM, "stop during a step", f"no answer began: {answer}")
            return
        workers = psutil.Process(server.pid).children(recursive=True)
        began_s = time.monotonic()
        server.send_signal(signal.SIGTERM)
        code = server.wait(self._server.left_s)
        took_s = time.monotonic() - began_s
        thread.join(10)
        _, left = psutil.wait_procs(workers, timeout=5)
        self._figures["stop"] = {"seconds": round(took_s, 2), "exit_code": code, "left": len(left), "answer": answer}
        text = f"exit code {code} after {took_s:.1f} s, the running answer ended as {answer.get('ended')!r}"
        ended = str(answer.get("ended", ""))
        whole = code == 0 and not left and ended and not ended.startswith("cut off")
        text += f", {len(left)} of its processes are left" * bool(left)
        yield Finding(OK if whole else PROBLEM, "stop during a step", text)

    def _system_service(self, _folder: Path) -> Iterator[Finding]:
        if sys.platform != "darwin":
            return
        command = [sys.executable, "-m", "plimsoll", "service", "install", "--dry-run"]
        made = subprocess.run(command, capture_output=True, check=False, timeout=60)  # noqa: S603 - our own command
        plist = made.stdout.split(b"\n", 1)[-1]
        lint = subprocess.run(["/usr/bin/plutil", "-lint", "-"], input=plist, capture_output=True, check=False)
        knows = subprocess.run(["/bin/launchctl", "print", f"gui/{os.getuid()}"], capture_output=True, check=False)  # noqa: S603 - a fixed command
        wired = subprocess.run(["/usr/sbin/sysctl", "iogpu.wired_limit_mb"], capture_output=True, check=False)
        self._figures["launchd"] = {
            "plist": lint.returncode,
            "domain": knows.returncode,
            "wired": wired.stdout.decode(),
        }
        fine = not (made.returncode or lint.returncode or knows.returncode)
        text = f"plutil {lint.stdout.decode().strip()}; launchctl exit code {knows.returncode}; {wired.stdout.decode()}"
        yield Finding(OK if fine else WARNING, "launchd", text.strip())


def _changes(before: dict[str, int], after: dict[str, int]) -> str:
    changes = (f"{source} +{size(max(0, used - before.get(source, used)))}" for source, used in after.items())
    return ", ".join(changes)


def used() -> dict[str, int]:
    """Used bytes of each source, read here."""
    return {one.source: one.used for one in sample().readings}
