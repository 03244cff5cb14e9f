"""How often a converted GGUF file has llama.cpp's likeliest next token, and how far apart their perplexities are.

    LD_PRELOAD=.../libopenblas.so.0 python ops/bench/gguf_agreement.py model.gguf [TEXT FILE] [--tokens 640]

Needs llama.cpp beside Plimsoll, from the package index without compiling: ``pip install cyllama``, which no test needs.
The file's exact values in dense float32, in mlx-lm and in llama.cpp, tell apart what the conversion loses and what
llama.cpp does, which rounds activations to 8 bits for quantised weights. Target: perplexities within 1 %.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import mlx.core as mx
import numpy as np
from cyllama.llama import llama_cpp
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import dequantize_model, load_model

from plimsoll.catalog.gguf.config import family_of, name_tensors
from plimsoll.catalog.gguf.convert import convert
from plimsoll.catalog.gguf.reader import Tensor, read_header

AT_ONCE = 64
TEXT = Path(__file__).parent.parent.parent / "docs" / "design.md"


class Scored(NamedTuple):
    """For each position the likeliest next token, and the logarithm of the share that the text's next token got."""

    likeliest: np.ndarray
    log_shares: np.ndarray

    @property
    def perplexity(self) -> float:
        return float(np.exp(-self.log_shares.mean()))


class Llama(llama_cpp.LlamaModel):
    """Its contexts ask the model for a size that the released package has under the vocabulary alone."""

    n_vocab = property(lambda self: self.get_vocab().n_vocab)


def main() -> None:
    """Print a line for each, held against llama.cpp on the file as it is, and on its exact values."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("text", type=Path, nargs="?", default=TEXT)
    parser.add_argument("--tokens", type=int, default=640, help="More than a sliding window has, where there is one.")
    given = parser.parse_args()
    llama_cpp.disable_logging()
    model = Llama(str(given.file))  # the vocabulary does not keep it
    ids = model.get_vocab().tokenize(given.text.read_text(), True, False)[: given.tokens]
    found = {"llama.cpp": in_llama_cpp(model, ids)}
    with tempfile.TemporaryDirectory() as name:
        dense = Path(name) / "dense.gguf"
        write_dense(given.file, dense)
        model = Llama(str(dense))
        found["llama.cpp, exact values"] = in_llama_cpp(model, ids)
        del model
        dense.unlink()
        found |= in_mlx_lm(given.file, Path(name) / "model", ids)
    references = [found["llama.cpp"], found["llama.cpp, exact values"]]
    print(f"{len(ids)} tokens         perplexity  to llama.cpp, same token  to its exact values, same token")
    for what, ours in found.items():
        beside = "".join(f"{_apart(ours, one):+11.2f} % {_same(ours, one):11.2f} %" for one in references)
        print(f"{what:24} {ours.perplexity:8.3f}{beside}")


def in_mlx_lm(file: Path, folder: Path, ids: list[int]) -> dict[str, Scored]:
    """What Plimsoll converts, and the file's exact values in the same model."""
    convert(file, folder)
    model, config = load_model(folder)
    model.set_dtype(mx.float32)
    model = dequantize_model(model)  # the same numbers, and on a CPU the faster products
    found = {"converted": in_mlx(model, ids)}
    model.update(tree_map(lambda _: mx.array([]), model.parameters()))
    for one in exact_values(file, config):
        model.load_weights([one], strict=False)
        mx.eval(one[1])
    return found | {"mlx-lm, exact values": in_mlx(model, ids)}


def _same(ours: Scored, theirs: Scored) -> float:
    return 100 * float((ours.likeliest == theirs.likeliest).mean())


def _apart(ours: Scored, theirs: Scored) -> float:
    return 100 * (ours.perplexity / theirs.perplexity - 1)


def in_llama_cpp(model: Llama, ids: list[int]) -> Scored:
    parameters = llama_cpp.LlamaContextParams()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = len(ids), AT_ONCE, AT_ONCE
    context = llama_cpp.LlamaContext(model, parameters)
    batch = llama_cpp.LlamaBatch(n_tokens=AT_ONCE, embd=0, n_seq_max=1)

    def rows() -> Iterator[np.ndarray]:
        for at in range(0, len(ids), AT_ONCE):
            batch.clear()
            part = ids[at : at + AT_ONCE]
            for place, token in enumerate(part, at):
                batch.add(token, place, [0], True)
            context.decode(batch)
            yield from (np.array(context.get_logits_ith(place), np.float32) for place in range(len(part)))

    return scored(rows(), ids)


def in_mlx(model: Any, ids: list[int]) -> Scored:
    cache = make_prompt_cache(model)

    def rows() -> Iterator[np.ndarray]:
        for at in range(0, len(ids), AT_ONCE):
            yield from np.array(model(mx.array([ids[at : at + AT_ONCE]]), cache=cache)[0])

    return scored(rows(), ids)


def scored(rows: Iterator[np.ndarray], ids: list[int]) -> Scored:
    likeliest, log_shares = [], []
    for place, row in enumerate(rows):
        likeliest.append(int(row.argmax()))
        if place + 1 < len(ids):
            shifted = row - row.max()
            log_shares.append(float(shifted[ids[place + 1]]) - np.log(np.exp(shifted).sum(dtype=np.float64)))
    return Scored(np.array(likeliest), np.array(log_shares))


def exact_values(file: Path, config: dict[str, Any]) -> Iterator[tuple[str, mx.array]]:
    """What the file's tensors stand for, under mlx-lm's names, the largest first."""
    header = read_header(file)
    shift = family_of(header).norm_shift
    for name, tensor in sorted(name_tensors(header, config).items(), key=lambda one: -one[1].size):
        yield name, mx.array(_values(tensor) - (shift if "norm" in tensor.name else np.float32(0)))


def write_dense(file: Path, dense: Path) -> None:
    """The same file with every tensor in float32."""
    told, header = gguf.GGUFReader(file), read_header(file)
    writer = gguf.GGUFWriter(dense, header.text("general.architecture"))
    for key, field in told.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kinds = field.types
            writer.add_key_value(key, field.contents(), kinds[0], kinds[1] if len(kinds) > 1 else None)
    tensors = header.tensors.values()
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), 4 * int(np.prod(tensor.shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(_values(tensor))
    writer.close()


def _values(tensor: Tensor) -> np.ndarray:
    raw = np.fromfile(tensor.path, np.uint8, tensor.size, offset=tensor.start)
    kind = gguf.GGMLQuantizationType[tensor.layout.name]
    return gguf.dequantize(raw, kind).reshape(tensor.shape).astype(np.float32, copy=False)


if __name__ == "__main__":
    main()
