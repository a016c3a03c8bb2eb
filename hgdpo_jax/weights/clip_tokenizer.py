"""CLIP's tokenizer, in the files of transformers."""

from typing import Any

from etils import epath

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
