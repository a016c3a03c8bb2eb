"""Every setting of an experiment once, with its meaning, unit and source; the values are the paper's (SD1.5).

An experiment, a file in configs/, is `base_config()` and what differs from it. Section numbers are those of HG-DPO
(arXiv 2405.20216); "not stated" means that the paper does not say and this project chose.
"""

from ml_collections import ConfigDict


def base_config() -> ConfigDict:
    """The paper's settings; locked, so that a misspelt field is an error, and every field keeps its type."""
    config = ConfigDict()

    # Name of the experiment, its folder in WORKDIR/runs; empty: the name of the config file.
    config.name = ""
    # All random numbers derive from it: pool images, training noise, initial LoRA.
    config.seed = 0
    # Compute type of the frozen models: "bfloat16" or "float32". LoRA, optimiser and losses are always float32.
    # "float32" is full precision on GPUs and TPUs too, at a small share of their speed.
    config.dtype = "bfloat16"
    # Attention of the U-Net to many tokens: "auto" is cuDNN's on NVIDIA GPUs and JAX's splash kernels on TPUs, where
    # they can be, else block by block; "chunked" is block by block everywhere, for GPUs older than Ampere and TPUs
    # older than v4. It changes speed, memory and rounding.
    config.attention = "auto"
    # Devices that the CPU of a machine without accelerator is divided into; 0: one a core.
    config.cpu_devices = 0
    # Stages to run, in this order.
    config.stages = (
        "generate_pool",
        "score_pool",
        "select_pairs",
        "check_pairs",
        "train_policy",
        "export_adapter",
        "sample_images",
        "evaluate_policy",
    )

    # Checkpoints: a folder in the diffusers (base, vae) or transformers (scorer) layout, a single file (base, vae), a
    # repository of the Hugging Face hub (owner/name or owner/name@revision), or a name that a
    # plugin gives its weights.
    config.weights = weights = ConfigDict()
    # The model that draws the pool, is the reference, and carries the LoRA (Sec. 2).
    weights.base = ""
    # Folder or repository with CLIP's vocab.json and merges.txt; empty: the base's own. A single file has none.
    weights.tokenizer = ""
    # VAE in place of the base's, a diffusers folder or a single file; empty: the base's own.
    weights.vae = ""
    # The preference model that chooses the pairs: PickScore (Sec. 3.1). A folder or repository, with processor=SOURCE
    # where its preprocessor_config.json and tokenizer lie elsewhere, as for PickScore_v1:
    #     yuvalkirstain/PickScore_v1,processor=laion/CLIP-ViT-H-14-laion2B-s32B-b79K
    # or another kind of scorer, or a function of yours: hgdpo_jax/scorers/sources.py says how each is written.
    weights.scorer = ""

    # Each one of
    #     people.txt                                  a text file with one prompt a line,
    #     people.json                                 a JSON array of prompts,
    #     people.csv:caption                          a column of a .csv, .tsv, .json, .jsonl or .parquet file,
    #     PartiPrompts.tsv:Prompt:Category=People     of its rows with this value in another column,
    #     PLUGIN:NAME                                 prompts of a plugin (hgdpo_jax/plugins.py).
    # A file may be one of a data set on the hub, hf://datasets/OWNER/NAME/FILE, or several, with * in its name.
    # Empty prompts and repetitions do not count.
    config.prompts = prompts = ConfigDict()
    # Prompts of the pool (Sec. 3.1).
    prompts.train = ""
    # Prompts that choose the best checkpoint during training (not stated).
    prompts.validation = ""
    # Prompts of the evaluation; the paper's are the 177 PartiPrompts of category People (Sec. 4).
    prompts.test = ""
    # How many of each are used, counted from the first; 0: all.
    prompts.train_count = 0
    prompts.validation_count = 64
    prompts.test_count = 0

    # Drawing images of the base model (Sec. 3.1, Eq. 4); what decides the images, but for their number, also holds for
    # validation, samples and evaluation.
    config.pool = pool = ConfigDict()
    # Images a prompt, N. Not part of the pool's fingerprint: more images are added to those there are.
    pool.size = 20
    # DPM-Solver++ steps.
    pool.steps = 50
    # Scale of classifier-free guidance.
    pool.guidance = 5.0
    # What guidance leads away from, the same text for all images; empty: the empty prompt (not stated).
    pool.negative_prompt = ""
    # Last layers of the text encoder that are skipped for prompts, while sampling and in training, counted as in
    # diffusers: what other programs call "clip skip 2" is 1. Negative prompts see all layers, as there (not stated).
    pool.clip_skip = 0
    # Pixels.
    pool.width = 704
    pool.height = 1024
    # Prompts a file of the pool: what is lost at most when the run is killed, times one image.
    pool.block = 64
    # Images drawn at once on one device; changes speed and memory, not the images.
    pool.device_batch = 8
    # Share of a stage's images that may be unusable, because their latents, pixels or scores are not finite, before the
    # stage stops. They are left out and counted; a few of them never stop a stage. Changes no results.
    pool.unusable_limit = 0.01

    config.scoring = scoring = ConfigDict()
    # How an image becomes the square that a scorer sees: "crop" its centre (PickScore's own way, and that of most;
    # it loses 31 % of a 704x1024 portrait), or "pad" it.
    scoring.framing = "crop"
    # Images scored, and encoded by the VAE, at once on one device.
    scoring.device_batch = 16

    # Choosing winner and loser (Sec. 3.1, Eq. 6).
    config.pairs = pairs = ConfigDict()
    # The loser is the image with the l-th highest score, 2 to pool.size (ablation N-20-L-l); 0: the lowest.
    pairs.loser_rank = 0
    # A function of yours, "module:function", that gets images uint8 [n, height, width, 3] and their prompts and returns
    # bool [n]: only images with True become winner or loser. At the start it is tried on black pictures. Empty: all do
    # (not stated).
    pairs.filter = ""
    # What training sees: "encoded" decodes an image and encodes it with the VAE (the paper's way), "sampled" takes the
    # sampler's latents.
    pairs.latents = "encoded"

    # The LoRA on to_q, to_k, to_v and to_out of every attention (Sec. 3.2).
    config.adapter = adapter = ConfigDict()
    # Rank; alpha equals it.
    adapter.rank = 8
    # Weight of the LoRA when sampling, 0 to 1 (Sec. 3.2: 0.5; 0.8 gives the best poses and less diversity).
    adapter.scale = 0.5

    config.loss = loss = ConfigDict()
    # "dpo" learns from winner and loser by Diffusion-DPO and statistic matching (Eq. 9); "sft" predicts the noise in
    # the winner and never sees the loser (Table 1: SFT on the winners).
    loss.kind = "dpo"
    # Regularisation beta of Diffusion-DPO (Eq. 3) on errors averaged over the latent.
    loss.beta = 2500.0
    # Weight lambda_stat of statistic matching (Eq. 8 and 9); 0: DPO alone.
    loss.statistic_weight = 10000.0
    # Noise steps that statistic matching goes back: 1 as the paper writes, 20 as one of 50 sampler steps.
    loss.statistic_stride = 1

    # Training the LoRA (Sec. 3.2).
    config.train = train = ConfigDict()
    # Added to `seed` for what training draws, noise and order of the pairs and the initial LoRA: with another one an
    # experiment is trained anew on the same pool and evaluated on the same noise.
    train.seed = 0
    # Optimiser steps (not stated; here 100,000 pairs once).
    train.steps = 6250
    # Pairs a step over all devices.
    train.batch_size = 16
    # Pairs at once on one device; the rest of a batch is accumulated.
    train.device_batch = 4
    # Neighbouring devices that share one copy of the frozen base. 1: each has its own; 0: all of a host share one.
    train.fsdp = 1
    # What the gradient makes again instead of keeping it: "activations" makes norms, activations and gates again, which
    # costs no matrix product; "blocks" all within a block, a third more work; "none" nothing. Changes no results.
    train.remat = "activations"
    # Peak learning rate of AdamW (0.9, 0.999).
    train.learning_rate = 1e-5
    # Steps of linear warm-up (not stated).
    train.warmup_steps = 100
    # Decoupled weight decay (not stated; the paper says Adam).
    train.weight_decay = 0.0
    # Bits of each of Adam's two moments: 8 is the paper's, as in bitsandbytes. Here 32: 8 saves 8 MB of 13 for SD1.5's
    # LoRA, and is coarse for elements whose gradients are a thousand times smaller than others in their block of 256.
    train.adam_bits = 32
    # Gradients are scaled down to this norm; 0: never (not stated).
    train.max_gradient_norm = 1.0
    # Steps between evaluations on the validation prompts; the best of them is exported.
    train.evaluate_every = 250
    # Steps between checkpoints: what is lost at most when the run is killed.
    train.checkpoint_every = 50

    # Fine-tuning the whole U-Net of the base on captioned images (Sec. 2), which configs/finetune_base.py does. Images
    # become pool.width x pool.height pixels, as large as those that are drawn later.
    config.finetune = finetune = ConfigDict()
    # Folder of images with metadata.jsonl, .csv or .parquet; its column file_name says where each lies in the folder.
    finetune.images = ""
    # The column with the captions; the paper's are LLaVA's.
    finetune.caption_column = "text"
    # Optimiser steps (not stated; here the paper's 322,461 images once).
    finetune.steps = 10_000
    # Images a step over all devices (not stated).
    finetune.batch_size = 32
    # Images at once on one device; the rest of a batch is accumulated. 4 of 704x1024 pixels take 24 GB on an A100.
    finetune.device_batch = 4
    # Neighbouring devices that share one copy of weights and optimiser state. 1: each has its own; 0: all of a host
    # share one.
    finetune.fsdp = 0
    # As train.remat.
    finetune.remat = "activations"
    # Peak learning rate of AdamW (0.9, 0.999) (not stated; as usual for Stable Diffusion 1.5).
    finetune.learning_rate = 1e-5
    # Steps of linear warm-up (not stated).
    finetune.warmup_steps = 500
    # Decoupled weight decay (not stated; that of the usual AdamW).
    finetune.weight_decay = 0.01
    # Bits of each of Adam's two moments, 8 or 32 (the paper's LoRA has 8): 32 take 5.1 GB more.
    finetune.adam_bits = 8
    # Gradients are scaled down to this norm; 0: never (not stated).
    finetune.max_gradient_norm = 1.0
    # Share of captions replaced by the empty prompt, which guidance needs (not stated; that of Stable Diffusion 1.5).
    finetune.empty_captions = 0.1
    # Steps between samples of a few captions, for the eye.
    finetune.evaluate_every = 1000
    # Steps between checkpoints, of 5.2 GB each: what is lost at most when the run is killed.
    finetune.checkpoint_every = 250

    # Drawing images of base and tuned model for the eye.
    config.sample = sample = ConfigDict()
    # Prompts; empty: the test prompts.
    sample.prompts = ()
    # Images a prompt.
    sample.seeds = 4
    # Latent adaptive normalisation while sampling (Eq. 7); doubles the cost.
    sample.latent_normalization = False

    # Models against each other on the test prompts, from the same noise (Sec. 4).
    config.evaluate = evaluate = ConfigDict()
    # The first is what all others are compared with: "base"; "tuned", with this experiment's LoRA at adapter.scale;
    # another LoRA file; "folder:PATH", images that are there already (metadata.jsonl gives "file_name" and, as "text",
    # the prompt). "@0.8" behind a LoRA gives its weight, "+lan" samples with latent adaptive normalisation, "NAME="
    # before it names it: ("base", "tuned", "tuned@0.8", "tuned+lan", "old=loras/old.safetensors@0.5").
    evaluate.models = ("base", "tuned")
    # Scores besides the training scorer's, written as weights.scorer, none of which chooses pairs; the first one leads
    # the report. The paper's are HPSv2, ImageReward, Aesthetic and CLIP score.
    evaluate.scorers = ()
    # Images a prompt and model; their scores are averaged within the prompt.
    evaluate.seeds = 4

    # How strong the LoRA should be (Fig. 8): `sweep_scale` draws the first test prompts at each of these weights.
    config.sweep = sweep = ConfigDict()
    sweep.scales = (0.0, 0.25, 0.5, 0.75, 1.0)
    # Prompts, counted from the first; each has `evaluate.seeds` images.
    sweep.prompts = 32

    # Compiling this experiment's programs for accelerators that are not there.
    config.preflight = preflight = ConfigDict()
    # Devices, NAME:COUNT: a100-40gb, a100-80gb, h100, h200, l4, rtx-4090, v4, v5e, v5p or v6e.
    preflight.target = "a100-80gb:8"
    # Programs to compile, named as the stages that run them; empty: all of the config's stages.
    preflight.programs = ()
    # Whether to look for the largest batches that fit, by compiling twice or more again.
    preflight.largest_batch = True
    # Shares of the roofline's speed that programs may reach; each gives an estimate of the hours. Empty: what
    # `python -m benchmarks.accelerator` measured on this kind of device, or 0.3 and 0.5 (assumed) where it did not run.
    preflight.efficiencies = ()
    # What one device costs an hour, in any currency; 0: no price.
    preflight.price_per_hour = 0.0

    return config.lock()
