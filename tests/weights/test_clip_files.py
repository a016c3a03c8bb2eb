import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hgdpo_jax.errors import UserError
from hgdpo_jax.models.clip import CLIP, CLIPConfig
from hgdpo_jax.weights.clip_files import read_config, read_folder, write_folder
from hgdpo_jax.weights.conversion import from_tree, to_tree


@pytest.fixture(scope="module")
def clip_folder(tokenizer_folder, tmp_path_factory):
    """A small CLIP with random weights as transformers writes it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    folder = tmp_path_factory.mktemp("clip")
    transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    ).save_pretrained(folder)
    transformers.CLIPTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    ).save_pretrained(folder)
    return folder


def test_a_folder_that_transformers_wrote_fills_the_model(clip_folder):
    files = read_folder(clip_folder)
    model = CLIP(CLIPConfig.from_dict(files.config))
    ids, pixels = jnp.zeros((1, 77), jnp.int32), jnp.zeros((1, 16, 16, 3))
    template = jax.eval_shape(model.init, jax.random.key(0), ids, pixels)["params"]
    back = from_tree(to_tree(files.tensors, template, "clip"))
    assert back.keys() == files.tensors.keys()
    assert all(np.array_equal(back[key], array) for key, array in files.tensors.items())


def test_a_written_folder_loads_in_transformers(clip_folder, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    write_folder(tmp_path, read_folder(clip_folder), "float32")
    expected = transformers.CLIPModel.from_pretrained(clip_folder).state_dict()
    found = transformers.CLIPModel.from_pretrained(tmp_path).state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path)
    inputs = processor(text=["a hat"], images=np.zeros((20, 16, 3), np.uint8), return_tensors="np")
    assert inputs["pixel_values"].shape == (1, 3, 16, 16)
    assert transformers.CLIPTokenizer.from_pretrained(tmp_path)("a hat")["input_ids"] == inputs["input_ids"][0].tolist()


def test_what_a_config_of_two_towers_leaves_out_is_transformers_default(tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {}, "vision_config": {}, "projection_dim": 512}))
    assert CLIPConfig.from_dict(read_config(tmp_path)) == CLIPConfig.from_dict(transformers.CLIPConfig().to_dict())


def test_a_config_without_both_towers_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 512}))
    with pytest.raises(UserError, match="config.json has no text_config, expected a CLIP of two towers"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": None, "vision_config": {}, "projection_dim": 512}))
    with pytest.raises(UserError, match="config.json describes no CLIP"):
        read_config(tmp_path)


@pytest.fixture
def folder_of_transformers_5(clip_folder, tmp_path):
    """The same where one file describes image processor and tokenizer."""
    transformers = pytest.importorskip("transformers")
    shutil.copytree(clip_folder, tmp_path / "clip")
    (tmp_path / "clip/preprocessor_config.json").unlink()
    transformers.CLIPProcessor.from_pretrained(clip_folder).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_the_processor_config_of_transformers_5_is_read_first(clip_folder, folder_of_transformers_5):
    colors = ("image_mean", "image_std")
    expected = read_folder(clip_folder).preprocessor
    found = read_folder(folder_of_transformers_5).preprocessor
    assert [found[name] for name in colors] == [expected[name] for name in colors]
    path = folder_of_transformers_5 / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}))
    assert read_folder(folder_of_transformers_5).preprocessor == found
    # What transformers 4 wrote beside the image processor's own config says nothing of it.
    (folder_of_transformers_5 / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert read_folder(folder_of_transformers_5).preprocessor["image_mean"] == [0, 0, 0]


@pytest.mark.parametrize(
    "change",
    [
        {"resample": 2},
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"do_resize": False},
        {"size": {"height": 16, "width": 16}},
        {"size": 20},
        {"crop_size": 12},
    ],
)
def test_a_processor_that_prepares_images_otherwise_is_refused(clip_folder, folder_of_transformers_5, change):
    path = folder_of_transformers_5 / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"] |= change
    path.write_text(json.dumps(content))
    (name,) = change
    with pytest.raises(UserError, match=f"processor_config.json has {name} .*, expected") as error:
        read_folder(folder_of_transformers_5)
    assert len(str(error.value).splitlines()) == 1


def test_colors_that_a_processor_leaves_out_are_openais(clip_folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    shutil.copytree(clip_folder, tmp_path / "clip")
    (tmp_path / "clip/preprocessor_config.json").write_text(json.dumps({"size": 16, "crop_size": 16}))
    processor = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / "clip")
    found = read_folder(tmp_path / "clip").preprocessor
    assert (*found["image_mean"], *found["image_std"]) == (*processor.image_mean, *processor.image_std)


def test_a_folder_without_tokenizer_is_refused(clip_folder, tmp_path):
    write_folder(tmp_path, read_folder(clip_folder))
    for name in ("vocab.json", "tokenizer.json"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="holds no tokenizer, expected vocab.json and merges.txt"):
        read_folder(tmp_path)
