"""CLIP's tokenizer, in the files of transformers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int

from hgdpo_jax.errors import UserError, as_user_error
from hgdpo_jax.files import cached_folder

TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    # Words that a textual inversion added, until transformers 4.34.
    "added_tokens.json",
)


class LongPrompt(NamedTuple):
    """A prompt that is cut: the number of its tokens, how many of them are used, and the text of the others."""

    text: str
    tokens: int
    used: int
    lost: str


def require_tokenizer(folder: epath.Path) -> epath.Path:
    """The folder itself; raises UserError where it has no tokenizer files."""
    if not (folder / "tokenizer.json").is_file() and not (
        (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    ):
        raise UserError(f"{folder} holds no tokenizer, expected vocab.json and merges.txt, or tokenizer.json")
    return folder


def load_tokenizer(folder: epath.PathLike) -> Any:
    """The tokenizer of a folder; raises UserError where its files are missing."""
    # Slow to import, and of no use to whoever reads weights only.
    from transformers import CLIPTokenizer

    files = cached_folder(require_tokenizer(epath.Path(folder)), TOKENIZER_FILES)
    with as_user_error(f"the tokenizer of {folder} cannot be read"):
        return CLIPTokenizer.from_pretrained(str(files))


def token_ids(tokenizer: Any, texts: Sequence[str], length: int) -> Int[np.ndarray, "n t"]:
    """Token ids, cut and padded to `length`."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=length)
    return np.asarray(encoded["input_ids"], np.int32)


def long_prompts(tokenizer: Any, prompts: Sequence[str], used: int) -> list[LongPrompt]:
    """The prompts that have more than `used` tokens, the marks of both ends included."""
    # Without verbose=False the tokenizer adds a warning of its own.
    encoded = tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]
    return [
        LongPrompt(text, len(ids), used, tokenizer.decode(ids[used - 1 : -1]).strip())
        for text, ids in zip(prompts, encoded, strict=True)
        if len(ids) > used
    ]
