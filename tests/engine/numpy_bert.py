"""BERT in plain numpy, written from the paper and the checkpoint's names: the truth that our encoder is held to."""

import json
import math
import struct

import numpy as np

_erf = np.vectorize(math.erf)


def read_safetensors(file):
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        data = stream.read()
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[slice(*one["data_offsets"])], "<f4").reshape(one["shape"]).astype(np.float64)
        for name, one in header.items()
        if one["dtype"] == "F32"
    }


class NumpyBert:
    """BERT, RoBERTa and XLM-RoBERTa: one text, or pair of texts, at a time, no padding, in float64."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        weights = read_safetensors(folder / "model.safetensors")
        self.weights = {name.removeprefix("bert.").removeprefix("roberta."): one for name, one in weights.items()}
        # RoBERTa numbers its positions from behind the padding token on.
        self.first = 0 if self.config["model_type"] == "bert" else self.config["pad_token_id"] + 1

    def states(self, tokens, types=0):
        """(tokens, hidden size)."""
        table = "embeddings.{}_embeddings.weight".format
        positions = self.weights[table("position")][self.first : self.first + len(tokens)]
        hidden = self.weights[table("word")][tokens] + positions
        hidden = self._norm(hidden + self.weights[table("token_type")][types], "embeddings.LayerNorm")
        for index in range(self.config["num_hidden_layers"]):
            layer = f"encoder.layer.{index}"
            mixed = self._attend(hidden, f"{layer}.attention.self")
            hidden = self._norm(
                hidden + self._dense(mixed, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm"
            )
            wide = self._dense(hidden, f"{layer}.intermediate.dense")
            wide = wide * 0.5 * (1 + _erf(wide / math.sqrt(2)))
            hidden = self._norm(hidden + self._dense(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return hidden

    def mean(self, tokens):
        vector = self.states(tokens).mean(axis=0)
        return vector / np.linalg.norm(vector)

    def score(self, tokens, types):
        """The logit of a pair, by the head of the kind of model that it is."""
        if self.config["model_type"] == "bert":
            return self._dense(np.tanh(self._dense(self.states(tokens, types)[0], "pooler.dense")), "classifier")[0]
        return self._dense(np.tanh(self._dense(self.states(tokens)[0], "classifier.dense")), "classifier.out_proj")[0]

    def _attend(self, hidden, name):
        heads = self.config["num_attention_heads"]
        parts = [self._dense(hidden, f"{name}.{part}") for part in ("query", "key", "value")]
        queries, keys, values = (part.reshape(len(hidden), heads, -1).swapaxes(0, 1) for part in parts)
        scores = queries @ keys.swapaxes(1, 2) / math.sqrt(queries.shape[-1])
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = scores / scores.sum(axis=-1, keepdims=True) @ values
        return mixed.swapaxes(0, 1).reshape(len(hidden), -1)

    def _dense(self, hidden, name):
        return hidden @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, hidden, name):
        centred = hidden - hidden.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.config["layer_norm_eps"])
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
