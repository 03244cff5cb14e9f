"""Writes small GGUF files, and reads their numbers by arithmetic of its own."""

import struct
from pathlib import Path

import numpy as np

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q8_K": 15}
TYPES |= {"Q5_0": 6, "Q5_1": 7, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "BF16": 30}
TYPES |= {"IQ2_XXS": 16, "IQ3_XXS": 18, "IQ4_NL": 20, "IQ4_XS": 23, "IQ1_M": 29, "TQ1_0": 34, "MXFP4": 39}
BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
HIDDEN, INNER, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2
BPE_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BPE_MERGES = ["Ġ t", "h e", "Ġt he", "1 2", "12 3"]
SPM_PIECES = {
    "▁": -9,
    "h": -10,
    "e": -11,
    "l": -12,
    "o": -13,
    "w": -14,
    "▁h": -3,
    "el": -4,
    "▁hel": -2,
    "lo": -1,
    "ll": -5,
}


def byte_characters():
    """GPT-2's printable stand-ins for the 256 bytes, in the order of the bytes."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def bpe(pre="smollm"):
    tokens = [*BPE_SPECIAL, *byte_characters(), *(merge.replace(" ", "") for merge in BPE_MERGES)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in BPE_SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": BPE_MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}",
    }


def spm():
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *SPM_PIECES]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(SPM_PIECES),
        "tokenizer.ggml.scores": [0.0] * 259 + [float(score) for score in SPM_PIECES.values()],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def llama_metadata(tokenizer):
    return {
        "general.architecture": "llama",
        "llama.context_length": 256,
        "llama.embedding_length": HIDDEN,
        "llama.block_count": LAYERS,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        **tokenizer,
    }


def llama_tensors(kind, vocab_size, *, output=False, seed=1):
    """name -> (type, shape with the rows first, raw bytes); norms are F32 as converters write them."""
    random = np.random.default_rng(seed)
    keys = HIDDEN // HEADS * KV_HEADS
    shapes = {"token_embd": (vocab_size, HIDDEN), "output_norm": (HIDDEN,)}
    shapes |= {"output": (vocab_size, HIDDEN)} if output else {}
    for layer in range(LAYERS):
        parts = {
            "attn_norm": (HIDDEN,),
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (keys, HIDDEN),
            "attn_v": (keys, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
            "ffn_norm": (HIDDEN,),
            "ffn_gate": (INNER, HIDDEN),
            "ffn_up": (INNER, HIDDEN),
            "ffn_down": (HIDDEN, INNER),
        }
        shapes |= {f"blk.{layer}.{part}": shape for part, shape in parts.items()}
    tensors = {}
    for name, shape in shapes.items():
        own = "F32" if "norm" in name else kind
        tensors[f"{name}.weight"] = (own, shape, random_bytes(random, own, shape))
    return tensors


def tiny_llama(path, kind="F32", tokenizer=None, *, output=False, metadata=None, tensors=None):
    """Write a whole little model; ``metadata`` and ``tensors`` change it (``None`` takes a key away)."""
    tokenizer = tokenizer or bpe()
    all_metadata = llama_metadata(tokenizer) | (metadata or {})
    vocab_size = len(tokenizer["tokenizer.ggml.tokens"])
    all_tensors = llama_tensors(kind, vocab_size, output=output) | (tensors or {})
    write(
        path,
        {key: value for key, value in all_metadata.items() if value is not None},
        {name: tensor for name, tensor in all_tensors.items() if tensor is not None},
    )
    return path


def random_bytes(random, kind, shape):
    count = int(np.prod(shape))
    if kind in {"F32", "F16"}:
        return (random.standard_normal(count) * 0.05).astype("<f4" if kind == "F32" else "<f2").tobytes()
    blocks = random.integers(0, 256, (count // 32, BLOCK_BYTES[kind]), np.uint8)
    blocks[:, :2] = (random.standard_normal(count // 32) * 0.01).astype("<f2").view(np.uint8).reshape(-1, 2)
    if kind == "Q4_1":
        blocks[:, 2:4] = (random.standard_normal(count // 32) * 0.1).astype("<f2").view(np.uint8).reshape(-1, 2)
    return blocks.tobytes()


def numbers(kind, shape, raw):
    """The float32 values that ``raw`` stands for, block by block as ggml defines the formats."""
    if kind in {"F32", "F16"}:
        return np.frombuffer(raw, "<f4" if kind == "F32" else "<f2").astype(np.float32).reshape(shape)
    values = []
    for at in range(0, len(raw), BLOCK_BYTES[kind]):
        block = raw[at : at + BLOCK_BYTES[kind]]
        scale = np.float32(struct.unpack("<e", block[:2])[0])
        if kind == "Q8_0":
            values += [scale * np.float32(q) for q in struct.unpack("<32b", block[2:])]
            continue
        least = struct.unpack("<e", block[2:4])[0] if kind == "Q4_1" else None
        packed = block[4:] if kind == "Q4_1" else block[2:]
        for q in [byte & 15 for byte in packed] + [byte >> 4 for byte in packed]:
            values.append(scale * np.float32(q - 8) if least is None else scale * np.float32(q) + np.float32(least))
    return np.array(values, np.float32).reshape(shape)


def write(path, metadata, tensors, *, version=3, alignment=32):
    Path(path).write_bytes(content(metadata, tensors, version=version, alignment=alignment))


def content(metadata, tensors, *, version=3, alignment=32):
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += _text(key) + _typed(value)
    offset, data = 0, b""
    for name, (kind, shape, raw) in tensors.items():
        head += _text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += struct.pack("<IQ", TYPES[kind], offset)
        padded = raw + b"\0" * (-len(raw) % alignment)
        data += padded
        offset += len(padded)
    return head + b"\0" * (-len(head) % alignment) + data


def _text(text):
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _typed(value):
    if isinstance(value, list):
        kind, body = _KINDS[type(value[0])] if value else (8, _text)
        # Lists of whole numbers are signed in GGUF's token types.
        kind, body = (5, lambda item: struct.pack("<i", item)) if kind == 4 else (kind, body)
        return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(body(item) for item in value)
    kind, body = _KINDS[type(value)]
    return struct.pack("<I", kind) + body(value)


_KINDS = {
    str: (8, _text),
    bool: (7, lambda value: struct.pack("<?", value)),
    int: (4, lambda value: struct.pack("<I", value)),
    float: (6, lambda value: struct.pack("<f", value)),
}
