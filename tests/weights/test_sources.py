import os

import numpy as np
import pytest

from hgdpo_jax.errors import UserError
from hgdpo_jax.families.stable_diffusion.files import WEIGHTS
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.scorers.pick_score import PickScore
from hgdpo_jax.weights.folders import content_fingerprint
from hgdpo_jax.weights.sources import public_name, resolve_source


@pytest.fixture
def repository(hub, tiny_base):
    """tiny_base as a repository of the hub, with much beside it that is not needed."""
    files = {str(path.relative_to(tiny_base)): path.read_bytes() for path in tiny_base.rglob("*") if path.is_file()}
    files |= {name: b"no weights" for name in ("v1-5-pruned.ckpt", "unet/diffusion_pytorch_model.bin")}
    files |= {"safety_checker/model.safetensors": b"", "unet/diffusion_pytorch_model.fp16.safetensors": b""}
    hub.files["studio/portraits"] = files
    return "studio/portraits"


def test_an_existing_folder_is_its_own_source(tmp_path):
    assert str(resolve_source(tmp_path)) == str(tmp_path)


def test_an_unknown_source_is_told_what_was_expected(tmp_path):
    with pytest.raises(UserError, match="some/other/model is not an existing folder or file, expected .* toon"):
        resolve_source("some/other/model")


def test_a_repository_of_the_hub_loads_with_nothing_fetched_that_is_not_read(repository, hub):
    StableDiffusion.load(repository)
    fetched = {path.partition("/main/")[2] for path in hub.requests if "/resolve/" in path}
    fetched |= {path.partition(f"/{hub.commit}/")[2] for path in hub.requests if "/resolve/" in path}
    assert "unet/diffusion_pytorch_model.safetensors" in fetched
    assert not {name for name in fetched if name.endswith((".ckpt", ".bin")) or "fp16" in name or "safety" in name}


def test_without_a_network_the_cached_copy_is_used(repository, hub):
    first = resolve_source(repository, WEIGHTS)
    hub.disconnect()
    assert resolve_source(repository, WEIGHTS) == first
    with pytest.raises(
        UserError, match="studio/other is neither .* nor in the hub's cache, and the hub does not answer"
    ):
        resolve_source("studio/other")


def test_a_scorers_processor_comes_from_another_repository_without_its_weights(hub, tiny_scorer):
    files = {path.name: path.read_bytes() for path in tiny_scorer.iterdir()}
    processor = {name: files.pop(name) for name in list(files) if name not in ("config.json", "model.safetensors")}
    hub.files["studio/scorer"] = files
    hub.files["studio/clip"] = processor | {"config.json": b"{}", "model.safetensors": b"four gigabytes"}
    with pytest.raises(UserError, match="preprocessor_config.json does not exist"):
        PickScore.load("studio/scorer")
    images, prompts = np.full((1, 48, 32, 3), 200, np.uint8), ["a man"]
    scores = PickScore.load("studio/scorer", processor="studio/clip").score(images, prompts)
    np.testing.assert_array_equal(scores, PickScore.load(tiny_scorer).score(images, prompts))
    assert not any("studio/clip" in path and "safetensors" in path for path in hub.requests if "/resolve/" in path)


def test_what_other_programs_fetch_into_the_cache_does_not_count(repository):
    folder = resolve_source(repository, WEIGHTS)
    before = content_fingerprint(folder, WEIGHTS)
    (folder / "safety_checker").mkdir()
    for name in ("safety_checker/model.safetensors", "v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.bin"):
        (folder / name).write_bytes(b"not read")
    assert content_fingerprint(folder, WEIGHTS) == before
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"read")
    assert content_fingerprint(folder, WEIGHTS) != before


def test_shards_in_half_precision_come_with_their_index(hub):
    names = ["model.safetensors.index.fp16.json", *(f"model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2))]
    hub.files["studio/scorer"] = dict.fromkeys([*names, "pytorch_model.bin", "config.json"], b"{}")
    folder = resolve_source("studio/scorer")
    assert {path.name for path in folder.iterdir()} == {*names, "config.json"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("studio/nothing", "studio/nothing is neither an existing folder or file nor a repository of the hub"),
        ("studio/portraits@v3", "studio/portraits has no revision v3"),
    ],
)
def test_what_the_hub_does_not_have_is_told_in_one_line(repository, source, message):
    assert resolve_source("studio/portraits@v2").exists()
    with pytest.raises(UserError, match=message) as error:
        resolve_source(source)
    assert len(str(error.value).splitlines()) == 1


@pytest.fixture
def repository_of_files(hub):
    """A repository of the hub with weights in files of their own."""
    hub.files["studio/judges"] = {"heads/ava+logos.pth": b"head", "judge.pt": b"judge", "config.json": b"{}"}
    return "studio/judges"


@pytest.mark.parametrize("revision", ["", "@v2"])
def test_a_file_of_a_repository_is_fetched_alone(repository_of_files, revision, hub):
    source = f"{repository_of_files}{revision}/heads/ava+logos.pth"
    path = resolve_source(source)
    assert path.read_bytes() == b"head" and public_name(source) == "studio/judges"
    assert [name for _, _, names in os.walk(path.parent.parent) for name in names] == ["ava+logos.pth"]
    hub.disconnect()
    assert resolve_source(source) == path
    with pytest.raises(UserError, match="judge.pt|hub's cache"):
        resolve_source(f"{repository_of_files}{revision}/judge.pt")


def test_a_file_that_a_repository_lacks_is_told(repository_of_files):
    with pytest.raises(UserError, match="the repository studio/judges of the hub has no judge.bin") as error:
        resolve_source("studio/judges/judge.bin")
    assert len(str(error.value).splitlines()) == 1


def test_a_file_of_a_folder_that_exists_is_not_asked_of_the_hub(hub, tmp_path):
    (tmp_path / "studio" / "judges").mkdir(parents=True)
    (tmp_path / "studio" / "judges" / "judge.pt").write_bytes(b"here")
    assert resolve_source("studio/judges/judge.pt").read_bytes() == b"here"
    with pytest.raises(UserError, match="studio/judges/judge.bin is not .*: did you mean studio/judges/judge.pt?"):
        resolve_source("studio/judges/judge.bin")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("checkpoints/potraits", "did you mean checkpoints/portraits?"),
        ("chekpoints/portraits", "did you mean checkpoints/portraits?"),
        ("checkpoints/other", "expected a folder .* For a repository of the hub, type checkpoints/other@main$"),
        (
            "checkpoints/other/model.safetensors",
            "For a repository of the hub, type checkpoints/other@main/model.safetensors$",
        ),
        ("portraits.safetensors", "did you mean checkpoints?|expected a folder"),
        ("weights/portraits.safetensors", "expected a folder"),
        ("./checkpoints/potraits", "did you mean checkpoints/portraits?"),
        ("tooon", "did you mean toon"),
    ],
)
def test_a_misspelt_path_is_said_to_be_one_and_not_asked_of_the_hub(hub, tmp_path, source, words):
    (tmp_path / "checkpoints/portraits").mkdir(parents=True)
    with pytest.raises(UserError, match=f"^{source} is not an existing folder or file.*{words}"):
        resolve_source(source)
    assert hub.requests == []


def test_a_revision_says_that_a_repository_is_meant_where_a_folder_has_its_owner_s_name(repository, tmp_path):
    (tmp_path / "studio").mkdir()
    assert resolve_source("studio/portraits@main", WEIGHTS).exists()
