import jax
import numpy as np
import pytest

from hgdpo_jax.errors import UserError
from hgdpo_jax.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPTextTransformer
from hgdpo_jax.weights.conversion import to_tree

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**TOWER, "vocab_size": 100, "bos_token_id": 98, "eos_token_id": 99, "pad_token_id": 99}


def perturbed(reference):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        for parameter in reference.parameters():
            # Fresh norms have gain 1 and shift 0, which hides mistakes.
            parameter.add_(0.05 * torch.randn_like(parameter))
    return reference.eval(), {name: value.numpy() for name, value in reference.state_dict().items()}


def token_ids():
    """A long prompt and a short one, the end token for padding."""
    ids = np.random.default_rng(0).integers(0, 98, (2, 77)).astype(np.int32)
    ids[:, 0] = 98
    ids[0, 20:] = ids[1, 5:] = 99
    return ids


def relative(found, expected):
    expected = expected.detach().numpy()
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(("activation", "skipped_layers"), [("quick_gelu", 0), ("gelu", 0), ("gelu", 1)])
def test_text_encoder_agrees_with_transformers(activation, skipped_layers):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(**TEXT, hidden_act=activation)
    reference, tensors = perturbed(transformers.CLIPTextModel(config))
    model = CLIPTextTransformer(CLIPTextConfig.from_dict(config.to_dict()))
    template = jax.eval_shape(model.init, jax.random.key(0), token_ids())["params"]
    params = to_tree({name.removeprefix("text_model."): value for name, value in tensors.items()}, template, "text")
    found = jax.jit(model.apply, static_argnums=2)({"params": params}, token_ids(), skipped_layers)
    states = reference(torch.tensor(token_ids()), output_hidden_states=True).hidden_states
    # Releases of transformers disagree on where it hangs.
    (norm,) = (module for name, module in reference.named_modules() if name.endswith("final_layer_norm"))
    assert relative(found, norm(states[-(skipped_layers + 1)])) < 1e-4


def test_both_towers_agree_with_transformers_even_on_words_that_were_added():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**TEXT, "vocab_size": 101, "hidden_act": "gelu"},
        vision_config={**TOWER, "image_size": 24, "patch_size": 8, "hidden_act": "gelu"},
        projection_dim=20,
    )
    reference, tensors = perturbed(transformers.CLIPModel(config))
    model = CLIP(CLIPConfig.from_dict(config.to_dict()))
    pixels = np.random.default_rng(1).normal(size=(3, 24, 24, 3)).astype(np.float32)
    ids = token_ids()
    ids[0, 10] = 100
    template = jax.eval_shape(model.init, jax.random.key(0), ids, pixels)["params"]
    variables = {"params": to_tree(tensors, template, "clip")}
    text, images, logit_scale = jax.jit(model.apply)(variables, ids, pixels)
    expected = reference(input_ids=torch.tensor(ids), pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2))
    assert relative(text, expected.text_embeds) < 1e-4
    assert relative(images, expected.image_embeds) < 1e-4
    assert relative(np.exp(logit_scale) * text @ images.T, expected.logits_per_text) < 1e-4


def test_an_unknown_activation_is_refused():
    with pytest.raises(UserError, match="relu.*expected one of"):
        CLIPTextConfig.from_dict({**TEXT, "max_position_embeddings": 77, "hidden_act": "relu"})
