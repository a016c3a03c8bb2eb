"""Copies trained toon weights into the package, with a model card: `python -m hgdpo_jax.toon.package WORKDIR`."""

import sys
from collections.abc import Mapping

import numpy as np
from etils import epath

from hgdpo_jax.families.stable_diffusion import files
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.files import write_json
from hgdpo_jax.run_log import read_scalars
from hgdpo_jax.toon.plugin import WEIGHTS
from hgdpo_jax.toon.samples import sample_sheet
from hgdpo_jax.weights import clip_files, folders
from hgdpo_jax.weights.tensor_files import load_tensors

_STAGES = {
    "Autoencoder": "toon_base/train_autoencoder",
    "Text encoder": "toon_base/train_clip",
    "U-Net": "toon_base/train_unet",
    "Scorer, contrastive": "toon_scorer/train_clip",
    "Scorer, preferences": "toon_scorer/train_scorer",
    "Judge, contrastive": "toon_judge/train_clip",
    "Judge, preferences": "toon_judge/train_scorer",
    "Oracle": "toon_oracle/train_oracle",
}
# Stages that measured an accuracy, by the name of their weights.
_MEASURED = {
    "scorer": "toon_scorer/train_scorer/scorer",
    "judge": "toon_judge/train_scorer/scorer",
    "oracle": "toon_oracle/train_oracle/oracle",
}


def package(workdir: epath.PathLike) -> None:
    """Writes hgdpo_jax/toon/weights from the runs of configs/toon_base, toon_scorer, toon_judge and toon_oracle."""
    runs = epath.Path(workdir) / "runs"
    files.write_folder(WEIGHTS / "base", files.read_folder(runs / "toon_base/train_unet/base"))
    for name, source in _MEASURED.items():
        write_json(WEIGHTS / name / "accuracy.json", folders.read_json(runs / source / "accuracy.json"))
    for name in ("scorer", "judge"):
        clip_files.write_folder(WEIGHTS / name, clip_files.read_folder(runs / _MEASURED[name]))
    tensors, _ = load_tensors(runs / _MEASURED["oracle"] / "model.safetensors")
    folders.write_weights(WEIGHTS / "oracle" / "model.safetensors", tensors, "float16")
    (WEIGHTS / "samples.png").write_bytes(sample_sheet(StableDiffusion.load("toon"), "test", 32, seed=0, enlarge=2))
    (WEIGHTS / "MODEL_CARD.md").write_text(_card(runs))


def _card(runs: epath.Path) -> str:
    rows = []
    for name, stage in _STAGES.items():
        log = read_scalars(runs / stage)
        last = np.mean([line["loss"] for line in log if "loss" in line][-20:])
        started, done = (runs / stage / f"{marker}.json" for marker in ("started", "done"))
        minutes = (done.stat().mtime - started.stat().mtime) / 60
        rows.append(f"| {name} | {log[-1]['step']:.0f} | {minutes:.1f} | {last:.4f} |")
    accuracies = {name: _accuracy_rows(folders.read_json(WEIGHTS / name / "accuracy.json")) for name in _MEASURED}
    tensors = [path for depth in ("*", "*/*") for path in WEIGHTS.glob(f"{depth}/*.safetensors")]
    size = sum(path.stat().length for path in tensors) / 1e6
    return CARD.format(stages="\n".join(rows), size=size, **accuracies)


def _accuracy_rows(values: Mapping[str, float]) -> str:
    return "\n".join(f"| {name.replace('_', ' ')} | {100 * value:.1f} % |" for name, value in values.items())


CARD = """# Toon weights

A small Stable Diffusion of 48x64 portraits, two preference scorers and an attribute classifier: the whole HG-DPO method
at a size that two CPU cores can train. {size:.1f} MB as float16 safetensors, in the file layouts of diffusers and
transformers. `make toon-weights` trains them again.

![32 samples of the base for held-out prompts](samples.png)

- `base/`: autoencoder (factor 4), CLIP text encoder, U-Net; trained from nothing on procedural portraits of people with
  captions. Training stops early on purpose, so that preference tuning has something to improve.
- `scorer/`: PickScore's architecture and objective; chooses the pairs.
- `judge/`: another width, seed, part of the corpus and family of damage; only evaluates.
- `oracle/`: reads a portrait's attributes; only evaluates.

## Training (two CPU cores)

| Part | Steps | Minutes | Mean loss of the last 20 steps |
|---|---|---|---|
{stages}

## How often the better portrait of a pair wins (held-out portraits)

Pairs of an intact portrait against a damaged one or another person's; of a rough portrait against one as rough with
altered attributes; of samples against samples of weaker checkpoints, and of samples for the prompt against samples for
another.

Scorer:

| Pair | Accuracy |
|---|---|
{scorer}

Judge:

| Pair | Accuracy |
|---|---|
{judge}

## Accuracy of the oracle (held-out portraits through the autoencoder)

| Attribute | Accuracy |
|---|---|
{oracle}

## Limits

Cartoon heads on plain backgrounds, five framings, English captions of a fixed grammar. For tests, demonstrations and
method development; not for judging a method's value on photographs.

The portraits are drawn from the style "Toon Head" by Johan Melin (CC BY 4.0): see ATTRIBUTION.md one folder up.
"""


if __name__ == "__main__":
    package(sys.argv[1] if len(sys.argv) > 1 else "workdir")
