"""A server on the fake engine, asked by schemathesis what its OpenAPI document says can be asked.

Every answer must have a documented status, content type and body, each event of a stream too; 501, 503 and 507 are
documented, but no worker may die of a request, and the server must be well afterwards.
"""

import argparse
import collections
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import schemathesis
import yaml
from jsonschema.validators import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

MODEL = "fake"
_CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
_DOCUMENTED = ["2xx", "3xx", "4xx", "501", "503", "507"]
_DEATHS = ("worker_died", "load_failed")
_LINES = "application/x-ndjson"
_SHOWN = 10
# The phase that tries every bound of every parameter takes 2,500 requests by itself.
_COVERAGE = 3000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000, help="requests at the least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=None, help="a regular expression of paths")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _Server(Path(folder)) as url:
        run = Run(url, options.only)
        run.go(options.cases, options.seed)
        health = httpx.get(f"{url}/health").json()
    print(run.told())
    print(f"afterwards: {health['status']}, problems: {health['problems'] or 'none'}", flush=True)
    sys.exit(1 if run.failures or health["status"] == "degraded" else 0)


class _Server:
    """``plimsoll serve`` as a process of its own."""

    def __init__(self, folder: Path) -> None:
        entries = {MODEL: {"source": "fake:"}, "org/big": {"source": "fake:answer=hm | la la,length=5"}}
        settings = {
            "server": {"port": 0, "keepalive": "500ms", "responses_folder": str(folder / "responses")},
            "models": {"builtin": False, "entries": entries},
            "logging": {"file": "none", "blackbox": str(folder / "blackbox.db")},
        }
        path = folder / "plimsoll.yaml"
        path.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "plimsoll", "serve", "--config", str(path)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def __enter__(self) -> str:
        assert self._process.stdout
        found = re.search(r"http://[\d.:]+", self._process.stdout.readline())
        assert found, "the server did not start"
        return found[0]

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate(timeout=30)


class Run:
    """Rounds of schemathesis until there were enough requests, and what came of them."""

    def __init__(self, url: str, only: str | None = None) -> None:
        self.failures: dict[str, str] = {}
        self.statuses: collections.Counter[int] = collections.Counter()
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self._url, self._only = url, only
        self._start = time.monotonic()

    @property
    def requests(self) -> int:
        return sum(self.statuses.values())

    def go(self, cases: int, seed: int) -> None:
        """Each round has another seed; the first one goes through every operation, so it may do more than was asked."""
        most = max(1, cases // 60)
        while self.requests < cases:
            before = self.requests
            self._round(_config(seed, min(most, 50), coverage=cases >= _COVERAGE))
            seed += 1
            if self.requests == before:
                self.failures["none"] = "a round without any request"
                return

    def told(self) -> str:
        took = time.monotonic() - self._start
        statuses = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items()))
        lines = [
            f"api: {self.requests} requests in {took:.0f} s ({self.requests / took:.0f} per s), answers {statuses}"
        ]
        longest = sorted(self.seconds.items(), key=lambda one: -one[1])[:3]
        lines.append(f"longest in all: {', '.join(f'{label} {seconds:.1f} s' for label, seconds in longest)}")
        lines += [f"FAILED {what}\n{how}" for what, how in list(self.failures.items())[:_SHOWN]]
        lines.append(f"api: {len(self.failures)} kinds of failures over {len(self.seconds)} operations")
        return "\n".join(lines)

    def _round(self, settings: dict[str, Any]) -> None:
        config = SchemathesisConfig.from_dict(settings)
        schema = schemathesis.openapi.from_url(f"{self._url}/openapi.json", config=config)
        if self._only:
            schema = schema.include(path_regex=self._only)
        for event in from_schema(schema).execute():
            if isinstance(event, events.ScenarioFinished):
                self._take(event.recorder)
            elif isinstance(event, events.NonFatalError | events.FatalError):
                error = getattr(event, "value", None) or getattr(event, "exception", None)
                self.failures.setdefault(f"error: {getattr(event, 'label', '')}", repr(error)[:2000])

    def _take(self, recorder: Any) -> None:
        for case_id, interaction in recorder.interactions.items():
            label = recorder.cases[case_id].value.operation.label
            self.seconds[label] += interaction.response.elapsed if interaction.response else 0.0
            self.statuses[interaction.response.status_code if interaction.response else 0] += 1
        for case_id, checks in recorder.checks.items():
            for check in checks:
                if check.failure_info:
                    failure, node = check.failure_info.failure, recorder.cases[case_id]
                    what = f"{check.name}: {node.value.operation.label}: {failure.title}"
                    self.failures.setdefault(what, f"{failure.message[:1500]}\n{check.failure_info.code_sample[:800]}")


def _config(seed: int, most: int, *, coverage: bool) -> dict[str, Any]:
    enabled: dict[str, Any] = {name: {"enabled": True} for name in (*_CHECKS, "no_worker_died", "line_conformance")}
    enabled["not_a_server_error"]["expected-statuses"] = _DOCUMENTED
    return {
        "seed": seed,
        "checks": {"enabled": False, **enabled},
        "generation": {"max-examples": most, "no-shrink": True, "database": "none"},
        "continue-on-failure": True,
        "request-timeout": 30,
        "max-stream-events": 4,
        # There are no links between operations to follow.
        "phases": {"stateful": {"enabled": False}, "coverage": {"enabled": coverage}},
    }


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Most names are those of models that are there: the others would all be answered with 404."""
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str) and len(case.body["model"]) != 1:
        case.body["model"] = MODEL
    for place in (case.path_parameters, case.query):
        if place and isinstance(place.get("model"), str) and len(place["model"]) % 3:
            place["model"] = MODEL


@schemathesis.check
def no_worker_died(_ctx: Any, response: Any, _case: Any) -> None:
    if response.status_code == 503:
        text = response.text
        assert not any(f'"{death}"' in text for death in _DEATHS), text[:500]
        assert "worker" not in text, text[:500]


@schemathesis.check
def line_conformance(_ctx: Any, response: Any, case: Any) -> None:
    """Each line of a stream of lines; schemathesis itself looks at server-sent events."""
    media = (response.headers.get("content-type") or [""])[0].partition(";")[0]
    if response.status_code == 200 and media == _LINES:
        told = case.operation.definition.raw["responses"]["200"]["content"][_LINES]["schema"]
        validator = _validator(case.operation.schema.raw_schema, told)
        for line in response.text.splitlines():
            validator.validate(msgspec.json.decode(line))


def _validator(document: Any, schema: Any) -> Draft202012Validator:
    rooted = msgspec.json.decode(msgspec.json.encode(schema).replace(b'"#/', b'"urn:plimsoll#/'))
    resource = Resource(contents=document, specification=DRAFT202012)
    return Draft202012Validator(rooted, registry=Registry().with_resource("urn:plimsoll", resource))


if __name__ == "__main__":
    main()
