"""The tokenizer inside a GGUF file -> ``tokenizer.json``, ``tokenizer_config.json``.

Regular expressions are the published ones of the tokenizers they are named for (as in llama.cpp's
``llama-vocab.cpp``); an unknown name is refused, since a wrong split gives wrong tokens without any error.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from plimsoll.catalog.gguf.reader import GgufError, Header

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_WORDS % r"\p{N}{1,3}",),
    "qwen2": (_WORDS % r"\p{N}",),
}
_SPLITS |= {"": _SPLITS["default"], "llama3": _SPLITS["llama-bpe"], "llama-v3": _SPLITS["llama-bpe"]}
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_MOST_CHARACTERS = 1024  # of one token: all its splits are tried
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
_KEY = "tokenizer.ggml"


class Vocabulary:
    """Tokens, their types and the ids with a meaning, checked against each other.

    Raises:
        GgufError: lists of different lengths, a token that is there twice, an id outside the list.

    """

    def __init__(self, header: Header) -> None:
        self.tokens: list[str] = header.list_of(f"{_KEY}.tokens", str)
        self.ids = {token: id_ for id_, token in enumerate(self.tokens)}
        if len(self.ids) < 1:
            raise GgufError(f"the metadata key {_KEY}.tokens is missing or empty")
        if len(self.ids) < len(self.tokens):
            twice = next(token for id_, token in enumerate(self.tokens) if self.ids[token] != id_)
            raise GgufError(f"the token {twice[:40]!r} is in the vocabulary twice")
        if (longest := max(map(len, self.tokens))) > _MOST_CHARACTERS:
            raise GgufError(f"a token has {longest} characters, above the bound of {_MOST_CHARACTERS}")
        self.types: list[int] = header.list_of(f"{_KEY}.token_type", int) or [1] * len(self.tokens)
        if len(self.types) != len(self.tokens):
            raise GgufError(f"{len(self.tokens)} tokens have {len(self.types)} token types")
        self.bos = self._special(header, "bos")
        self.eos = self._special(header, "eos")
        self.unknown = self._special(header, "unknown")
        self.padding = self._special(header, "padding")
        ends = [self.eos, self._special(header, "eot"), self._special(header, "eom")]
        ends += [self.ids[text] for text in _TURN_ENDS if text in self.ids and self.types[self.ids[text]] == _CONTROL]
        self.end_ids = sorted({end for end in ends if end is not None})

    def text(self, id_: int | None) -> str | None:
        return None if id_ is None else self.tokens[id_]

    def _special(self, header: Header, which: str) -> int | None:
        key = f"{_KEY}.{which}_token_id"
        if header.metadata.get(key) is None:
            return None
        id_ = header.integer(key)
        if id_ >= len(self.tokens):
            raise GgufError(f"the metadata key {key} is {id_} and there are {len(self.tokens)} tokens")
        return id_


def write_tokenizer(header: Header, vocabulary: Vocabulary, folder: Path) -> None:
    """Write both tokenizer files of ``header`` into ``folder``.

    Raises:
        GgufError: a tokenizer model or pre-tokenizer that is not known, or data that contradicts itself.

    """
    model = header.text(f"{_KEY}.model")
    pre = header.text(f"{_KEY}.pre")
    if model == "gpt2":
        add_bos = pre in _LLAMA3
        build = _byte_level
    elif model == "llama":
        add_bos = True
        build = _sentencepiece
    else:
        raise GgufError(f"the tokenizer model {model[:40]!r} is not supported (gpt2 and llama are)")
    add_bos = header.flag(f"{_KEY}.add_bos_token", default=add_bos) and vocabulary.bos is not None
    add_eos = header.flag(f"{_KEY}.add_eos_token", default=False) and vocabulary.eos is not None
    try:
        tokenizer = build(header, vocabulary)
        _add_special(tokenizer, vocabulary)
        _frame(tokenizer, vocabulary, add_bos, add_eos)
        tokenizer.save(str(folder / "tokenizer.json"))
    except (GgufError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - the library raises plain Exception for data it can't use
        raise GgufError(f"the tokenizer can't be built: {error}") from None
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": vocabulary.text(vocabulary.bos),
        "eos_token": vocabulary.text(vocabulary.eos),
        "unk_token": vocabulary.text(vocabulary.unknown),
        "pad_token": vocabulary.text(vocabulary.padding),
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "clean_up_tokenization_spaces": False,
        "chat_template": header.text("tokenizer.chat_template") or None,
    }
    plain = {key: value for key, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(plain, indent=2), encoding="utf-8")


def _byte_level(header: Header, vocabulary: Vocabulary) -> Any:
    pre = header.text(f"{_KEY}.pre")
    if pre not in _SPLITS:
        known = ", ".join(sorted(filter(None, _SPLITS)))
        raise GgufError(f"the pre-tokenizer {pre[:40]!r} is not known (known: {known})")
    merges = [_merge(text) for text in header.list_of(f"{_KEY}.merges", str)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary.ids, merges=merges, ignore_merges=pre in _LLAMA3))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _SPLITS[pre]]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merge(text: str) -> tuple[str, str]:
    left, _, right = text.partition(" ")
    if not left or not right:
        raise GgufError(f"the merge {text[:40]!r} is not two tokens")
    return left, right


def _sentencepiece(header: Header, vocabulary: Vocabulary) -> Any:
    scores: list[float] = header.list_of(f"{_KEY}.scores", float)
    if len(scores) != len(vocabulary.tokens):
        raise GgufError(f"{len(vocabulary.tokens)} tokens have {len(scores)} scores")
    model = models.BPE(
        vocab=vocabulary.ids,
        merges=list(_merges_by_score(vocabulary, scores)),
        unk_token=vocabulary.text(vocabulary.unknown),
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    prefix = header.flag(f"{_KEY}.add_space_prefix", default=True)
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces] if prefix else [spaces])
    # mlx-lm picks its linear-time detokenizer by exactly this sequence.
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _merges_by_score(vocabulary: Vocabulary, scores: list[float]) -> Iterator[tuple[str, str]]:
    """SentencePiece joins the pair whose whole has the best score: every split of a token, best tokens first."""
    plain = {
        token: id_
        for token, id_ in vocabulary.ids.items()
        if vocabulary.types[id_] not in (_UNKNOWN, _CONTROL, _UNUSED, _BYTE)
    }
    for token in sorted(plain, key=lambda token: (-scores[plain[token]], plain[token])):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in plain and pair[1] in plain]
        yield from sorted(known, key=lambda pair: (plain[pair[0]], plain[pair[1]]))


def _add_special(tokenizer: Any, vocabulary: Vocabulary) -> None:
    added = []
    for id_, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        special = kind in (_UNKNOWN, _CONTROL) or id_ in (vocabulary.bos, vocabulary.eos)
        if token and (special or kind == _USER_DEFINED):
            added.append(AddedToken(token, special=special, normalized=False))
    tokenizer.add_tokens(added)


def _frame(tokenizer: Any, vocabulary: Vocabulary, add_bos: bool, add_eos: bool) -> None:
    """Let the tokenizer put the begin and end tokens round a text as the file says."""
    before = [(vocabulary.tokens[vocabulary.bos], vocabulary.bos)] if add_bos and vocabulary.bos is not None else []
    after = [(vocabulary.tokens[vocabulary.eos], vocabulary.eos)] if add_eos and vocabulary.eos is not None else []
    if before or after:
        pieces = [*(text for text, _ in before), "$A", *(text for text, _ in after)]
        tokenizer.post_processor = processors.TemplateProcessing(single=pieces, special_tokens=[*before, *after])
