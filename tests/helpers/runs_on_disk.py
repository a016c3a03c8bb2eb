"""Runs as an evaluation leaves them, with seeded random scores."""

import json

import numpy as np
from PIL import Image

PROMPTS = [f"a portrait of person {index}, <b>&_100%" for index in range(60)]
SCORES = {
    "scorer": {"kind": "pick_score", "label": "Training scorer", "description": "chose the training pairs"},
    "judge": {"kind": "pick_score", "label": "Held-out judge", "description": "never used to choose pairs"},
    "oracle": {"kind": "function", "label": "Attribute oracle", "description": "a function of yours"},
}
SETTINGS = {"pool.steps": 20, "evaluate.seeds": 2, "weights.base": "0123abcd"}
ABOUT_BASE = {
    "measures": {},
    "diversity": 0.11,
    "adapter": "",
    "scale": 0.0,
    "latent_normalization": False,
    "pictures": [],
}
COLORS = {"hue": 0.30, "saturation": 0.40, "value": 0.70, "hue_degrees": 33.0}


def make_results(name, *, lead=0.0, noise=0.3, shift=0.0, scores=SCORES, seeds=2, **changes):
    """An evaluation whose tuned model scores `lead` above the base on average, with its colours shifted by a share."""
    generator = np.random.default_rng(0)
    own = np.random.default_rng([ord(letter) for letter in name])
    shape = (len(PROMPTS), seeds)
    base = {score: generator.normal(17, 1, shape) for score in scores}
    tuned = {score: values + own.normal(lead, noise, shape) for score, values in base.items()}
    moved = {key: value * (1 + shift) for key, value in COLORS.items()}

    def model(label, values, colors, **about):
        scores_as_lists = {score: array.tolist() for score, array in values.items()}
        return {**ABOUT_BASE, "label": label, "scores": scores_as_lists, "colors": colors, **about}

    about = {"adapter": f"sha-{name}", "scale": 0.5}
    results = {
        "version": 2,
        "experiment": name,
        "settings": SETTINGS,
        "training": {"prompts.train_count": 384, "pairs": 384, "dpo.beta": 2500.0, "train.seed": 0},
        "prompts": PROMPTS,
        "scores": scores,
        "measures": {},
        "headline": list(scores)[1 if len(scores) > 1 else 0],
        "models": {"base": model("base", base, COLORS), "tuned": model("LoRA at 0.5", tuned, moved, **about)},
        "ranks": None,
        "pair_check": None,
    }
    return {**results, **changes}


def rank_statistics(growth=0.05, error=0.002, ranks=8):
    means = np.linspace(0.01, 0.01 + growth, ranks)
    return {
        "prompts": 384,
        "ranks": list(range(2, ranks + 2)),
        "mean_distance": means.tolist(),
        "deviation_distance": np.full(ranks, 0.004).tolist(),
        "mean_distance_error": np.full(ranks, error).tolist(),
        "deviation_distance_error": np.full(ranks, 0.0003).tolist(),
    }


def write_run(folder, results, sweep=None):
    """Writes the files of a run to a folder of its name; returns it."""
    path = folder / results["experiment"]
    (path / "evaluate_policy").mkdir(parents=True)
    (path / "evaluate_policy" / "results.json").write_text(json.dumps(results))
    if sweep:
        (path / "sweep_scale" / "images").mkdir(parents=True)
        (path / "sweep_scale" / "results.json").write_text(json.dumps(sweep))
        for index, name in enumerate(name for model in sweep["models"].values() for name in model["pictures"]):
            pixels = np.random.default_rng(index).integers(0, 256, (8, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(pixels).save(path / "sweep_scale" / name)
    return path


def make_sweep(name, scales=(0.0, 0.5, 1.0), rates=(0.5, 0.7, 0.6), scores=SCORES):
    """A sweep whose LoRA has these win rates at these scales; its mean scores are 16 above them."""
    base = {
        **ABOUT_BASE,
        "label": "base",
        "scores": {score: [[16.5] for _ in PROMPTS] for score in scores},
        "colors": COLORS,
    }
    models = {"base": base}
    for column, (scale, rate) in enumerate(zip(scales, rates, strict=True)):
        values = [[17.0 if row < round(rate * len(PROMPTS)) else 16.0] for row in range(len(PROMPTS))]
        models[f"tuned_{column}"] = {
            **base,
            "label": f"LoRA at {scale}",
            "scores": dict.fromkeys(scores, values),
            "diversity": 0.12 - 0.02 * scale,
            "scale": scale,
            "pictures": [f"images/{row}-{column}.png" for row in range(2)],
        }
    settings = {**SETTINGS, "sweep.prompts": 32}
    return {**make_results(name, scores=scores), "settings": settings, "training": {}, "models": models}


def write_many_runs(runs):
    """Writes runs that fill every table and figure of the paper, and one of a user's own; returns their folders."""
    leads = {
        "n2": 0.02,
        "n5": 0.1,
        "n10": 0.2,
        "n20_l2": 0.05,
        "n20_l5": 0.1,
        "n20_l10": 0.16,
        "n20_2k": 0.1,
        "n20_50k": 0.22,
        "n20_beta4x": 0.2,
        "n20_beta20x": 0.1,
        "n20_lan": 0.22,
        "sft_winners": 0.05,
    }
    counts = {"n20_2k": 8, "n20_50k": 192}
    folders = []
    for name, lead in leads.items():
        results = make_results(name, lead=lead, shift=lead / 10)
        results["training"] = results["training"] | {"prompts.train_count": counts.get(name, 384)}
        results["models"]["tuned"]["latent_normalization"] = name == "n20_lan"
        folders.append(write_run(runs, results))
    for seed in (1, 2):
        n20 = make_results(f"n20-{seed}", lead=0.25, shift=0.12 + seed / 100, ranks=rank_statistics())
        sml = make_results(f"n20_sml-{seed}", lead=0.26, shift=0.01 * seed)
        folders += [write_run(runs, n20), write_run(runs, sml, make_sweep(f"n20_sml-{seed}"))]
    folders.append(write_run(runs, make_results("mine_with_a_rather_long_name_of_many_words", lead=-0.1)))
    return folders
