"""Every setting of an experiment once, with its meaning, unit and source; the values are the paper's (SD1.5).

An experiment, a file in configs/, is `base_config()` and what differs from it. Section numbers are those of HG-DPO
(arXiv 2405.20216); "not stated" means that the paper does not say and this project chose.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from hgdpo_jax import objectives, plugins
from hgdpo_jax.adapters.lora import LARGEST_SCALE
from hgdpo_jax.diffusion.sampling import Sampling
from hgdpo_jax.diffusion.schedule_settings import UNCHANGED, ScheduleSettings
from hgdpo_jax.models.attention import IMPLEMENTATIONS
from hgdpo_jax.models.remat import REMAT
from hgdpo_jax.objectives import Objective
from hgdpo_jax.objectives.dpo import DPO
from hgdpo_jax.settings import free, named, read, setting


@dataclasses.dataclass(frozen=True)
class Weights:
    """Checkpoints: a folder in the diffusers (base, vae) or transformers (scorer) layout, a single file (base, vae), a
    repository of the Hugging Face hub (owner/name or owner/name@revision), or a name that a plugin gives its weights.
    """

    # The model that draws the pool, is the reference, and carries the LoRA (Sec. 2).
    base: str = named("")
    # What the base is: the name of a folder in hgdpo_jax/families, or a class of yours, "module:Class" (SD1.5).
    family: str = named("stable_diffusion")
    # Folder or repository with CLIP's vocab.json and merges.txt; empty: the base's own. A single file has none.
    tokenizer: str = named("")
    # VAE in place of the base's, a diffusers folder or a single file; empty: the base's own.
    vae: str = named("")
    # The preference model that chooses the pairs: PickScore (Sec. 3.1). A folder or repository, with processor=SOURCE
    # where its preprocessor_config.json and tokenizer lie elsewhere, as for PickScore_v1:
    #     yuvalkirstain/PickScore_v1,processor=laion/CLIP-ViT-H-14-laion2B-s32B-b79K
    # or another kind of scorer, or a function of yours: hgdpo_jax/scorers/sources.py says how each is written.
    scorer: str = named("")


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Each one of

        people.txt                                  a text file with one prompt a line,
        people.json                                 a JSON array of prompts,
        people.csv:caption                          a column of a .csv, .tsv, .json, .jsonl or .parquet file,
        PartiPrompts.tsv:Prompt:Category=People     of its rows with this value in another column,
        parti-people                                the PartiPrompts of category People, which ship with the package,
        PLUGIN:NAME                                 prompts of a plugin (hgdpo_jax/plugins.py).

    A file may be one of a data set on the hub, hf://datasets/OWNER/NAME/FILE, or several, with * in its name.
    Empty prompts and repetitions do not count.
    """

    # Prompts of the pool (Sec. 3.1).
    train: str = named("")
    # Prompts that choose the best checkpoint during training (not stated).
    validation: str = named("")
    # Prompts of the evaluation; the paper's are the 177 PartiPrompts of category People (Sec. 4).
    test: str = named("parti-people")
    # How many of each are used, counted from the first; 0: all.
    train_count: int = 0
    validation_count: int = 64
    test_count: int = 0


@dataclasses.dataclass(frozen=True)
class Pool:
    """Drawing images of the base model (Sec. 3.1, Eq. 4); what decides the images, but for their number, also holds for
    validation, samples and evaluation.
    """

    # Images per prompt, N. Not part of the pool's fingerprint: more images are added to those there are.
    size: int = setting(20, least=1, most=10_000)
    # DPM-Solver++ steps.
    steps: int = setting(50, least=1)
    # Scale of classifier-free guidance.
    guidance: float = setting(5.0, most=100)
    # What guidance leads away from, the same text for all images; empty: the empty prompt (not stated).
    negative_prompt: str = ""
    # Last layers of the text encoder that are skipped for prompts, while sampling and in training, counted as in
    # diffusers: what other programs call "clip skip 2" is 1. Negative prompts see all layers, as there (not stated).
    clip_skip: int = setting(0, most=100)
    # Pixels.
    width: int = setting(704, least=1, most=1 << 14)
    height: int = setting(1024, least=1, most=1 << 14)
    # Prompts a file of the pool: what is lost at most when the run is killed, times one image.
    block: int = setting(64, least=1)
    # Images drawn at once on one device; changes speed and memory, not the images.
    device_batch: int = free(8, least=1)
    # Share of a stage's images that may be unusable, because their latents, pixels or scores are not finite, before the
    # stage stops. They are left out and counted; a few of them never stop a stage. Changes no results.
    unusable_limit: float = free(0.01, most=1)


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Scoring the pool and the images of evaluations."""

    # How an image becomes the square that a scorer sees: "crop" its centre (PickScore's own way, and that of most;
    # it loses 31 % of a 704x1024 portrait), or "pad" it.
    framing: str = setting("crop", among=("crop", "pad"))
    # Images scored, and encoded by the VAE, at once on one device.
    device_batch: int = free(16, least=1)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Choosing winner and loser (Sec. 3.1, Eq. 6)."""

    # The loser is the image with the l-th highest score, 2 to pool.size (ablation N-20-L-l); 0: the lowest.
    loser_rank: int = 0
    # A function of yours, "module:function", that gets images uint8 [n, height, width, 3] and their prompts and returns
    # bool [n]: only images with True become winner or loser. At the start it is tried on black pictures. Empty: all do
    # (not stated).
    filter: str = named("")
    # What training sees: "encoded" decodes an image and encodes it with the VAE (the paper's way), "sampled" takes the
    # sampler's latents.
    latents: str = setting("encoded", among=("encoded", "sampled"))


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The LoRA on to_q, to_k, to_v and to_out of every attention (Sec. 3.2)."""

    # Rank; alpha equals it.
    rank: int = setting(8, least=1, most=1024)
    # LoRA scale when sampling, 0 to 1 (Sec. 3.2: 0.5; 0.8 gives the best poses and less diversity).
    scale: float = setting(0.5, most=LARGEST_SCALE)


@dataclasses.dataclass(frozen=True)
class Train:
    """Training the LoRA (Sec. 3.2)."""

    # Added to `seed` for what training draws, noise and order of the pairs and the initial LoRA: with another one an
    # experiment is trained anew on the same pool and evaluated on the same noise.
    seed: int = 0
    # Optimiser steps (not stated; here 100,000 pairs once).
    steps: int = setting(6250, least=1)
    # Pairs a step over all devices.
    batch_size: int = setting(16, least=1)
    # Pairs at once on one device; the rest of a batch is accumulated.
    device_batch: int = free(4, least=1)
    # Neighbouring devices that share one copy of the frozen base. 1: each has its own; 0: all of a host share one.
    fsdp: int = free(1)
    # What the gradient makes again instead of keeping it: "activations" makes norms, activations and gates again, which
    # costs no matrix product; "blocks" all within a block, a third more work; "none" nothing. Changes no results.
    remat: str = free("activations", among=REMAT)
    # Peak learning rate of AdamW (0.9, 0.999).
    learning_rate: float = setting(1e-5, least=1e-12, most=1)
    # Steps of linear warm-up (not stated).
    warmup_steps: int = 100
    # Decoupled weight decay (not stated; the paper says Adam).
    weight_decay: float = setting(0.0, most=1)
    # Bits of each of Adam's two moments: 8 is the paper's, as in bitsandbytes. Here 32: 8 saves 8 MB of 13 for SD1.5's
    # LoRA, and is coarse for elements whose gradients are a thousand times smaller than others in their block of 256.
    adam_bits: int = setting(32, among=(8, 32))
    # Gradients are scaled down to this norm; 0: never (not stated).
    max_gradient_norm: float = 1.0
    # Steps between evaluations on the validation prompts; the best of them is exported.
    evaluate_every: int = setting(250, least=1)
    # Steps between checkpoints: what is lost at most when the run is killed.
    checkpoint_every: int = free(50, least=1)


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Fine-tuning the base's whole denoiser on captioned images (Sec. 2), which configs/finetune_base.py does. Images
    become pool.width x pool.height pixels, as large as those that are drawn later.
    """

    # Folder of images with metadata.jsonl, .csv or .parquet; its column file_name says where each lies in the folder.
    images: str = named("")
    # The column with the captions; the paper's are LLaVA's.
    caption_column: str = named("text")
    # Optimiser steps (not stated; here the paper's 322,461 images once).
    steps: int = setting(10_000, least=1)
    # Images a step over all devices (not stated).
    batch_size: int = setting(32, least=1)
    # Images at once on one device; the rest of a batch is accumulated. 4 of 704x1024 pixels take 24 GB on an A100.
    device_batch: int = free(4, least=1)
    # Neighbouring devices that share one copy of weights and optimiser state. 1: each has its own; 0: all of a host
    # share one.
    fsdp: int = free(0)
    # As train.remat.
    remat: str = free("activations", among=REMAT)
    # Peak learning rate of AdamW (0.9, 0.999) (not stated; as usual for Stable Diffusion 1.5).
    learning_rate: float = setting(1e-5, least=1e-12, most=1)
    # Steps of linear warm-up (not stated).
    warmup_steps: int = 500
    # Decoupled weight decay (not stated; that of the usual AdamW).
    weight_decay: float = setting(0.01, most=1)
    # Bits of each of Adam's two moments, 8 or 32 (the paper's LoRA has 8): 32 take 5.1 GB more.
    adam_bits: int = setting(8, among=(8, 32))
    # Gradients are scaled down to this norm; 0: never (not stated).
    max_gradient_norm: float = 1.0
    # Share of captions replaced by the empty prompt, which guidance needs (not stated; that of Stable Diffusion 1.5).
    empty_captions: float = setting(0.1, most=1)
    # Steps between samples of a few captions, for the eye.
    evaluate_every: int = free(1000, least=1)
    # Steps between checkpoints, of 5.2 GB each: what is lost at most when the run is killed.
    checkpoint_every: int = free(250, least=1)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Drawing images of base and tuned model for the eye."""

    # Prompts; empty: the first test prompts. A sample with prompts of its own has a folder of its own.
    prompts: tuple[str, ...] = named(())
    # Its folder is WORKDIR/runs/NAME/sample_images-<this>; empty: sample_images, or with prompts of its own a name that
    # is derived from them.
    name: str = free("")
    # Images per prompt.
    seeds: int = setting(4, least=1, most=10_000)
    # Latent adaptive normalisation while sampling (Eq. 7); doubles the cost.
    latent_normalization: bool = False


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Models against each other on the test prompts, from the same noise (Sec. 4)."""

    # The first is what all others are compared with: "base"; "tuned", with this experiment's LoRA at adapter.scale;
    # another LoRA file; "folder:PATH", images that are there already (metadata.jsonl gives "file_name" and, as "text",
    # the prompt). "@0.8" behind a LoRA gives its scale, "+lan" samples with latent adaptive normalisation, "NAME="
    # before it names it: ("base", "tuned", "tuned@0.8", "tuned+lan", "old=loras/old.safetensors@0.5").
    models: tuple[str, ...] = named(("base", "tuned"))
    # Scores besides the training scorer's, written as weights.scorer, none of which chooses pairs; the first one leads
    # the report. The paper's are HPSv2, ImageReward, Aesthetic and CLIP score.
    scorers: tuple[str, ...] = named(())
    # Functions of yours, written as scorers, that describe the images of each model: one that returns booleans gives a
    # share of images, one that returns numbers a mean (hgdpo_jax/evaluation/measures.py).
    measures: tuple[str, ...] = named(())
    # Images per prompt and model; their scores are averaged within the prompt.
    seeds: int = setting(4, least=1, most=10_000)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """How strong the LoRA should be (Fig. 8): `sweep_scale` draws the first test prompts at each of these scales."""

    scales: tuple[float, ...] = setting((0.0, 0.25, 0.5, 0.75, 1.0), most=LARGEST_SCALE)
    # Prompts, counted from the first; each has `evaluate.seeds` images.
    prompts: int = setting(32, least=1)


@dataclasses.dataclass(frozen=True)
class Preflight:
    """Compiling this experiment's programs for accelerators that are not there."""

    # Devices, NAME:COUNT: a100-40gb, a100-80gb, h100, h200, l4, rtx-4090, v4, v5e, v5p or v6e.
    target: str = "a100-80gb:8"
    # Programs to compile, named as the stages that run them; empty: all of the config's stages.
    programs: tuple[str, ...] = ()
    # Whether to look for the largest batches that fit, by compiling twice or more again.
    largest_batch: bool = True
    # Shares of the roofline's speed that programs may reach; each gives an estimate of the hours. Empty: what
    # `python -m benchmarks.accelerator` measured on this kind of device, or 0.3 and 0.5 (assumed) where it did not run.
    efficiencies: tuple[float, ...] = setting((), least=0.001, most=1)
    # What one device costs an hour, in any currency; 0: no price.
    price_per_hour: float = 0.0


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The paper's settings."""

    # Name of the experiment, its folder in WORKDIR/runs; empty: the name of the config file.
    name: str = free("")
    # All random numbers derive from it: pool images, training noise, initial LoRA.
    seed: int = setting(0, most=(1 << 32) - 1)
    # Compute type of the frozen models: "bfloat16" or "float32". LoRA, optimiser and losses are always float32.
    # "float32" is full precision on GPUs and TPUs too, at a small share of their speed.
    dtype: str = "bfloat16"
    # Attention of the U-Net to many tokens: "auto" is cuDNN's on NVIDIA GPUs and JAX's splash kernels on TPUs, where
    # they can be, else block by block; "chunked" is block by block everywhere, for GPUs older than Ampere and TPUs
    # older than v4. It changes speed, memory and rounding.
    attention: str = setting("auto", among=IMPLEMENTATIONS)
    # Devices that the CPU of a machine without accelerator is divided into; 0: one a core.
    cpu_devices: int = free(0, most=1024)
    # Stages to run, in this order.
    stages: tuple[str, ...] = free(
        (
            "generate_pool",
            "score_pool",
            "select_pairs",
            "check_pairs",
            "train_policy",
            "export_adapter",
            "sample_images",
            "evaluate_policy",
        )
    )
    weights: Weights = Weights()
    # What replaces the base's noise schedule: schedule.timestep_spacing, .steps_offset, .sigmas, .prediction_type and
    # .terminal_snr (hgdpo_jax/diffusion/schedule_settings.py); empty: as its files say.
    schedule: ScheduleSettings = UNCHANGED
    prompts: Prompts = Prompts()
    pool: Pool = Pool()
    scoring: Scoring = Scoring()
    pairs: Pairs = Pairs()
    adapter: Adapter = Adapter()
    # What the LoRA learns from, a file in hgdpo_jax/objectives/ with settings of its own, such as dpo.beta: "dpo" is
    # Diffusion-DPO with statistic matching (Eq. 9), "ipo" regresses the margin to a finite target, "sft" predicts the
    # noise in the winner and never sees the loser (Table 1: SFT on the winners).
    objective: Objective = DPO()
    train: Train = Train()
    finetune: Finetune = Finetune()
    sample: Sample = Sample()
    evaluate: Evaluate = Evaluate()
    sweep: Sweep = Sweep()
    preflight: Preflight = Preflight()
    # Sections of a config that plugins declare, by their names: the settings of their stages.
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def sampling(self) -> Sampling:
        """How images are drawn: those of the pool, of validation, of samples and of evaluations."""
        return Sampling(**{field.name: getattr(self.pool, field.name) for field in dataclasses.fields(Sampling)})


def base_config() -> ConfigDict:
    """The paper's settings; locked, so that a misspelt field is an error, and every field keeps its type."""
    values = plain(Experiment())
    for name in objectives.names():
        values |= objectives.find(name)().section()
    return ConfigDict(values).lock()


def plain(experiment: Experiment) -> dict[str, Any]:
    """An experiment as plain values, as its config has them; of objectives only the one that is chosen."""
    values, chosen = dataclasses.asdict(experiment), experiment.objective
    return values.pop("extra") | values | {"objective": chosen.name(), **chosen.section()}


def typed(config: ConfigDict) -> Experiment:
    """A config as typed values; raises UserError where it lacks a setting of `base_config` or has one too many."""
    values, fields = config.to_dict(), {field.name: field.type for field in dataclasses.fields(Experiment)}
    chosen = objectives.find(values["objective"]).name() if "objective" in values else ""
    for name in objectives.names():
        settings = read(objectives.find(name), values.pop(name, {}), f"config.{name}")
        if name == chosen:
            values["objective"] = settings
    sections = plugins.named("sections", {*fields, *objectives.names()})
    for name, kind in (fields | sections).items():
        if dataclasses.is_dataclass(kind) and name in values and name != "objective":
            values[name] = read(kind, values[name], f"config.{name}")
    extra = {name: values.pop(name) for name in sections if name in values}
    return read(Experiment, values | {"extra": extra}, "the config")
