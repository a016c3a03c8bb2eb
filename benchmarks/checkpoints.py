"""The files that benchmarks read, with random weights, made once in a folder: 12.8 GB."""

import json
import shutil
from pathlib import Path

from hgdpo_jax.toon.vocabulary import write_tokenizer
from tests.helpers.random_weights import write_pick_score, write_stable_diffusion
from tests.helpers.single_file import SD15, make_models, single_file_of


def stable_diffusion(folder: Path) -> Path:
    """A Stable Diffusion 1.5 in diffusers' layout, float32."""
    return _once(folder / "stable_diffusion", lambda made: write_stable_diffusion(made, tokenizer(folder)))


def pick_score(folder: Path) -> Path:
    """A PickScore in transformers' layout, float32."""
    return _once(folder / "pick_score", lambda made: write_pick_score(made, tokenizer(folder)))


def single_file(folder: Path) -> Path:
    """A Stable Diffusion 1.5 in one file, float32."""

    def write(made: Path) -> None:
        from safetensors.torch import save_file

        tensors = single_file_of(make_models(**SD15), SD15)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, made / "model.safetensors")

    return _once(folder / "single_file", write) / "model.safetensors"


def tokenizer(folder: Path, words: int = 600) -> Path:
    """A tokenizer in CLIP's layout; of more than some hundred words most never occur."""

    def write(made: Path) -> None:
        write_tokenizer(made, size=600)
        vocabulary = json.loads((made / "vocab.json").read_text())
        vocabulary |= {f"word-{i}": i for i in range(len(vocabulary), words)}
        (made / "vocab.json").write_text(json.dumps(vocabulary))

    return _once(folder / f"tokenizer_{words}", write)


def _once(folder: Path, write) -> Path:
    """The folder, written beside its place and renamed where it is not there yet."""
    if not folder.exists():
        print(f"writing {folder}", flush=True)
        beside = folder.with_name(folder.name + ".part")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        write(beside)
        beside.rename(folder)
    return folder
