"""What a source of weights names: weights of a plugin, a folder or file, or a repository of the hub or its file."""

import difflib
import functools
import re
from collections.abc import Iterator, Sequence

from etils import epath

from hgdpo_jax import plugins
from hgdpo_jax.errors import UserError
from hgdpo_jax.files import expanded, similar
from hgdpo_jax.weights.folders import MODEL, PICKLED, weight_file_names
from hgdpo_jax.weights.hub import fetch

_REPOSITORY = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?")
_WEIGHT_SUFFIXES = (".safetensors", *PICKLED)
_FILE = re.compile(
    r"(?P<name>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w.-]+))?/(?P<path>.+\.(?:safetensors|bin|ckpt|pt|pth))"
)
_EXPECTED = (
    "a folder in the diffusers or transformers layout, weights in one file, a repository of the hub (owner/name) or a "
    "file of one (owner/name/file.pt)"
)

_SHARD = re.compile(r"(?P<stem>.+?)(?:\.fp16)?-\d+-of-\d+(?:\.fp16)?\.safetensors")


@functools.cache
def resolve_source(source: epath.PathLike, weights: tuple[str, ...] = MODEL) -> epath.Path:
    """The folder or file that a source names.

    Names that a plugin gives its weights come first. `owner/name` or `owner/name@revision`, where no such folder
    exists, is fetched from the hub into its cache: its configs, its vocabularies and those `weights`, places as in
    `content_fingerprint`; without a network the cached one is used. `owner/name/path/file.pt` or
    `owner/name@revision/path/file.pt` is one file of a repository, fetched with a .yaml of its name where there
    is one. A program asks the hub once, so that what it reads stays the same.
    A source like a path of this machine is not asked of the hub: one whose first folder exists, one file of weights
    without an owner, or one misspelt by a letter or two; `owner/name@main` is always a repository.
    Raises UserError, with what was looked for, where there is none.
    """
    if not str(source):
        raise UserError(f"no weights are given, expected {_EXPECTED}: set config.weights.base or config.weights.scorer")
    named = plugins.named("weights")
    if place := named.get(str(source)):
        if not epath.Path(place).exists():
            raise UserError(f"{source} is expected in {place}, which does not exist: install its package again")
        return epath.Path(place)
    path = expanded(source)
    if path.exists():
        return path
    match = _FILE.fullmatch(str(source)) or _REPOSITORY.fullmatch(str(source))
    if not match or not match["revision"] and _is_local(str(source)):
        near = similar(path) or next(iter(difflib.get_close_matches(str(source), named, 1)), "")
        hint = f": did you mean {near}?" if near else f", expected {_EXPECTED}, or one of {', '.join(named)}."
        on_hub = str(source).replace(match["name"], f"{match['name']}@main", 1) if match else ""
        hub = f" For a repository of the hub, type {on_hub}" if match else ""
        raise UserError(f"{source} is not an existing folder or file{hint}{hub}".rstrip("."))
    name, revision, file = match["name"], match["revision"], match.groupdict().get("path")
    if file:
        # What an LDM configuration beside it says of a checkpoint, its file does not.
        described = re.sub(r"\.\w+$", ".yaml", file)
        path = fetch(name, revision, lambda files: [file, *({described} & set(files))], cached=[file]) / file
        if not path.exists():
            raise UserError(
                f"{source} is not an existing file, and the repository {name} of the hub has no {file}: give one of "
                f"its files, https://huggingface.co/{name}"
            )
        return path
    return fetch(name, revision, lambda files: _wanted(files, weights), cached=["config.json", "model_index.json"])


def _is_local(source: str) -> bool:
    """Whether a source that does not exist is rather a path than a name on the hub."""
    first, *rest = source.split("/")
    is_file = len(rest) == 1 and source.endswith(_WEIGHT_SUFFIXES)
    return is_file or epath.Path(first).is_dir() or bool(near := similar(source)) and near.count("/") == len(rest)


def public_name(source: epath.PathLike) -> str:
    """How a source may be called in public: a repository by its name, a file or folder without where it lies."""
    exists = epath.Path(source).exists()
    match = None if exists else _FILE.fullmatch(str(source)) or _REPOSITORY.fullmatch(str(source))
    return match["name"] if match else epath.Path(source).name


def _wanted(files: Sequence[str], weights: Sequence[str]) -> Iterator[str]:
    """Of a repository's files, those that are read: configs, tokenizers, the card, and each part's weights once."""
    present = set(files)
    yield "README.md"
    for file in files:
        folder, _, name = file.rpartition("/")
        if name.endswith((".json", ".txt")) and "/" not in folder:
            yield file
    for place in weights:
        folder, slash, stem = place.rpartition("/")
        folder += slash
        chosen = next((name for name in weight_file_names(stem) if folder + name in present), None)
        if chosen is None:
            continue
        yield folder + chosen
        if chosen.endswith(".json"):
            half = "fp16" in chosen
            for file in files:
                match = _SHARD.fullmatch(file)
                if match and match["stem"] == folder + stem and ("fp16" in file) == half:
                    yield file
