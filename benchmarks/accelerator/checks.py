"""Whether the programs compute the right thing here: against PyTorch, against a CPU, and one type against the other."""

import functools
import json
import math
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.models import (
    BETA,
    GUIDANCE,
    STATISTIC_WEIGHT,
    Models,
    Size,
    flat,
    on_device,
    relative_error,
)
from benchmarks.accelerator.programs import Compiler
from benchmarks.accelerator.rows import Result, Row
from hgdpo_jax.models.attention import attention
from hgdpo_jax.models.parameters import apply
from hgdpo_jax.objectives import policy_losses
from hgdpo_jax.objectives.dpo import DPO
from hgdpo_jax.preflight.least import least_step_flops
from hgdpo_jax.sharding import data_mesh
from hgdpo_jax.training.accumulation import make_accumulating_step
from hgdpo_jax.training.optimizer import make_optimizer

SAMPLER_STEPS = 10
# With the method's beta the check would measure how far rounding moves the sigmoid, and not the gradient.
CHECK_BETA = 10.0
LEARNING_RATE = 1e-5
# Elements of a result that are kept as a CPU's figures.
_KEPT = 64
# Largest relative errors. In float32 two libraries on a CPU differ by 1e-5, a gradient by 5e-5 (tests/full_size). In
# bfloat16, whose steps are 0.4 %, hundreds of roundings add up: on a CPU to 1.6 % of the U-Net's output, 2.1 % of the
# sampler's and 5.3 % of the gradient.
FLOAT32 = 1e-4
LIMITS = {
    "unet": (FLOAT32, 0.05),
    "vae decode": (FLOAT32, 0.05),
    "vae encode": (FLOAT32, 0.05),
    "text encoder": (FLOAT32, 0.05),
    "pickscore": (FLOAT32, 0.05),
    "sampler": (1e-3, 0.1),
    "gradient": (1e-3, 0.15),
}


class Bench:
    """What the checks of one process share: models, compiler, the CPU's figures and PyTorch's models."""

    def __init__(self, models: Models, figures: Path):
        self.models, self.size = models, models.size
        self.compiler = Compiler()
        self.figures: Mapping[str, list[float]] = {}
        if figures.exists():
            self.figures = json.loads(figures.read_text()).get(models.size.name, {})

    @functools.cached_property
    def peer(self):
        """PyTorch's models with the same weights."""
        from benchmarks.accelerator.peer import Peer

        return Peer(self.models)

    @functools.cached_property
    def least_pair_flops(self) -> float:
        """Operations that a training step needs at the least for a pair of portraits."""
        models = self.models
        base = models.base("bfloat16").with_parameters(**models.parameters("bfloat16", "unet", "text_encoder"))
        shape = models.latent_shape(self.size.portrait)
        return least_step_flops(base, models.adapter(trained=False), DPO(), rows=1, latent_shape=shape)


# Each subject is a function of (models, dtype) that returns a pure function and its arguments.
Subject = Callable[[Models, str], tuple[Callable[..., Any], tuple]]


def _unet(models: Models, dtype: str):
    given = models.inputs(2, models.size.check)
    arguments = (models.parameters(dtype, "unet"), given["latents"], given["timesteps"], given["states"])
    return models.base(dtype).noise, arguments


def _decode(models: Models, dtype: str):
    model, given = models.base(dtype), models.inputs(2, models.size.check)

    def decode(parameters, latents):
        return apply(model.autoencoder, parameters["autoencoder"], latents, method="decode")

    return decode, (models.parameters(dtype, "vae"), given["latents"])


def _encode(models: Models, dtype: str):
    return models.base(dtype).encode, (models.parameters(dtype, "vae"), pixels_of(models))


def pixels_of(models: Models) -> np.ndarray:
    """Two random pictures, uint8."""
    width, height = models.size.check
    return np.random.default_rng(2).integers(0, 256, (2, height, width, 3)).astype(np.uint8)


def _text(models: Models, dtype: str):
    arguments = (models.parameters(dtype, "text_encoder"), models.inputs(2, models.size.check)["tokens"])
    return models.base(dtype).condition, arguments


def _pick_score(models: Models, dtype: str):
    scorer = models.scorer(dtype)

    def score(parameters, pixels, token_ids):
        return scorer.score_pixels(parameters, pixels, scorer.embed_prompts(parameters, token_ids))

    # As large as the tower wants them, so that nothing is resized.
    edge = models.size.clip.get("vision_config", {}).get("image_size", 224)
    pixels = np.random.default_rng(3).integers(0, 256, (2, edge, edge, 3)).astype(np.uint8)
    return score, (models.scorer_parameters(dtype), pixels, models.inputs(2, models.size.check)["tokens"])


def pair_batch(models: Models, pairs: int, pixels: tuple[int, int]) -> dict[str, np.ndarray]:
    """Pairs for the loss, with noise and timesteps."""
    given = models.inputs(pairs, pixels, seed=4)
    return {
        "winner_latents": given["latents"],
        "loser_latents": given["other_latents"],
        "tokens": given["tokens"],
        "noise": given["noise"],
        "timesteps": given["timesteps"],
    }


def _gradient(models: Models, dtype: str, remat: str = "activations"):
    model = models.base(dtype).with_remat(remat)

    def gradient(adapter, base, batch):
        def loss(adapter):
            # Diffusion-DPO alone, as PyTorch's example has it.
            return policy_losses(DPO(CHECK_BETA, 0.0), model, adapter, base, batch)["loss"].mean()

        return jax.grad(loss)(adapter)

    batch = pair_batch(models, 1, models.size.check)
    return gradient, (models.adapter(trained=True), models.parameters(dtype, "unet", "text_encoder"), batch)


def _sampler(models: Models, dtype: str):
    given = models.inputs(1, models.size.check, seed=5)
    sample = functools.partial(models.base(dtype).sample, steps=SAMPLER_STEPS, guidance=GUIDANCE)
    states = (given["states"], given["empty_states"])
    return sample, (models.parameters(dtype, "unet"), given["latents"], *states, ())


SUBJECTS: dict[str, Subject] = {
    "unet": _unet,
    "vae decode": _decode,
    "vae encode": _encode,
    "text encoder": _text,
    "pickscore": _pick_score,
    "gradient": _gradient,
    "sampler": _sampler,
}
# Those whose PyTorch model is diffusers' or PEFT's; transformers has the others.
_NEEDS = {name: ("diffusers",) for name in ("unet", "vae decode", "vae encode", "sampler")} | {
    "gradient": ("diffusers", "peft")
}


def figures_of(size: Size) -> dict[str, list[float]]:
    """A few elements of each subject's result on this machine, in float32: what is committed as the CPU's."""
    found = {}
    for name, subject in SUBJECTS.items():
        # Each with models of its own: together they do not fit into every machine's memory.
        function, arguments = subject(Models(size), "float32")
        found[name] = kept(flat(jax.jit(function)(*on_device(arguments)))).tolist()
    return found


def kept(values: np.ndarray) -> np.ndarray:
    """Elements spread evenly over the whole."""
    return values[np.linspace(0, len(values) - 1, _KEPT).astype(int)]


def verdict(errors: Mapping[str, tuple[float, float | None]]) -> Result:
    """The errors with their limits, and the names of those above; without a limit an error is only told."""
    failed = [name for name, (error, limit) in errors.items() if limit is not None and not error <= limit]
    shown = {
        name: {"error": error if math.isfinite(error) else "not finite", "limit": limit}
        for name, (error, limit) in errors.items()
    }
    return {"errors": shown} | ({"failed": failed} if failed else {})


def _check_subject(
    name: str, bench: Bench, found: dict[str, np.ndarray] | None = None
) -> Generator[None, None, Result]:
    """One subject in each type; `found` receives its results."""
    found = {} if found is None else found
    ways = {"float32": ("float32", None), "TF32": ("float32", "tensorfloat32"), "bfloat16": ("bfloat16", None)}
    programs: dict[str, tuple[Future, tuple]] = {}
    for way, (dtype, precision) in ways.items():
        function, arguments = SUBJECTS[name](bench.models, dtype)
        programs[way] = bench.compiler.submit(function, *on_device(arguments), precision=precision), arguments
    yield
    for way, (program, arguments) in programs.items():
        found[way] = flat(program.result().call(*on_device(arguments)))
    limit, limit16 = LIMITS[name]
    errors: dict[str, tuple[float, float | None]] = {
        "bfloat16 beside float32": (relative_error(found["bfloat16"], found["float32"]), limit16),
        "TF32 beside float32": (relative_error(found["TF32"], found["float32"]), None),
    }
    if name in bench.figures:
        errors["float32 beside a CPU"] = (relative_error(kept(found["float32"]), bench.figures[name]), limit)
    missing = [package for package in _NEEDS.get(name, ("transformers",)) if not is_installed(package)]
    if not missing:
        errors["float32 beside PyTorch"] = (relative_error(found["float32"], bench.peer.subject(name)), limit)
    return verdict(errors) | ({"without": missing} if missing else {})


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    import importlib.util

    return importlib.util.find_spec(package) is not None


def _check_runs(bench: Bench) -> Generator[None, None, Result]:
    """The first program of all: the U-Net in bfloat16, as it is drawn with."""
    function, arguments = _unet(bench.models, "bfloat16")
    program = bench.compiler.submit(function, *on_device(arguments))
    yield
    output = flat(program.result().call(*on_device(arguments)))
    share = float(np.mean(np.isfinite(output)))
    return verdict({"share of values that are not finite": (1 - share, 0.0)})


def _check_attention(bench: Bench) -> Generator[None, None, Result]:
    """Attention of many queries and its gradient by each implementation, beside JAX's plain one in float32."""
    tokens, heads = bench.size.attention_tokens, 8
    programs = {}
    for head in (40, 80):
        random = np.random.default_rng(head)
        inputs = tuple(random.standard_normal((2, tokens, heads * head), np.float32) for _ in range(4))

        def plain(query, key, value, heads=heads):
            split = (x.reshape(*x.shape[:2], heads, -1) for x in (query, key, value))
            return jax.nn.dot_product_attention(*split, implementation="xla").reshape(query.shape)

        programs[head, "plain"] = bench.compiler.submit(_with_gradient(plain), *on_device(inputs), precision="highest")
        for way, implementation in (("cuDNN", "auto"), ("chunked", "chunked")):
            attend = functools.partial(attention, heads=heads, implementation=implementation)
            typed = tuple(x.astype(jnp.bfloat16) for x in on_device(inputs))
            programs[head, way] = bench.compiler.submit(_with_gradient(attend), *typed)
        programs[head, "inputs"] = inputs
    yield
    errors: dict[str, tuple[float, float | None]] = {}
    for head in (40, 80):
        inputs = on_device(programs[head, "inputs"])
        expected = programs[head, "plain"].result().call(*inputs)
        for way in ("cuDNN", "chunked"):
            found = programs[head, way].result().call(*(x.astype(jnp.bfloat16) for x in inputs))
            for part, ours, theirs in zip(("output", "gradient"), found, expected, strict=True):
                errors[f"{way}, heads of {head}, {part}"] = (relative_error(flat(ours), flat(theirs)), 0.03)
    return verdict(errors)


def _with_gradient(attend: Callable[..., jax.Array]):
    def both(query, key, value, weights):
        output, pull = jax.vjp(attend, query, key, value)
        return output, pull(weights)

    return both


def _check_gradient(bench: Bench) -> Generator[None, None, Result]:
    """The gradient of a training step's loss; what is rematerialised must not change it."""
    others = {}
    for dtype in ("float32", "bfloat16"):
        function, arguments = _gradient(bench.models, dtype, "none")
        others[dtype] = bench.compiler.submit(function, *on_device(arguments)), arguments
    found: dict[str, np.ndarray] = {}
    result = yield from _check_subject("gradient", bench, found)
    errors: dict[str, tuple[float, float | None]] = {}
    for (dtype, (program, arguments)), limit in zip(others.items(), LIMITS["gradient"], strict=True):
        off = flat(program.result().call(*on_device(arguments)))
        errors[f"remat on beside off, {dtype}"] = (relative_error(found[dtype], off), limit)
    extra = verdict(errors)
    failed = [*result.get("failed", []), *extra.get("failed", [])]
    return result | {"errors": result["errors"] | extra["errors"]} | ({"failed": failed} if failed else {})


def make_step(models: Models, dtype: str):
    """The training step of configs/n20_sml.py, its optimiser and its mesh."""
    mesh = data_mesh(jax.devices()[:1])
    objective = DPO(BETA, STATISTIC_WEIGHT)
    losses = functools.partial(policy_losses, objective, models.base(dtype).with_remat("activations"))
    draw = functools.partial(objective.draw, timesteps=1000)
    optimizer = make_optimizer(learning_rate=LEARNING_RATE, max_gradient_norm=1.0)
    return make_accumulating_step(losses, optimizer, draw, parts=1, mesh=mesh), optimizer


def step_arguments(models: Models, optimizer, pairs: int, pixels: tuple[int, int], dtype: str, trained: bool = False):
    """State, base, batch and key of a training step."""
    adapter = on_device(models.adapter(trained))
    state = {"parameters": adapter, "optimizer": optimizer.init(adapter)}
    batch = pair_batch(models, pairs, pixels)
    batch = {name: batch[name] for name in ("winner_latents", "loser_latents", "tokens")}
    return state, models.parameters(dtype, "unet", "text_encoder"), on_device(batch), jax.random.key(0)


def _check_training(bench: Bench) -> Generator[None, None, Result]:
    """The loss starts at log 2, and stays finite over many steps."""
    step, optimizer = make_step(bench.models, "bfloat16")
    arguments = step_arguments(bench.models, optimizer, 1, bench.size.check, "bfloat16")
    program = bench.compiler.submit(step, *arguments)
    yield
    state, base, batch, _ = arguments
    call, losses = program.result().call, []
    for number in range(bench.size.training_steps):
        state, scalars = call(state, base, batch, jax.random.key(number))
        losses.append(jnp.stack([scalars["loss"], scalars["gradient_norm"]]))
    values = np.asarray(jnp.stack(losses))
    return verdict(
        {
            "first loss beside log 2": (abs(float(values[0, 0]) - math.log(2)), 0.1),
            "share of steps that are not finite": (1 - float(np.mean(np.isfinite(values))), 0.0),
        }
    ) | {"steps": len(values)}


# Estimates for an H100 with 16 CPU cores: PyTorch's model of each, and its share of compiling all of a wave at once.
_SECONDS = {"unet": 12.0, "vae decode": 6.0, "vae encode": 6.0, "text encoder": 3.0, "pickscore": 8.0, "sampler": 10.0}

ROWS = [
    # The weights are made here.
    Row("runs", "checks", 0, 20.0, _check_runs),
    Row("check: training", "checks", 1, 12.0, _check_training),
    *(
        Row(f"check: {name}", "checks", 1, seconds, functools.partial(_check_subject, name))
        for name, seconds in _SECONDS.items()
    ),
    Row("check: attention", "checks", 1, 6.0, _check_attention),
    Row("check: gradient", "checks", 1, 25.0, _check_gradient),
]
