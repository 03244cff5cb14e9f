"""The child that converts a model: ``python -m plimsoll.engine.load.mlx_conversion CONVERSION SOURCE DEST``.

mlx-lm's own conversion does the work, so the result is its result. What went wrong is the last line on stderr.
"""

import functools
import sys
from pathlib import Path

import mlx.core as mx
import mlx_lm.utils
import msgspec
from mlx_lm.convert import convert

from plimsoll.catalog.conversion import FILE_BYTES, Conversion


def main(arguments: list[str]) -> int:
    """The command: 0, or 1 with one line on stderr."""
    told, source, folder = arguments
    conversion = msgspec.json.decode(told, type=Conversion)
    # Beside a server the GPU is taken, and only what is in ordinary memory counts for the parent's bound.
    mx.set_default_device(mx.cpu)
    # mlx-lm makes files of 5 GB, each of which has to be in memory.
    mlx_lm.utils.make_shards = functools.partial(mlx_lm.utils.make_shards, max_file_size_gb=FILE_BYTES >> 30)
    try:
        convert(
            source,
            folder,
            quantize=conversion.quantizes,
            q_group_size=conversion.group,
            q_bits=conversion.bits,
            q_mode=conversion.mode,
            dtype=conversion.dtype,
            dequantize=conversion.dequantize,
            quant_predicate=conversion.recipe,
        )
    except Exception as error:  # noqa: BLE001 - mlx-lm raises whatever a model's files make it raise
        sys.stderr.write(f"{' '.join(str(error).split()) or type(error).__name__}\n")
        return 1
    for code in Path(folder).glob("*.py"):
        code.unlink()  # a model's own code is never run
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
