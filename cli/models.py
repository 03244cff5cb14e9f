"""``plimsoll models`` and ``show``: what is offered, what it can do, whether it is here and fits this machine."""

import contextlib
from concurrent.futures import wait
from functools import partial
from typing import Annotated, Any, NamedTuple

import typer

from plimsoll.catalog.disk import DISK
from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.facts import Facts, facts, without_files
from plimsoll.catalog.files import conversion, local_folder
from plimsoll.catalog.installed import default_cache_dir, place, size_bytes
from plimsoll.catalog.names import Catalog
from plimsoll.catalog.weigh import weigh_source
from plimsoll.cli.client import Unauthorised
from plimsoll.cli.complete import model_names
from plimsoll.cli.config_checks import budget_bytes, least_bytes
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.output import duration, hint, print_json, table
from plimsoll.config import Config
from plimsoll.errors import PlimsollError
from plimsoll.journal.lines import size

_ANSWER_S = 5.0


@with_link
def models(link: Link, *, as_json: AsJson = False) -> None:
    """List the models that the configuration offers."""
    effective = link.config
    catalog = Catalog(effective.models)
    states: dict[str, str] = {}
    try:
        states = {one["name"]: one["state"] for one in link.client.get("/admin/models")["models"]}
    except PlimsollError as error:
        hint(f"(states are not known: {error.message if isinstance(error, Unauthorised) else 'no server is running'})")
    rows = offer(effective, catalog, states)
    passed_over = catalog.passed_over()
    if as_json:
        print_json({"models": rows, "passed_over": [{"path": path, "reason": why} for path, why in passed_over]})
        return
    typer.echo(models_table(rows))
    if passed_over:
        hint(f"({len(passed_over)} passed over: plimsoll doctor says which and why)")


@with_link
def show(
    link: Link,
    model: Annotated[str, typer.Argument(help="Its name.", autocompletion=model_names, metavar="MODEL")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show one model: where it is from, what it can do, what it needs."""
    catalog = Catalog(link.config.models)
    told = detail(link.config, catalog.find(model))
    if as_json:
        print_json(told)
        return
    idle = told["idle_ttl_s"]
    words = {
        "name": told["name"],
        "source": f"{told['kind']} {told['location']}",
        "family": told["family"] or "-",
        "parameters": told["parameters"] or "-",
        "quantisation": told["quantization"] or "-",
        "converted": "-" if told["loss_percent"] is None else f"with a loss of {told['loss_percent']:.2g} % (rms)",
        "context": f"{told['context']:,} tokens" if told["context"] else "-",
        "can": ", ".join(told["abilities"]) or "-",
        "on the disk": "nothing" if told["size_bytes"] is None else size(told["size_bytes"]),
        "in memory": "-" if told["least_bytes"] is None else f"{size(told['least_bytes'])} at least",
        "fits": {True: "yes", False: "no, never on this machine", None: "not known"}[told["fits"]],
        "pinned": "yes" if told["pinned"] else "no",
        "unloaded": "never" if idle is None else f"after {duration(idle)} without a request",
    }
    typer.echo("\n".join(f"{name:13} {value}" for name, value in words.items()))


def detail(config: Config, model: CatalogModel) -> dict[str, Any]:
    """What is known of ``model``, as ``show --json`` says it. Raises ``DiskSilent``."""
    source, cache_dir = model.source, default_cache_dir(config)
    found = DISK.answer(place(source, cache_dir), partial(_examine, model, config), _ANSWER_S)
    is_here = source.kind == "fake" or found.size_bytes is not None
    return {
        "name": source.name,
        "kind": source.kind,
        "location": source.location,
        "family": found.facts.family or None,
        "parameters": found.facts.details()["parameter_size"] or None,
        "quantization": found.facts.quantization or None,
        "loss_percent": found.loss_percent,
        "context": found.facts.context or None,
        "abilities": found.facts.capabilities if is_here and source.kind != "fake" else [],
        "installed": is_here,
        "size_bytes": found.size_bytes,
        "least_bytes": found.least_bytes,
        "fits": None if found.least_bytes is None else found.least_bytes <= budget_bytes(config),
        "pinned": model.pin,
        "idle_ttl_s": model.idle_ttl_s,
    }


def models_table(rows: list[dict[str, Any]]) -> str:
    """The rows of ``offer`` as a table."""
    sure = {True: "yes", False: "no", None: "?"}
    cells = [
        [
            row["name"],
            row["kind"],
            "-" if row["size_bytes"] is None else size(row["size_bytes"]),
            row["quantization"] or "-",
            f"{row['context']:,}" if row["context"] else "-",
            ",".join(row["abilities"]) or "-",
            sure[row["installed"]],
            sure[row["fits"]],
            row["state"] or "-",
        ]
        for row in rows
    ]
    head = ["NAME", "KIND", "SIZE", "QUANT", "CONTEXT", "CAN", "INSTALLED", "FITS", "STATE"]
    return table(head, cells, right="SIZE,CONTEXT")


class _Examined(NamedTuple):
    """What a model's files say; ``least_bytes`` is what it takes at least in memory, None where that is not known.

    ``loss_percent`` is what the conversion of a GGUF file has lost, None before it.
    """

    size_bytes: int | None
    facts: Facts
    least_bytes: int | None
    loss_percent: float | None = None


def offer(config: Config, catalog: Catalog, states: dict[str, str]) -> list[dict[str, Any]]:
    """A row for every model that is offered; a model without a known ``state`` has None there.

    ``installed`` is None where the disk does not answer; ``fits``, whether this machine can ever load it, is None where
    its files are not here or can't be weighed.
    """
    cache_dir, budget = default_cache_dir(config), budget_bytes(config)
    models = [catalog.find(name) for name in catalog.names()]
    asked = [DISK.ask(place(one.source, cache_dir), partial(_examine, one, config)) for one in models]
    wait(asked, _ANSWER_S)
    rows = []
    for model, answer in zip(models, asked, strict=True):
        is_known = answer.done() and not answer.exception()
        found = answer.result() if is_known else _Examined(None, without_files(model), None)
        installed = model.source.kind == "fake" or found.size_bytes is not None if answer.done() else None
        rows.append(
            {
                "name": model.source.name,
                "kind": model.source.kind,
                "size_bytes": found.size_bytes,
                "quantization": found.facts.quantization or None,
                "context": found.facts.context or None,
                "abilities": found.facts.capabilities if installed and model.source.kind != "fake" else [],
                "installed": installed,
                "fits": None if found.least_bytes is None else found.least_bytes <= budget,
                "state": states.get(model.source.name),
            }
        )
    return rows


def _examine(model: CatalogModel, config: Config) -> _Examined:
    cache_dir = default_cache_dir(config)
    weights = size_bytes(model.source, cache_dir)
    least = None
    with contextlib.suppress(OSError, ValueError):
        if weights is not None and (weight := weigh_source(model.source, cache_dir, model.group)):
            least = least_bytes(config, model, weight)
    folder = local_folder(model.source, cache_dir) if model.source.kind == "gguf" else None
    loss = conversion(folder).get("loss_percent") if folder else None
    return _Examined(weights, facts(model, cache_dir), least, loss)
