"""``plimsoll convert``: a model in another precision, put into the folder of models under a name of its own."""

import re
import shutil
from pathlib import Path
from typing import Annotated

import psutil
import typer

from plimsoll.catalog.conversion import Conversion, Estimate, convert_folder, estimate, refuse_again
from plimsoll.catalog.entries import CatalogModel, absolute
from plimsoll.catalog.fetch import resolve
from plimsoll.catalog.files import weights_bytes
from plimsoll.catalog.installed import default_cache_dir, installed
from plimsoll.catalog.names import Catalog
from plimsoll.catalog.source import ModelSource
from plimsoll.cli import config_checks
from plimsoll.cli.client import Refused
from plimsoll.cli.complete import model_names
from plimsoll.cli.link import AsJson, Link, with_link
from plimsoll.cli.output import hint, print_json, progress_bar
from plimsoll.errors import NeverFits
from plimsoll.journal.lines import size

_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
# What a full disk does to everything else is worse than a refused conversion.
_SPARE_BYTES = 512 * 1024**2


@with_link
def convert(
    link: Link,
    source: Annotated[
        str,
        typer.Argument(help="A model's name, a folder or a .gguf file.", autocompletion=model_names, metavar="SOURCE"),
    ],
    *,
    name: Annotated[str, typer.Option("--name", help="The result's; default: the source's and what was done.")] = "",
    bits: Annotated[int | None, typer.Option("--q-bits", help="Bits of one value; default 4.")] = None,
    group_size: Annotated[int | None, typer.Option("--q-group-size", help="Values of one group; default 64.")] = None,
    mode: Annotated[str, typer.Option("--q-mode", help="affine, mxfp4, nvfp4 or mxfp8.")] = "affine",
    recipe: Annotated[str | None, typer.Option("--q-recipe", help="More bits where they count: mixed_4_6.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float16, bfloat16 or float32.")] = None,
    dequantize: Annotated[bool, typer.Option("--dequantize", help="Make a quantised model dense.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Convert what does not fit, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Quantise a model, or change its precision; the result is offered under a name of its own."""
    conversion = Conversion(bits, group_size, mode, dtype, dequantize, recipe)
    conversion.check()
    catalog = Catalog(link.config.models)
    model = _find(catalog, source)
    cache_dir = default_cache_dir(link.config)
    if model.source.adapter:
        raise Refused(f"{source} has an adapter, which would be left out: convert the model without it")
    if not installed(model.source, cache_dir):
        raise Refused(f"the files of {source} are not here: fetch them first with plimsoll pull {source}")
    called = name or f"{Path(model.source.name).name}-{conversion.suffix}"
    folder = _models_folder(link) / _free_name(called, catalog)
    with progress_bar(called) as progress:
        files = resolve(model.source, cache_dir=cache_dir, offline=True, progress=progress)
        refuse_again(files, source, conversion)
        expected = estimate(files, conversion)
        _refuse_what_does_not_fit(link, model, expected, called, folder.parent, force=force)

        def show(stage: str, done: int, _: int) -> None:
            progress(stage, done, expected.weight.stored_bytes)

        convert_folder(files, conversion, folder, most_bytes=expected.memory_bytes, progress=show)
    made = weights_bytes(folder)
    if as_json:
        print_json({"model": called, "path": str(folder), "size_bytes": made})
    else:
        typer.echo(f"{called} is here: {size(made)} in {folder}")


def _find(catalog: Catalog, text: str) -> CatalogModel:
    """The model of that name, or that lies at that path. Raises ``UnknownModel`` and ``Refused``."""
    path = absolute(text)
    if text.endswith(".gguf") and path.is_file():
        return CatalogModel(ModelSource(path.stem, "gguf", str(path)))
    if (path / "config.json").is_file():
        return CatalogModel(ModelSource(path.resolve().name, "folder", str(path)))
    model = catalog.fetchable(text)
    if model.source.kind == "fake":
        raise Refused(f"{text} is a fake and has no files")
    return model


def _models_folder(link: Link) -> Path:
    """Where the result lies, so that it is offered. Raises ``Refused`` where no folder is configured."""
    models = link.config.models
    folder = models.dir or next(iter(models.dirs), "")
    if not folder:
        raise Refused("models.dir names no folder to put the result into: set it in the configuration file")
    return absolute(folder)


def _free_name(name: str, catalog: Catalog) -> str:
    if not _NAME.fullmatch(name):
        raise Refused(f"{name[:80]!r} can't be the name of a folder of models: letters, digits, - . and _ can")
    if name in catalog.names() or name in catalog.config.entries or name in catalog.other_names():
        raise Refused(f"there is a model {name!r} already: choose another name with --name")
    return name


def _refuse_what_does_not_fit(
    link: Link, model: CatalogModel, expected: Estimate, name: str, folder: Path, *, force: bool
) -> None:
    """Raises ``NeverFits`` for a disk or a memory that is too small, unless ``force`` is given."""
    needed, free = expected.weight.stored_bytes, shutil.disk_usage(folder).free
    least = config_checks.least_bytes(link.config, model, expected.weight)
    budget, available = config_checks.budget_bytes(link.config), psutil.virtual_memory().available
    wrong = ""
    if needed + _SPARE_BYTES > free:
        wrong = f"{name} takes {size(needed)} of disk space and {size(free)} are free in {folder}"
    elif least > budget:
        limit = config_checks.budget_key(link.config)
        wrong = f"{name} can never be loaded here: it needs {size(least)}, {limit} lets models take {size(budget)}"
    elif expected.memory_bytes > available:
        wrong = f"the conversion may take {size(expected.memory_bytes)} of memory and {size(available)} are available"
    if wrong and not force:
        raise NeverFits(f"{wrong}; nothing was converted, --force does it all the same")
    hint(f"{name}: about {size(needed)} on the disk, needs {size(least)} of memory once it is loaded")
