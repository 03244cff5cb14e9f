#!/usr/bin/env python3
"""Is Plimsoll well? One line and an exit code, as Nagios, Icinga, Docker, Kubernetes and shell scripts want it.

Exit codes: 0 OK, 1 WARNING, 2 CRITICAL (also: nobody answers in time), 3 UNKNOWN (what answers is no Plimsoll, or
refuses us). The standard library only, any Python from 3.8 on; the package need not be installed. Sockets are spoken
to directly because importing http.client takes longer than the whole rest of a probe.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
import time

OK, WARNING, CRITICAL, UNKNOWN = range(4)
WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
LEVELS = {"healthy": OK, "warning": WARNING, "degraded": WARNING, "critical": CRITICAL}
MOST_BYTES = 1 << 20


class Unknown(Exception):
    """What was asked can't be told."""


def main() -> int:
    """Ask, print one line, return the exit code."""
    options = _options()
    outcome: list[tuple[int, str]] = []

    def look() -> None:
        try:
            outcome.append(probe(options))
        except Unknown as error:
            outcome.append((UNKNOWN, str(error)))
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            outcome.append((CRITICAL, f"no server answers at {options.url} ({reason})"))
        except Exception as error:  # noqa: BLE001 - a probe has no other way to say it
            outcome.append((UNKNOWN, f"the probe failed: {type(error).__name__}: {error}"))

    # A thread, since no socket timeout bounds a name lookup, nor an answer that comes byte by byte.
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(options.timeout)
    code, text = outcome[0] if outcome else (CRITICAL, f"no answer from {options.url} within {options.timeout:g} s")
    print(f"PLIMSOLL {WORDS[code]} - {_one_line(text)}", flush=True)
    return code


def probe(options: argparse.Namespace) -> tuple[int, str]:
    """The exit code and the text. Raises ``OSError`` when nobody answers, ``Unknown`` when it is no Plimsoll."""
    began = time.monotonic()
    path = {"live": "/health/live", "ready": "/health/ready"}.get(options.what, "/health")
    if path == "/health" and not options.cleanup:
        path += "?cleanup=no"
    status, body = _get(options.url, path, _key(options.api_key_file))
    seconds = time.monotonic() - began
    if status in (401, 403):
        raise Unknown(f"{options.url} refuses us ({status}): pass --api-key-file or set PLIMSOLL_API_KEY")
    if status not in (200, 503) or not isinstance(body.get("status"), str):
        raise Unknown(f"{options.url}{path} answers {status} and is no Plimsoll")
    timing = f"time={seconds:.3f}s;;;0;{options.timeout:g}"
    if options.what == "live":
        return (OK if status == 200 else CRITICAL), f"{body['status']} | {timing}"
    if options.what == "ready":
        reasons = "; ".join(str(reason) for reason in body.get("reasons") or [])
        return (OK if status == 200 else CRITICAL), f"{_text(body['status'], reasons)} | {timing}"
    return _judge(status, body, timing)


def _judge(status: int, body: dict, timing: str) -> tuple[int, str]:
    """The level and the figures of a whole /health body."""
    memory = body.get("memory")
    memory = memory if isinstance(memory, dict) else {}
    code = CRITICAL if status == 503 else LEVELS.get(body["status"], UNKNOWN)
    figures, perfdata = ["memory can't be read"], []
    percent = memory.get("used_percent")
    if isinstance(percent, (int, float)):
        total = memory.get("total_gb")
        figures = [f"memory {percent:.1f}%" + (f" of {total:.1f} GB" if isinstance(total, (int, float)) else "")]
        limits = ";".join(_number(memory.get(f"{name}_threshold")) for name in ("warning", "critical"))
        perfdata = [f"used_percent={percent:.1f}%;{limits};0;100"]
    if isinstance(body.get("models"), list):
        count = len(body["models"])
        figures.append(f"{count} model" + ("" if count == 1 else "s"))
        perfdata.append(f"models={count};;;0")
    problems = "; ".join(str(problem) for problem in body.get("problems") or [])
    words = "" if body["status"] == "healthy" else f"{_text(body['status'], problems)}; "
    return code, f"{words}{', '.join(figures)} | {' '.join([*perfdata, timing])}"


def _get(url: str, path: str, key: str) -> tuple[int, dict]:
    """The status and the JSON object that ``path`` is answered with."""
    secure, host, port, prefix = _parts(url)
    with socket.create_connection((host, port)) as plain:
        connection = _encrypted(plain, host) if secure else plain
        shown = f"[{host}]" if ":" in host else host
        # HTTP/1.0: the answer ends where the connection does, and comes in no chunks.
        lines = [f"GET {prefix}{path} HTTP/1.0", f"Host: {shown}:{port}", "User-Agent: plimsoll-probe"]
        if key:
            lines.append(f"Authorization: Bearer {key}")
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while len(answer) < MOST_BYTES:
            more = connection.recv(65536)
            if not more:
                break
            answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise Unknown(f"what answers at {url} does not speak HTTP")
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    return int(words[1]), found if isinstance(found, dict) else {}


def _encrypted(plain: socket.socket, host: str) -> socket.socket:
    import ssl  # noqa: PLC0415 - 10 ms that http does without

    return ssl.create_default_context().wrap_socket(plain, server_hostname=host)


def _parts(url: str) -> tuple[bool, str, int, str]:
    """Whether it is https, host, port and path of ``url``."""
    scheme, separator, rest = url.partition("://")
    place, slash, path = (rest if separator else url).partition("/")
    scheme = scheme.lower() if separator else "http"
    host, _, port = place.rpartition(":") if place.rpartition(":")[2].isdigit() else (place, "", "")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    number = int(port) if port else {"http": 80, "https": 443}.get(scheme, 0)
    if scheme not in ("http", "https") or not host or not 0 < number < 65536 or not url.isprintable() or " " in url:
        raise Unknown(f"{url!r} is not a URL like http://127.0.0.1:11435")
    return scheme == "https", host, number, (slash + path).rstrip("/")


def _key(file: str | None) -> str:
    if file is None:
        key = os.environ.get("PLIMSOLL_API_KEY", "")
    else:
        try:
            with open(file, encoding="utf-8") as opened:  # noqa: PTH123 - pathlib takes longer to import than this
                key = opened.read()
        except (OSError, ValueError) as error:
            raise Unknown(f"the key file {file} can't be read: {error}") from None
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise Unknown("the API key holds characters that no header may hold")
    return key


def _text(status: str, reasons: str) -> str:
    return f"{status}: {reasons}" if reasons else status


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else ""


def _one_line(text: str) -> str:
    """No control characters, and no bar but the one before the figures."""
    words, bar, figures = text.rpartition(" | ")
    words, figures = (words, figures) if bar else (text, "")
    shown = "".join(letter if letter.isprintable() else " " for letter in words.replace("|", "/"))
    return shown + bar + figures


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """2 would say CRITICAL of a server that nobody asked."""
        print(f"PLIMSOLL UNKNOWN - {message}; see --help")
        sys.exit(UNKNOWN)


def _options() -> argparse.Namespace:
    parser = _Parser(description="Is Plimsoll well? Exit code 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.")
    default = os.environ.get("PLIMSOLL_URL") or "http://127.0.0.1:11435"
    parser.add_argument("--url", default=default, help="default: $PLIMSOLL_URL or http://127.0.0.1:11435")
    parser.add_argument("--timeout", type=_seconds, default=5.0, help="for everything, in seconds (5)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--live", dest="what", action="store_const", const="live", help="only whether it answers")
    what.add_argument("--ready", dest="what", action="store_const", const="ready", help="whether models may be loaded")
    parser.add_argument("--api-key-file", metavar="FILE", help="default: the key in $PLIMSOLL_API_KEY, if any")
    parser.add_argument(
        "--cleanup", action="store_true", help="at critical, have the server unload all models, as GET /health does"
    )
    return parser.parse_args()


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise ValueError(text)
    return value


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")
    code = main()
    # The thread may hang in a name lookup; nothing waits for it.
    sys.stdout.flush()
    os._exit(code)
