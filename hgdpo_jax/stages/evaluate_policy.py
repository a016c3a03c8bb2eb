"""Compares base and tuned model on the held-out prompts, from the same noise, and writes the report."""

import numpy as np
from etils import epath

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.data.prompts import load_prompts
from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.color_shift import HSVSums, shift_between
from hgdpo_jax.evaluation.figures import ImagePair
from hgdpo_jax.evaluation.report import ReportData, write_report
from hgdpo_jax.evaluation.win_rate import compare_scores
from hgdpo_jax.run_log import read_scalars
from hgdpo_jax.stages.check_pairs import read_check, score_fingerprints, scores_of
from hgdpo_jax.stages.generate_pool import base_fingerprints
from hgdpo_jax.stages.sample_images import draw, drawing_settings

INPUTS = ("check_pairs", "train_policy", "export_adapter")
EVERY_HOST = True
_EXAMPLES = 24
_TOON_ATTRIBUTION = (
    "Toon portraits: remix of “ToonHead” (https://www.figma.com/community/file/1589627891082866389) by Johan Melin, "
    "licensed under CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/); what was changed: "
    "hgdpo_jax/toon/ATTRIBUTION.md."
)


def settings(config) -> dict:
    return {
        **base_fingerprints(config),
        **score_fingerprints(config),
        "prompts": _prompts(config),
        "evaluate.seeds": config.evaluate.seeds,
        **drawing_settings(config),
    }


def plan(config, run: StageRun) -> str:
    return f"{len(_prompts(config)):,} prompts x {config.evaluate.seeds} images, base and tuned"


def check(config) -> None:
    if config.evaluate.seeds < 1:
        raise UserError(f"evaluate.seeds is {config.evaluate.seeds}, expected at least 1 image a prompt")


def run(config, run: StageRun) -> None:
    prompts, seeds = _prompts(config), config.evaluate.seeds
    scores = scores_of(config)
    # Base and tuned, by prompt and image.
    values = {name: np.zeros((2, len(prompts), seeds)) for name in scores}
    colors = HSVSums(), HSVSums()
    examples = []
    for drawn in draw(config, run.input("export_adapter"), prompts, seeds, "evaluate_policy"):
        if not hosts.is_first():
            continue
        texts = [prompts[i] for i in drawn.prompts]
        for side, images in enumerate((drawn.base, drawn.tuned)):
            colors[side].add(images)
            for name, score in scores.items():
                values[name][side, drawn.prompts, drawn.seeds] = score.function(images, texts)
        for row in np.flatnonzero((drawn.seeds == 0) & (drawn.prompts < _EXAMPLES)):
            base, tuned = (
                {name: float(table[side, drawn.prompts[row], 0]) for name, table in values.items()} for side in (0, 1)
            )
            # A copy, so that the rest of the chunk can go.
            examples.append(ImagePair(texts[row], drawn.base[row].copy(), drawn.tuned[row].copy(), base, tuned))

    if not hosts.is_first():
        return
    pair_check, best_pairs, worst_pairs = read_check(run.input("check_pairs"))
    report = ReportData(
        title=f"{run.experiment}: base against tuned",
        subtitle=(
            f"{len(prompts):,} held-out prompts, {seeds} images each, LoRA at {config.adapter.scale:g}"
            + (", latent adaptive normalisation" if config.sample.latent_normalization else "")
        ),
        headline="judge" if "judge" in scores else "scorer",
        scores={
            name: compare_scores(tuned, base, label=scores[name].label, description=scores[name].description)
            for name, (base, tuned) in values.items()
        },
        color_shift=shift_between(colors[0].means(), colors[1].means()),
        examples=examples,
        training=read_scalars(run.input("train_policy")),
        pair_check=pair_check,
        best_pairs=best_pairs,
        worst_pairs=worst_pairs,
        oracle_accuracy=scores["oracle"].accuracy if "oracle" in scores else None,
        settings=config.to_dict(),
        attribution=_TOON_ATTRIBUTION if config.prompts.test.startswith("toon:") else "",
    )
    write_report(epath.Path(run.folder) / "report", report)
    print(_key_figures(report), flush=True)


def _prompts(config) -> list[str]:
    return load_prompts(config.prompts.test, config.prompts.test_count)


def _key_figures(report: ReportData) -> str:
    """What one wants to know first, in a few lines."""
    lines = [f"tuned over base, {report.subtitle}"]
    for score in report.scores.values():
        rate = score.win_rate
        lines.append(
            f"  {score.label.lower():16}  win rate {100 * rate.rate:5.1f} % "
            f"(95 % interval {100 * rate.low:.1f} to {100 * rate.high:.1f}), image by image "
            f"{100 * score.per_image_win_rate:.1f} %, mean {score.base_mean:.2f} -> {score.tuned_mean:.2f}"
        )
    shift = report.color_shift
    lines.append(
        f"  colour shift      hue {shift.signed_hue:+.2f} %, saturation {shift.signed_saturation:+.2f} %, "
        f"value {shift.signed_value:+.2f} %; mean hue {shift.hue_degrees:+.1f} degrees"
    )
    if report.pair_check:
        lines += [f"  {line}" for line in str(report.pair_check).splitlines()]
    return "\n".join(lines)
