"""Fine-tunes all weights of the base's U-Net on captioned images by noise prediction (HG-DPO, Sec. 2).

The result is a checkpoint of its own, in float16, whose VAE and text encoder are those of the base.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from hgdpo_jax import losses
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.checkpoints import Checkpoints
from hgdpo_jax.data.batches import shuffled_batches
from hgdpo_jax.diffusion.schedule import add_noise
from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.contact_sheet import contact_sheet
from hgdpo_jax.pipelines.stable_diffusion import StableDiffusion
from hgdpo_jax.random_keys import image_noise, training_key
from hgdpo_jax.run_log import RunLog
from hgdpo_jax.sharding import data_mesh
from hgdpo_jax.stages.encode_images import read_encoded
from hgdpo_jax.stages.generate_pool import base_fingerprints, load_base
from hgdpo_jax.stages.train_policy import check_training
from hgdpo_jax.training.accumulation import accumulation_steps, make_accumulating_step
from hgdpo_jax.training.loop import train
from hgdpo_jax.training.optimizer import make_optimizer
from hgdpo_jax.weights.stable_diffusion_files import read_license, write_card

INPUTS = ("encode_images",)

# The images count as they were encoded. How a batch is cut, and how often one looks at the model or saves it, may
# change while it runs.
_NOT_SETTINGS = ("images", "caption_column", "device_batch", "evaluate_every", "checkpoint_every")


def settings(config) -> dict:
    options = {name: value for name, value in config.finetune.to_dict().items() if name not in _NOT_SETTINGS}
    return {"seed": config.seed, "dtype": config.dtype, **base_fingerprints(config), "finetune": options}


def plan(config, run: StageRun) -> str:
    return f"{config.finetune.steps:,} steps of {config.finetune.batch_size} images"


def check(config) -> None:
    """Raises UserError where a setting of the training cannot be."""
    options = config.finetune
    if not 0 <= options.empty_captions <= 1:
        raise UserError(f"finetune.empty_captions is {options.empty_captions}, expected a share, 0 to 1")
    check_training(options, "finetune")


def make_finetune_step(model: StableDiffusion, optimizer, parts: int):
    """One compiled step `(state, None, batch, key) -> (state, scalars)`; gradients of `parts` slices are averaged.

    A batch has `moments` and `text_states`, rows as in `EncodedImages`.
    """

    def loss_function(unet, _, batch):
        noisy = add_noise(model.schedule, batch["latents"], batch["noise"], batch["timesteps"])
        # The weights stay float32: each layer computes with a copy in the model's type.
        predicted = model.noise({"unet": unet}, noisy, batch["timesteps"], batch["text_states"])
        loss = losses.noise_prediction(predicted, batch["noise"]).mean()
        return loss, {"loss": loss}

    def draw(batch, key):
        latent_key, noise_key, time_key = jax.random.split(key, 3)
        mean, deviation = jnp.split(batch["moments"].astype(jnp.float32), 2, axis=-1)
        return {
            "latents": mean + deviation * jax.random.normal(latent_key, mean.shape),
            "noise": jax.random.normal(noise_key, mean.shape),
            "timesteps": jax.random.randint(time_key, mean.shape[:1], 0, len(model.schedule.betas)),
            "text_states": batch["text_states"],
        }

    return make_accumulating_step(loss_function, optimizer, draw, parts)


def make_training(config, model: StableDiffusion, devices: int):
    """What makes a state of the U-Net's parameters, and the step (`make_finetune_step`) on so many devices."""
    options = config.finetune
    optimizer = make_optimizer(
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        weight_decay=options.weight_decay,
        max_gradient_norm=options.max_gradient_norm,
        adam_bits=options.adam_bits,
    )

    def initial_state(parameters):
        return {"parameters": parameters, "optimizer": optimizer.init(parameters)}

    parts = accumulation_steps(options.batch_size, options.device_batch, devices)
    return initial_state, make_finetune_step(model, optimizer, parts)


def drop_captions(
    text_states: Float[np.ndarray, "n t d"],
    empty_states: Float[np.ndarray, "t d"],
    share: float,
    random: np.random.Generator,
) -> Float[np.ndarray, "n t d"]:
    """The states, each caption's replaced by those of the empty prompt with a probability of `share`."""
    dropped = random.random(len(text_states)) < share
    return np.where(dropped[:, None, None], empty_states, text_states)


def run(config, run: StageRun) -> None:
    options = config.finetune
    images, captions = read_encoded(run.input("encode_images"))
    # In bfloat16 a step of this learning rate would round to nothing.
    model = load_base(config, "float32").computing_in(config.dtype)
    initial_state, step_function = make_training(config, model, data_mesh().size)
    batches = shuffled_batches(images, options.batch_size, config.seed)
    # With all layers, as guidance leads away from it.
    empty = model.encode_prompts([""])[0].astype(np.float16)

    def batch_at(step):
        batch, random = batches[step], np.random.default_rng((config.seed, step))
        states = drop_captions(batch["text_states"], empty, options.empty_captions, random)
        return {"moments": batch["moments"], "text_states": states}, training_key(config.seed, step)

    log = RunLog(run.folder)
    shape = model.latent_shape(config.pool.width, config.pool.height)
    start = image_noise(config.seed, captions, np.zeros(len(captions), np.int32), shape)

    def draw_samples(state, step):
        latents = model.with_unet(state["parameters"]).generate_latents(
            captions,
            np.asarray(start),
            negative_prompts=[config.pool.negative_prompt] * len(captions),
            clip_skip=config.pool.clip_skip,
            steps=config.pool.steps,
            guidance=config.pool.guidance,
            device_batch=config.pool.device_batch,
        )
        log.image(step, "samples", contact_sheet(model.decode_latents(latents, config.pool.device_batch), columns=4))
        return {}

    state = train(
        initial_state(model.parameters["unet"]),
        lambda state, batch: step_function(state, None, *batch),
        batch_at,
        steps=options.steps,
        checkpoints=Checkpoints(run.folder / "checkpoints"),
        log=log,
        save_every=options.checkpoint_every,
        description="finetune_base",
        evaluate=draw_samples,
        evaluate_every=options.evaluate_every,
        samples_per_step=options.batch_size,
        unit="image",
    )
    model.with_unet(state["parameters"]).save(run.folder / "base")
    write_card(run.folder / "base", base=config.weights.base, license=read_license(config.weights.base))
