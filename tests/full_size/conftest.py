"""Stable Diffusion 1.5 and CLIP ViT-H/14 at their full size with random weights, as PyTorch's libraries write them."""

import gc
import shutil

import jax
import numpy as np
import pytest
from random_weights import CLIP_L_TEXT, WORDS, copy_tokenizer, draw_weights, write_pick_score, write_stable_diffusion


@pytest.fixture
def report(capsys):
    """Prints a figure past pytest's capture: the README's table is made of them."""

    def show(name, value):
        with capsys.disabled():
            print(f"\n{name}: {value:.3g}", end="", flush=True)

    return show


@pytest.fixture(scope="session")
def relative_error():
    def compute(found, expected):
        found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
        return np.linalg.norm(found - expected) / np.linalg.norm(expected)

    return compute


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory):
    """Makes folders that are gone with the tests: pytest keeps those of three runs, and these have gigabytes."""
    made = []

    def make(name):
        made.append(tmp_path_factory.mktemp(name))
        return made[-1]

    yield make
    for folder in made:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def base_folder(make_folder, toon_tokenizer):
    """Folder of a Stable Diffusion 1.5 in float32: 4.3 GB."""
    pytest.importorskip("diffusers")
    folder = make_folder("base")
    write_stable_diffusion(folder, toon_tokenizer)
    return folder


@pytest.fixture(scope="session")
def scorer_folder(make_folder, toon_tokenizer):
    """Folder of a PickScore in float32: 3.9 GB."""
    pytest.importorskip("transformers")
    folder = make_folder("scorer")
    write_pick_score(folder, toon_tokenizer)
    return folder


@pytest.fixture(scope="session")
def clip_l_folder(make_folder, toon_tokenizer):
    """Folder of a CLIP of ViT-L/14's widths with two layers a tower, in float32: 370 MB."""
    transformers = pytest.importorskip("transformers")
    few = {"num_hidden_layers": 2, "projection_dim": 768}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "patch_size": 14}
    config = transformers.CLIPConfig(
        text_config={**CLIP_L_TEXT, **WORDS, **few}, vision_config={**vision, **few}, projection_dim=768
    )
    folder = make_folder("clip_l")
    draw_weights(transformers.CLIPModel(config), seed=6).save_pretrained(folder)
    transformers.CLIPImageProcessorPil().save_pretrained(folder)
    copy_tokenizer(toon_tokenizer, folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _free_memory():
    """Models refer to themselves in circles, and compiled functions to their models."""
    yield
    jax.clear_caches()
    gc.collect()
