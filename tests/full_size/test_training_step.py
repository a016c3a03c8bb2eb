"""One step of Diffusion-DPO with statistic matching on Stable Diffusion 1.5."""

import gc
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hgdpo_jax.adapters import lora
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion, targets_of
from hgdpo_jax.families.stable_diffusion.unet import UNet, UNetConfig
from hgdpo_jax.objectives import policy_losses
from hgdpo_jax.objectives.dpo import DPO
from hgdpo_jax.training.optimizer import make_optimizer

pytestmark = pytest.mark.slow

RANK = 8
BETA, STATISTIC_WEIGHT = 2500.0, 1e4
OPTIMIZER = {"learning_rate": 1e-4, "weight_decay": 0.01}
TERMS = ("dpo_loss", "statistic_loss")
TIMESTEP = 500


@pytest.fixture(scope="module")
def batch():
    """One pair at 256x256."""
    random = np.random.default_rng(0)
    names = ("winner_latents", "loser_latents", "noise")
    arrays = {name: random.normal(size=(1, 32, 32, 4)).astype(np.float32) for name in names}
    ids = random.integers(0, 49408, (1, 77)).astype(np.int32)
    return arrays | {"tokens": ids, "timesteps": np.array([TIMESTEP])}


@pytest.fixture(scope="module")
def adapter():
    """As after some training: both factors have gradients, and the loss is no longer log 2."""
    shapes = jax.eval_shape(_initialize_unet)["params"]
    fresh = lora.initialize(jax.random.key(0), targets_of(shapes), RANK)
    random = np.random.default_rng(1)
    return {
        path: {
            "down": np.asarray(entry["down"]),
            "up": random.normal(0.0, 4e-3, entry["up"].shape).astype(np.float32),
        }
        for path, entry in fresh.items()
    }


def _initialize_unet():
    inputs = (jnp.zeros((1, 8, 8, 4)), jnp.zeros(1, jnp.int32), jnp.zeros((1, 77, 768)))
    return UNet(UNetConfig()).init(jax.random.key(0), *inputs)


@pytest.fixture(scope="module")
def expected(base_folder, batch, adapter):
    """Both terms of the loss, their gradients and the factors after one and two steps of AdamW, in PyTorch and PEFT."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    functional = torch.nn.functional
    text_encoder = transformers.CLIPTextModel.from_pretrained(base_folder / "text_encoder")
    with torch.no_grad():
        states = text_encoder(torch.from_numpy(batch["tokens"])).last_hidden_state
    unet = diffusers.UNet2DConditionModel.from_pretrained(base_folder / "unet").requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    factors = {}
    for name, parameter in unet.named_parameters():
        if match := re.fullmatch(r"(.+)\.lora_([AB])\.default\.weight", name):
            factor = adapter[match[1]][{"A": "down", "B": "up"}[match[2]]]
            parameter.data.copy_(torch.from_numpy(factor.T.copy()))
            factors[match[1], {"A": "down", "B": "up"}[match[2]]] = parameter
    assert len(factors) == 2 * len(adapter) == 256

    def of_batch(name):
        return torch.from_numpy(batch[name].transpose(0, 3, 1, 2).copy())

    scheduler = diffusers.DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False)
    timesteps = torch.from_numpy(batch["timesteps"]).repeat(2)
    noise = of_batch("noise").repeat(2, 1, 1, 1)
    noisy = scheduler.add_noise(torch.cat([of_batch("winner_latents"), of_batch("loser_latents")]), noise, timesteps)

    # The formula of diffusers' example.
    def prediction_and_difference():
        predicted = unet(noisy, timesteps, states.repeat(2, 1, 1)).sample
        winner, loser = functional.mse_loss(predicted, noise, reduction="none").mean(dim=(1, 2, 3)).chunk(2)
        return predicted, winner - loser

    def sampler_step(predicted):
        # Float64: the latents of two such steps agree in all but the last digits of float32.
        return scheduler.step(
            predicted[:1].double(), TIMESTEP, noisy[:1].double(), generator=torch.Generator().manual_seed(0)
        ).prev_sample

    policy, policy_difference = prediction_and_difference()
    unet.disable_adapters()
    with torch.no_grad():
        reference, reference_difference = prediction_and_difference()
    unet.enable_adapters()
    margin = BETA * (reference_difference - policy_difference)
    shift = sampler_step(policy).mean(dim=(2, 3)) - sampler_step(reference).mean(dim=(2, 3))
    terms = {
        "dpo_loss": -functional.logsigmoid(margin).mean(),
        "statistic_loss": STATISTIC_WEIGHT * (shift**2).sum(dim=1).mean(),
    }
    parameters = list(factors.values())
    gradients = {name: torch.autograd.grad(term, parameters, retain_graph=True) for name, term in terms.items()}
    optimizer = torch.optim.AdamW(parameters, lr=OPTIMIZER["learning_rate"], weight_decay=OPTIMIZER["weight_decay"])
    trained = []
    for step in range(2):
        for parameter, *parts in zip(parameters, *gradients.values(), strict=True):
            # The second gradient differs, as in training.
            parameter.grad = sum(parts) / (1 + step)
        optimizer.step()
        trained.append(as_adapter(factors, parameters))
    return {
        "margin": margin.item(),
        "terms": {name: term.item() for name, term in terms.items()},
        "gradients": {name: as_adapter(factors, parts) for name, parts in gradients.items()},
        "trained": trained,
    }


def as_adapter(names, tensors):
    adapter = {}
    for (path, part), tensor in zip(names, tensors, strict=True):
        adapter.setdefault(path, {})[part] = tensor.detach().numpy().T.copy()
    return adapter


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def added(gradients):
    return jax.tree.map(np.add, *gradients.values())


@pytest.fixture(scope="module")
def found(base_folder, batch, adapter, expected):
    """The same here."""
    gc.collect()
    model = StableDiffusion.load(base_folder)

    def terms(adapter, base):
        values = policy_losses(DPO(BETA, STATISTIC_WEIGHT), model, adapter, base, batch)
        values = {name: values[name].mean() for name in TERMS}
        return values, values

    gradients, values = jax.jit(jax.jacrev(terms, has_aux=True))(adapter, model.parameters)
    jax.clear_caches()
    return {"terms": values, "gradients": jax.tree.map(np.asarray, gradients)}


def test_losses_equal_pytorchs(found, expected, report):
    # Saturated, or zero, the sigmoid would hide an error.
    assert 0.1 < abs(expected["margin"]) < 3
    report("DPO step, margin", expected["margin"])
    for name in TERMS:
        error = abs(found["terms"][name] / expected["terms"][name] - 1)
        report(f"DPO step, {name} {expected['terms'][name]:.3g}, relative error", error)
        # Errors of one agree to 1e-6; beta makes 2e-3 of it in the margin.
        assert error < 5e-3


@pytest.mark.parametrize("term", [*TERMS, "loss"])
def test_gradient_of_every_factor_equals_pytorchs(found, expected, relative_error, report, term):
    ours, theirs = (
        added(result["gradients"]) if term == "loss" else result["gradients"][term] for result in (found, expected)
    )
    whole = relative_error(flat(ours), flat(theirs))
    norm = np.linalg.norm(flat(theirs))
    # One in 256 factors has a sixteenth of the norm; far below that it does not matter.
    factors = [(a, b) for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True)]
    compared = [relative_error(a, b) for a, b in factors if np.linalg.norm(b) > 1e-4 * norm]
    report(f"DPO step, gradient of {term}, norm {norm:.3g}, relative error", whole)
    report(f"DPO step, gradient of {term}, largest relative error of {len(compared)} factors", max(compared))
    assert len(compared) > 150
    assert whole < 1e-3
    assert max(compared) < 1e-3


def test_the_optimiser_steps_as_pytorchs_adamw_on_the_same_gradients(adapter, expected, relative_error, report):
    optimizer = make_optimizer(**OPTIMIZER)
    state, trained = optimizer.init(adapter), adapter
    errors = []
    for step, theirs in enumerate(expected["trained"]):
        gradients = jax.tree.map(lambda x, step=step: x / (1 + step), added(expected["gradients"]))
        updates, state = optimizer.update(gradients, state, trained)
        before, trained = trained, optax.apply_updates(trained, updates)
        errors.append(relative_error(flat(trained) - flat(adapter), flat(theirs) - flat(adapter)))
        assert np.linalg.norm(flat(trained) - flat(before)) > 0
    report("AdamW, change of the factors, relative error", max(errors))
    # The factors are near one, their changes 1e-4 of that: three digits of float32 are left of a change.
    assert max(errors) < 1e-3
