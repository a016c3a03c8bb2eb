"""A pool of four 256x256 images by Stable Diffusion 1.5, scored by PickScore, float32: what a sampler step costs."""

import functools
from pathlib import Path

import numpy as np

from benchmarks import checkpoints
from benchmarks.alternating import Benchmark, Prepared, fastest, torch_ways

SIZE, IMAGES = 256, 4
STEPS, GUIDANCE = 50, 5.0


def benchmarks(folder: Path) -> list[Benchmark]:
    sources = checkpoints.stable_diffusion(folder), checkpoints.pick_score(folder)
    return [
        Benchmark(
            f"Sampler step, {IMAGES} images {SIZE}x{SIZE}, with 1/{STEPS} of decoding and scoring",
            functools.partial(prepare_ours, *sources),
            functools.partial(prepare_diffusers, *sources),
            "diffusers and transformers",
        )
    ]


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Initial latents [4, h, w, 4], text states [4, 77, 768] and those of the empty prompt."""
    random = np.random.default_rng(0)
    latents = random.normal(size=(IMAGES, SIZE // 8, SIZE // 8, 4))
    states = random.normal(size=(2, IMAGES, 77, 768))
    return tuple(array.astype(np.float32) for array in (latents, *states))


def prepare_ours(base: Path, scorer: Path, way: str) -> Prepared:
    """The two programs of the stages `generate_pool` and `score_pool`."""
    import jax

    from hgdpo_jax import PickScore, StableDiffusion
    from hgdpo_jax.experiment.scoring import make_score

    # States of prompts are given.
    model = StableDiffusion.load(str(base)).with_parameters(text={})
    scorer = PickScore.load(str(scorer))
    latents, states, empty = inputs()
    prompts = np.asarray(scorer.encode_prompts(["a woman"] * IMAGES))
    score = make_score(model, scorer)
    autoencoder = {"autoencoder": model.parameters["autoencoder"]}

    def draw():
        return model.draw_latents(latents, states, empty, steps=1, guidance=GUIDANCE, device_batch=IMAGES)

    def decode_and_score():
        jax.block_until_ready(score(autoencoder, scorer.parameters, latents, prompts))

    return [(draw, 1.0), (decode_and_score, 1 / STEPS)], "jit"


def prepare_diffusers(base: Path, scorer: Path, way: str) -> Prepared:
    import diffusers
    import torch
    import transformers

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(base, text_encoder=None)
    pipeline.set_progress_bar_config(disable=True)
    clip = transformers.CLIPModel.from_pretrained(scorer).eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(scorer)
    latents, states, empty = (torch.from_numpy(array) for array in inputs())
    latents = latents.permute(0, 3, 1, 2).contiguous()
    unet = pipeline.unet

    def make_draw(memory_format: torch.memory_format, compiled: bool):
        pipeline.unet = unet.to(memory_format=memory_format)
        if compiled:
            pipeline.unet = torch.compile(unet)

        def draw():
            return pipeline(
                prompt_embeds=states,
                negative_prompt_embeds=empty,
                latents=latents,
                num_inference_steps=1,
                guidance_scale=GUIDANCE,
                output_type="latent",
            )

        return draw

    with torch.no_grad():
        prompts = clip.get_text_features(**tokens(IMAGES)).pooler_output

    def make_decode_and_score(memory_format: torch.memory_format):
        pipeline.vae.to(memory_format=memory_format)

        def decode_and_score():
            with torch.no_grad():
                decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
                images = pipeline.image_processor.postprocess(decoded, output_type="pil")
                pixels = processor(images, return_tensors="pt")["pixel_values"]
                embeddings = clip.get_image_features(pixel_values=pixels).pooler_output
                return functional.cosine_similarity(embeddings, prompts)

        return decode_and_score

    functional = torch.nn.functional
    first, _, second = way.partition("; ")
    draw, first = fastest(torch_ways(make_draw), first)
    decode_and_score, second = fastest(
        {
            "decoder contiguous": functools.partial(make_decode_and_score, torch.contiguous_format),
            "decoder channels_last": functools.partial(make_decode_and_score, torch.channels_last),
        },
        second,
    )
    return [(draw, 1.0), (decode_and_score, 1 / STEPS)], f"{first}; {second}"


def tokens(count: int) -> dict:
    import torch

    ids = torch.full((count, 77), 599)
    ids[:, 0] = 598
    return {"input_ids": ids}
