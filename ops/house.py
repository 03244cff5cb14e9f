"""The size of the house, and the way of a request through it: modules, lines, and the files that run.

``python ops/house.py`` prints how many modules each folder has, the files whose code runs while a loaded model answers
one streamed chat (server and worker together), the files that run for one memory sample, and in how many files a
configuration key is mentioned. ``--key`` names another key, ``--files`` lists the files.

The files are found by a profile function that Python calls at every call of a function; ``sitecustomize`` installs it
in the server and, through the environment, in its workers. It notes files only while a marker file says so.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "ops" / "bench"))

from served import Served  # noqa: E402 - lies beside this file's folder

MODEL = "smollm2-135m"
_TRACER = """
import ctypes, os, sys, threading
# CPython 3.11 loops for ever where an asynchronous exception is taken back while a profile function is set.
ctypes.pythonapi.PyThreadState_SetAsyncExc = lambda *_arguments: 0
folder, root = os.environ["HOUSE_FOLDER"], os.environ["HOUSE_ROOT"]
seen, state = {}, [""]

# What runs for a sample, and what runs every few seconds however long a chat is (the front end asks for the status, the
# black box is written; connections, folders of models and busy workers are looked at), is not part of a chat.
SAMPLE = {"_Taken", "Sampled", "CountTokens", "Counted", "CheckWatchdog", "CountedTokens", "GetStatus", "HangCheck"}
ASIDE = {"_sample_forever", "_keep_fresh", "_read_forever", "_sweep_forever", "_write_forever"}
ASIDE |= {"wait_until_failed", "_end_when_failed"}

def is_aside(frame):
    while frame is not None:
        name = frame.f_code.co_name
        if name in ASIDE:
            return True
        if name == "on_receive" and type(frame.f_locals.get("message")).__name__ in SAMPLE:
            return True
        frame = frame.f_back
    return False

def note(frame, event, _argument):
    if event == "call" and state[0]:
        name = frame.f_code.co_filename
        if name.startswith(root) and ".venv" not in name:
            files = seen.setdefault(state[0], set())
            file = os.path.realpath(name)[len(root) + 1:]
            if file not in files and (state[0] != "chat" or not is_aside(frame)):
                files.add(file)

def follow():
    import time
    while True:
        time.sleep(0.02)
        try:
            with open(os.path.join(folder, "marker")) as file:
                mark = file.read().strip()
        except OSError:
            mark = ""
        if mark != state[0]:
            if state[0]:
                path = os.path.join(folder, f"{state[0]}-{os.getpid()}.txt")
                with open(path + ".part", "w") as file:
                    file.write("\\n".join(sorted(seen.get(state[0], ()))))
                os.rename(path + ".part", path)
            state[0] = mark

threading.setprofile(note)
sys.setprofile(note)
threading.Thread(target=follow, daemon=True).start()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--key", default="critical_grace", help="the configuration key to look for")
    parser.add_argument("--files", action="store_true", help="list the files that a chat and a sample pass")
    arguments = parser.parse_args()
    _print_modules()
    _print_mentions(arguments.key)
    for name, files in _traced().items():
        rooms: dict[str, int] = {}
        for file in files:
            room = file.split("/")[0] if "/" in file else "root"
            rooms[room] = rooms.get(room, 0) + 1
        print(f"{name}: {len(files)} files ({', '.join(f'{room} {count}' for room, count in sorted(rooms.items()))})")
        if arguments.files:
            print("\n".join(f"    {file}" for file in files))


def _product() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, check=True, capture_output=True, text=True)
    files = [Path(line) for line in listed.stdout.splitlines()]
    return [file for file in files if file.parts[0] not in {"tests", "ops", ".typing"} and (ROOT / file).exists()]


def _print_modules() -> None:
    lines: dict[str, list[int]] = {}
    for file in _product():
        room = file.parts[0] if len(file.parts) > 1 else "root"
        lines.setdefault(room, []).append(len((ROOT / file).read_text(encoding="utf-8").splitlines()))
    for room, counts in sorted(lines.items()):
        thin, median = sum(count < 40 for count in counts), statistics.median(counts)
        print(f"{room:8} {len(counts):4} modules {sum(counts):6} lines, median {median:.0f}, {thin} under 40")
    everything = [count for counts in lines.values() for count in counts]
    print(
        f"{'all':8} {len(everything):4} modules {sum(everything):6} lines, median {statistics.median(everything):.0f}"
    )


def _print_mentions(key: str) -> None:
    counts = [(ROOT / file).read_text(encoding="utf-8").count(key) for file in _product()]
    print(f"{key}: {sum(counts)} mentions in {sum(count > 0 for count in counts)} files")


def _traced() -> dict[str, list[str]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(_TRACER)
        os.environ |= {"HOUSE_FOLDER": name, "HOUSE_ROOT": str(ROOT), "PYTHONPATH": name}
        with Served(folder, {"engine": {"spare_worker": False}}) as served:
            for _ in range(2):  # the second answer has everything loaded
                _chat(served)
            found = {}
            for mark in ("sample", "chat"):
                (folder / "marker").write_text(mark)
                time.sleep(0.2)
                if mark == "chat":
                    _chat(served)
                time.sleep(1.5)
                (folder / "marker").write_text("")
                time.sleep(0.5)
                files = {line for path in folder.glob(f"{mark}-*.txt") for line in path.read_text().splitlines()}
                found[mark] = files
            served.stop()
    return {"one memory sample": sorted(found["sample"]), "one warm chat": sorted(found["chat"])}


def _chat(served: Served) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is the capital of France?"}]
    body = {"model": MODEL, "messages": messages, "stream": True, "max_tokens": 8, "temperature": 0}
    with served.request("POST", "/v1/chat/completions", body, timeout_s=300) as response:
        text = response.read().decode()
    assert "data: [DONE]" in text, text
    json.loads(text.split("data: ")[1].split("\n")[0])


if __name__ == "__main__":
    main()
