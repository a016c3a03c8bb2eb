"""A byte-pair vocabulary learned from the training captions, in the files of CLIP's tokenizer."""

import collections
import itertools
import json
import re

import numpy as np
from etils import epath
from tokenizers.pre_tokenizers import ByteLevel

from hgdpo_jax.errors import UserError
from hgdpo_jax.files import write_text
from hgdpo_jax.toon.captions import prompts

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
# CLIP's split of text into words, without its rules for English contractions, which captions do not contain.
_WORD = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")
_CAPTIONS = 4000


def byte_pair_merges(texts: list[str], count: int) -> list[tuple[str, str]]:
    """Returns at most `count` merges, the most frequent first; fewer when every word of the ASCII texts is whole."""
    frequencies = collections.Counter(word for text in texts for word in _WORD.findall(text.lower()))
    # Words with spaces between their symbols.
    words = {" ".join(word) + _WORD_END: frequency for word, frequency in frequencies.items()}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for symbols, frequency in words.items():
            for pair in itertools.pairwise(symbols.split(" ")):
                pairs[pair] += frequency
        if not pairs:
            break
        # Ties are broken by the alphabet: the files do not depend on the order of the texts.
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        place = re.compile(rf"(?<!\S){re.escape(' '.join(best))}(?!\S)")
        words = {place.sub("".join(best), symbols): frequency for symbols, frequency in words.items()}
    return merges


def crop_padding(token_ids: np.ndarray) -> np.ndarray:
    """Cuts token ids `[..., t]` after the longest prompt: with causal attention the end token's state is the same."""
    return token_ids[..., : int(np.argmax(token_ids, axis=-1).max()) + 1]


def write_tokenizer(folder: epath.PathLike, size: int = 1200) -> int:
    """Writes CLIP tokenizer files of at most `size` entries to a folder and returns how many entries they have."""
    # Sorted, the printable stand-ins of the bytes are in the order of CLIP's own files.
    symbols = sorted(ByteLevel.alphabet())
    alphabet = symbols + [symbol + _WORD_END for symbol in symbols]
    if size < len(alphabet) + 2:
        raise UserError(f"vocabulary size is {size}, below its bytes and markers; give {len(alphabet) + 2} or more")
    merges = byte_pair_merges(prompts("train", _CAPTIONS), size - len(alphabet) - 2)
    # The end marker has the largest id: CLIP finds the end of a caption as the largest id in it.
    entries = [*alphabet, *(left + right for left, right in merges), _START, _END]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    assert len(vocabulary) == len(entries)
    folder = epath.Path(folder)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    write_text(folder / "merges.txt", "\n".join(lines) + "\n")
    markers = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **markers}
    for name, content in (
        ("vocab.json", vocabulary),
        ("special_tokens_map.json", markers),
        ("tokenizer_config.json", settings),
    ):
        write_text(folder / name, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return len(entries)
