import tracemalloc

import jax
import numpy as np
import pytest

from hgdpo_jax.errors import UserError
from hgdpo_jax.weights.conversion import from_tree, to_tree

SHAPES = {
    "conv_in": {"kernel": (3, 3, 2, 5), "bias": (5,)},
    "mid_block": {"attentions.0": {"to_q": {"kernel": (5, 6), "bias": (6,)}, "to_out.0": {"kernel": (6, 5)}}},
    "norm": {"scale": (5,)},
    "tokens": {"embedding": (7, 5)},
    "embeddings.class_embedding": (5,),
    "logit_scale": (),
}
TEMPLATE = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, np.float32), SHAPES, is_leaf=lambda node: isinstance(node, tuple)
)


@pytest.fixture
def tensors():
    shapes = {
        "conv_in.weight": (5, 2, 3, 3),
        "conv_in.bias": (5,),
        "mid_block.attentions.0.to_q.weight": (6, 5),
        "mid_block.attentions.0.to_q.bias": (6,),
        "mid_block.attentions.0.to_out.0.weight": (5, 6),
        "norm.weight": (5,),
        "tokens.weight": (7, 5),
        "embeddings.class_embedding": (5,),
        "logit_scale": (),
    }
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_every_layer_finds_its_layout(tensors):
    tree = to_tree(tensors, TEMPLATE, "file")
    assert jax.tree.map(np.shape, tree) == SHAPES
    assert tree["conv_in"]["kernel"][2, 1, 0, 4] == tensors["conv_in.weight"][4, 0, 2, 1]
    assert (
        tree["mid_block"]["attentions.0"]["to_q"]["kernel"][1, 2] == tensors["mid_block.attentions.0.to_q.weight"][2, 1]
    )


def test_the_way_back_is_the_inverse(tensors):
    back = from_tree(to_tree(tensors, TEMPLATE, "file"))
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array)


def test_bfloat16_on_request(tensors):
    tree = to_tree(tensors, TEMPLATE, "file", dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(tree)} == {"bfloat16"}


def test_old_autoencoder_attention_is_understood(tensors):
    old = dict(tensors)
    attention = "mid_block.attentions.0"
    old[f"{attention}.query.weight"] = old.pop(f"{attention}.to_q.weight")[:, :, None, None]
    old[f"{attention}.query.bias"] = old.pop(f"{attention}.to_q.bias")
    old[f"{attention}.proj_attn.weight"] = old.pop(f"{attention}.to_out.0.weight")
    old["text_model.embeddings.position_ids"] = np.arange(3)
    new = to_tree(tensors, TEMPLATE, "file")
    assert jax.tree.all(jax.tree.map(np.array_equal, to_tree(old, TEMPLATE, "file"), new))


def altered(tensors, name, array):
    changed = {key: value for key, value in tensors.items() if key != name}
    return changed if array is None else changed | {name: array}


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("norm.weight", None, "my file lacks norm.weight"),
        ("norm.gain", np.ones(3), "my file has norm.gain"),
        ("tokens.weight", np.ones((8, 5)), r"my file has tokens.weight of shape \[8, 5\], expected \[7, 5\]"),
        ("mid_block.attentions.0.to_q.weight", np.ones((6, 5, 3, 3)), r"of shape \[6, 5, 3, 3\], expected \[6, 5\]"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(tensors, name, array, message):
    with pytest.raises(UserError, match=message) as error:
        to_tree(altered(tensors, name, array), TEMPLATE, "my file")
    assert len(str(error.value).splitlines()) == 1


def test_conversion_holds_one_copy_and_one_tensor():
    size = 256
    template = {f"layer.{i}": {"kernel": jax.ShapeDtypeStruct((size, size), np.float32)} for i in range(20)}
    half = {f"layer.{i}.weight": np.ones((size, size), np.float16) for i in range(20)}
    one = 4 * size * size
    tracemalloc.start()
    to_tree(half, template, "file")
    assert tracemalloc.get_traced_memory()[1] < 22 * one
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    tree = to_tree(half, template, "file", place=lambda array: float(array[0, 0]))
    assert tracemalloc.get_traced_memory()[1] - before < 3 * one
    tracemalloc.stop()
    assert tree["layer.3"] == {"kernel": 1.0}
