"""The stages from prompts to pairs, on a checkpoint and a scorer with random weights."""

import importlib
import json
import shutil

import numpy as np
import pytest
from etils import epath

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun, fingerprint_of
from hgdpo_jax.base_config import base_config, typed
from hgdpo_jax.data.choice import winners_and_losers
from hgdpo_jax.data.pairs import open_pairs
from hgdpo_jax.data.pool import Parts, Pool, blocks_of
from hgdpo_jax.data.prompts import load_prompts
from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.pool_statistics import read_statistics
from hgdpo_jax.experiment.drawing import drawing_settings
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.pages.pictures import read_ranked, webp_bytes
from hgdpo_jax.runner import check_stages
from hgdpo_jax.scorers.pick_score import PickScore
from hgdpo_jax.stages import generate_pool, score_pool, select_pairs
from hgdpo_jax.texts import shortened
from hgdpo_jax.weights import folders

PROMPTS = 6
STAGES = ("generate_pool", "score_pool", "select_pairs")


@pytest.fixture
def config(tiny_base, tiny_scorer):
    config = base_config()
    config.name, config.dtype = "first", "float32"
    config.weights.update(base=str(tiny_base), scorer=str(tiny_scorer))
    config.prompts.update(train="toon:train", train_count=PROMPTS)
    config.pool.update(size=3, width=16, height=24, steps=2, guidance=2.0, block=4, device_batch=2)
    config.scoring.update(framing="pad", device_batch=2)
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir in which all stages have run once, for tests that add to it under another name."""
    return epath.Path(tmp_path_factory.mktemp("workdir"))


@pytest.fixture(scope="module")
def model(tiny_base):
    return StableDiffusion.load(tiny_base)


def run_stages(config, workdir, stages=STAGES) -> dict[str, StageRun]:
    """Runs stages that are not done, as main does; returns their runs."""
    runs: dict[str, StageRun] = {}
    modules = {name: importlib.import_module(f"hgdpo_jax.stages.{name}") for name in stages}
    for hook in ("check", "rehearse"):
        check_stages(typed(config), stages, hook)
    for name, module in modules.items():
        inputs = {earlier: runs[earlier] for earlier in module.INPUTS}
        runs[name] = StageRun(name, config.name, epath.Path(workdir), module.settings(typed(config)), inputs)
        if not runs[name].is_done():
            runs[name].start()
            module.run(typed(config), runs[name])
            runs[name].finish()
    return runs


def parts(workdir, pattern="*/*/image-*.safetensors") -> dict:
    """Content and time of the parts of all pools."""
    folder = epath.Path(workdir) / "pools"
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().mtime) for path in folder.glob(pattern)}


def pairs_of(runs) -> list[dict]:
    pairs = open_pairs(runs["select_pairs"].folder)
    return [pairs[number] for number in range(len(pairs))]


@pytest.fixture
def first(config, workdir):
    """The runs of the unchanged config, made once a module."""
    return run_stages(config, workdir)


def test_winner_has_the_highest_score_and_loser_the_one_of_its_rank():
    scores = np.array([[1.0, 3.0, 2.0, 0.0], [5.0, 5.0, 4.0, 4.0]])
    assert [place.tolist() for place in winners_and_losers(scores, 0)] == [[1, 0], [3, 3]]
    assert [place.tolist() for place in winners_and_losers(scores, 4)] == [[1, 0], [3, 3]]
    assert [place.tolist() for place in winners_and_losers(scores, 2)] == [[1, 0], [2, 1]]


def test_only_images_that_a_filter_keeps_have_a_rank():
    scores = np.array([[1.0, 3.0, 2.0, 0.0]] * 3)
    kept = np.array([[True, False, True, True], [False, True, False, False], [True, True, False, False]])
    assert [place.tolist() for place in winners_and_losers(scores, 0, kept)] == [[2, -1, 1], [3, -1, 0]]
    assert [place.tolist() for place in winners_and_losers(scores, 3, kept)] == [[2, -1, -1], [3, -1, -1]]


FILTER = """
import numpy as np

def {name}(images, prompts):
    assert images.dtype == np.uint8 and len(images) == len(prompts)
    return {expression}
"""


@pytest.fixture
def write_filter(tmp_path, monkeypatch):
    """Writes a module with a filter into a folder that Python looks into; returns the filter's name for configs."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, expression):
        (tmp_path / f"{name}.py").write_text(FILTER.format(name=name, expression=expression))
        importlib.invalidate_caches()
        return f"{name}:{name}"

    return write


def test_pairs_are_chosen_among_the_images_that_the_filter_keeps(first, config, model, write_filter, capsys):
    workdir = first["score_pool"].workdir
    block = blocks_of(load_prompts("toon:train", PROMPTS), config.pool.block)[0]
    pool = Pool(workdir / "pools" / fingerprint_of(drawing_settings(typed(config))))
    means = model.decode_latents(pool.latents.read_block(block, 3).reshape(-1, 6, 4, 4)).mean(axis=(1, 2, 3))
    limit = float(np.median(means))
    config.name = "filtered"
    config.pairs.filter = write_filter("bright", f"images.mean(axis=(1, 2, 3)) > {limit}")
    runs = run_stages(config, workdir)
    expected = {}
    for block in blocks_of(load_prompts("toon:train", PROMPTS), config.pool.block):
        latents = pool.latents.read_block(block, 3)
        images = model.decode_latents(latents.reshape(-1, *latents.shape[2:]))
        kept = (images.mean(axis=(1, 2, 3)) > limit).reshape(-1, 3)
        scores = pool.scores(fingerprint_of(score_pool.settings(typed(config)))).read_block(block, 3)
        for prompt, *places in zip(block.prompts, *winners_and_losers(scores, 0, kept), strict=True):
            expected[prompt] = places
    found = {pair["prompt"]: [pair["winner_index"], pair["loser_index"]] for pair in pairs_of(runs)}
    assert found == {prompt: places for prompt, places in expected.items() if places != [-1, -1]}
    assert 0 < len(found) < PROMPTS
    assert f"{PROMPTS - len(found)} of 6 prompts left out: the filter keeps too few" in capsys.readouterr().out


def test_a_function_of_the_users_own_chooses_pairs_from_the_pool_that_is_there(
    first, config, model, write_filter, tmp_path
):
    # A copy: other tests count what the first one holds.
    workdir = shutil.copytree(first["score_pool"].workdir, tmp_path / "workdir")
    drawn = parts(workdir)
    config.name = "brightest"
    config.weights.scorer = write_filter("brightness", "images.mean(axis=(1, 2, 3))")
    pairs = pairs_of(run_stages(config, workdir))
    assert {name: part for name, part in parts(workdir).items() if name in drawn} == drawn
    for pair in pairs:
        winner, loser = model.decode_latents(np.stack([pair["winner_latents"], pair["loser_latents"]]))
        # As drawn; training sees them encoded once more.
        assert pair["winner_score"] > pair["loser_score"]
        assert abs(winner.mean() - pair["winner_score"]) < 20 and abs(loser.mean() - pair["loser_score"]) < 20
    assert len(pairs) == PROMPTS


def test_a_scorer_that_cannot_work_is_refused_before_anything_is_drawn(config, write_filter):
    config.weights.scorer = write_filter("nothing_scorer", "[]")
    with pytest.raises(UserError, match="returned an array of shape \\[0\\] for 2 images"):
        score_pool.rehearse(typed(config))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere:keep", "whose module cannot be imported"),
        ("numpy:keep_them", "numpy has no function 'keep_them'"),
        ("numbers_filter", "returned float64\\[2\\] for 2 images, expected bool\\[2\\]"),
    ],
)
def test_a_filter_that_cannot_work_is_refused_before_anything_is_drawn(config, tmp_path, write_filter, source, message):
    config.pairs.filter = write_filter(source, "np.ones(len(images))") if ":" not in source else source
    with pytest.raises(UserError, match=message):
        run_stages(config, tmp_path)
    assert parts(tmp_path) == {}


def test_scores_are_those_of_the_decoded_images(first, config, model, tiny_scorer):
    scorer = PickScore.load(tiny_scorer, framing="pad")
    config.name, config.pairs.latents = "sampled", "sampled"
    pairs = pairs_of(run_stages(config, first["score_pool"].workdir))
    assert len(pairs) == PROMPTS
    for side in ("winner", "loser"):
        images = model.decode_latents(np.stack([pair[f"{side}_latents"] for pair in pairs]))
        scores = scorer.score(images, [pair["prompt"] for pair in pairs])
        # A pixel that rounds the other way in another program moves a score by some ten thousandths of their range.
        np.testing.assert_allclose([pair[f"{side}_score"] for pair in pairs], scores, rtol=1e-4, atol=1e-3)
    assert all(pair["winner_score"] > pair["loser_score"] for pair in pairs)


def test_encoded_latents_went_through_pixels(first, config, model):
    encoded = pairs_of(first)
    config.name, config.pairs.latents = "sampled", "sampled"
    sampled = pairs_of(run_stages(config, first["score_pool"].workdir))
    expected = model.encode_images(model.decode_latents(np.stack([pair["loser_latents"] for pair in sampled])))
    np.testing.assert_allclose(np.stack([pair["loser_latents"] for pair in encoded]), expected, atol=2e-3)


def test_more_images_are_added_to_those_there_are(first, config, tmp_path):
    workdir = shutil.copytree(first["score_pool"].workdir, tmp_path / "workdir")
    before = parts(workdir) | parts(workdir, "*/scores-*/*/image-*.safetensors")
    config.name, config.pool.size = "larger", 4
    larger = run_stages(config, workdir)
    after = parts(workdir) | parts(workdir, "*/scores-*/*/image-*.safetensors")
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) * 4 // 3
    # What was added is what a pool of that size drawn at once holds.
    at_once = run_stages(config, tmp_path / "at_once")
    assert {name: content for name, (content, _) in parts(tmp_path / "at_once").items()} == {
        name: content for name, (content, _) in parts(workdir).items()
    }
    assert _bytes(at_once) == _bytes(larger)


def test_fewer_images_select_among_the_first(first, config):
    workdir = first["score_pool"].workdir
    before = parts(workdir)
    config.name, config.pool.size = "smaller", 2
    pairs = pairs_of(run_stages(config, workdir))
    assert parts(workdir) == before
    assert all({pair["winner_index"], pair["loser_index"]} == {0, 1} for pair in pairs)


def test_images_of_a_prompt_do_not_depend_on_the_other_prompts_nor_on_the_batch(first, config, tmp_path):
    prompts = [pair["prompt"] for pair in pairs_of(first)]
    (tmp_path / "prompts.txt").write_text("\n".join(reversed(prompts)))
    config.prompts.update(train=str(tmp_path / "prompts.txt"), train_count=0)
    config.pool.device_batch = config.scoring.device_batch = 3
    by_prompt = {pair["prompt"]: pair for pair in pairs_of(run_stages(config, tmp_path))}
    for pair in pairs_of(first):
        other = by_prompt[pair["prompt"]]
        assert (pair["winner_index"], pair["loser_index"]) == (other["winner_index"], other["loser_index"])
        np.testing.assert_allclose(pair["winner_latents"], other["winner_latents"], atol=5e-3)


@pytest.mark.parametrize(
    "pattern", ["*/*/image-001.safetensors", "*/scores-*/*/image-001.safetensors"], ids=["latents", "scores"]
)
def test_damaged_part_is_made_again_as_it_was(first, config, pattern, capsys):
    workdir = first["score_pool"].workdir
    before = parts(workdir, pattern)
    name = sorted(before)[0]
    path = workdir / "pools" / name
    path.write_bytes(before[name][0][:-5])
    config.name = "after " + ("scores" if "scores" in pattern else "latents")
    again = run_stages(config, workdir)
    after = parts(workdir, pattern)
    assert {name: content for name, (content, _) in after.items()} == {n: content for n, (content, _) in before.items()}
    assert {changed for changed in after if after[changed] != before[changed]} == {name}
    assert _bytes(again) == _bytes(first)
    assert f"warning: {path} was damaged" in capsys.readouterr().err


@pytest.fixture
def reads(monkeypatch):
    """The blocks whose latents are read, in their order; `stop_at`, if set, is the block where a run is stopped.

    Pictures do not count.
    """
    read, write_ranked = Parts.read, select_pairs.write_ranked

    class Reads(list):
        stop_at = None

    def write_pictures(*arguments):
        before = list(reads)
        write_ranked(*arguments)
        reads[:] = before

    def recorded(parts, block, index):
        if parts.kind == "latents":
            if block == reads.stop_at:
                raise KeyboardInterrupt
            if block not in reads:
                reads.append(block)
        return read(parts, block, index)

    monkeypatch.setattr(Parts, "read", recorded)
    monkeypatch.setattr(select_pairs, "write_ranked", write_pictures)
    reads = Reads()
    return reads


@pytest.mark.parametrize("damaged", [False, True])
def test_a_selection_that_was_stopped_goes_on_with_the_next_block(first, config, reads, damaged, capsys):
    blocks = blocks_of(load_prompts("toon:train", PROMPTS), config.pool.block)
    config.name, reads.stop_at = f"stopped {damaged}", blocks[1]
    workdir = first["score_pool"].workdir
    with pytest.raises(KeyboardInterrupt):
        run_stages(config, workdir)
    reads.clear()
    reads.stop_at = None
    (part,) = (workdir / "runs" / config.name / "select_pairs" / "parts").iterdir()
    if damaged:
        part.write_bytes(part.read_bytes()[:-5])
    assert _bytes(run_stages(config, workdir)) == _bytes(first)
    # A part that is damaged is noticed when the pairs are written.
    assert reads == ([blocks[1], blocks[0]] if damaged else [blocks[1]])
    assert (f"warning: {part} was damaged" in capsys.readouterr().err) == damaged


def test_hosts_select_a_share_of_the_blocks_each(first, config, reads, monkeypatch):
    # As the second of two hosts, and what the first one would have done afterwards.
    monkeypatch.setattr(hosts, "own", lambda items: items[1::2] or items)
    config.name = "shared"
    assert _bytes(run_stages(config, first["score_pool"].workdir)) == _bytes(first)
    assert reads == blocks_of(load_prompts("toon:train", PROMPTS), config.pool.block)[::-1]


def test_prompts_without_a_winner_are_left_out_and_counted(first, config, capsys):
    workdir = first["score_pool"].workdir
    config.name, config.scoring.framing = "equal", "crop"
    pool = Pool(workdir / "pools" / fingerprint_of(drawing_settings(typed(config))))
    # As a scorer that sees no difference would have left them.
    scores = pool.scores(fingerprint_of(score_pool.settings(typed(config))))
    for block in blocks_of(load_prompts("toon:train", PROMPTS), config.pool.block):
        for index in range(config.pool.size):
            # Only the first prompt of a block has a favourite.
            scores.write(block, index, np.array([index] + [0] * (len(block.prompts) - 1)))
    pairs = pairs_of(run_stages(config, workdir))
    assert [(pair["winner_index"], pair["loser_index"]) for pair in pairs] == [(2, 0), (2, 0)]
    assert "4 of 6 prompts left out" in capsys.readouterr().out


def write_nan(folder, copy, network, tensor):
    """Copies a checkpoint, with NaN in the first element of one tensor."""
    shutil.copytree(folder, copy)
    (path,) = (copy / network).glob("*.safetensors")
    tensors = folders.read_weights(path.parent, path.stem)
    tensors[tensor] = np.array(tensors[tensor])
    tensors[tensor].flat[0] = np.nan
    folders.write_weights(path, tensors, "float32")
    return str(copy)


@pytest.mark.parametrize(
    ("network", "tensor", "message"),
    [
        (
            "text_encoder",
            "text_model.final_layer_norm.bias",
            "the values of the text encoding of .*copy are not finite",
        ),
        ("unet", "conv_out.bias", "the values of the denoiser of .*copy are not finite"),
        # Of one colour.
        ("vae", "decoder.conv_out.bias", "the pictures that the autoencoder of .*copy decodes are not finite"),
        ("vae", "encoder.conv_out.bias", "the latents that the autoencoder of .*copy encodes are not finite"),
        ("scorer", "visual_projection.weight", "the scores of weights.scorer, .*copy, are not finite"),
    ],
)
def test_weights_with_nan_stop_the_first_stage_that_uses_them_and_are_named(
    first, config, tmp_path, network, tensor, message
):
    workdir = shutil.copytree(first["score_pool"].workdir, tmp_path / "workdir")
    config.name = "with NaN"
    config.pool.size, config.prompts.train_count = 2, 4
    which, inside = ("scorer", ".") if network == "scorer" else ("base", network)
    config.weights[which] = write_nan(epath.Path(config.weights[which]), epath.Path(tmp_path) / "copy", inside, tensor)
    with pytest.raises(UserError, match=f"of 4 .* are unusable, first .*: {message}: check the weights"):
        run_stages(config, workdir)


def test_an_image_whose_latents_are_not_finite_is_left_out_and_counted(first, config, tmp_path, capsys):
    workdir = epath.Path(shutil.copytree(first["score_pool"].workdir, tmp_path / "workdir"))
    pool = Pool(workdir / "pools" / fingerprint_of(drawing_settings(typed(config))))
    block = blocks_of(load_prompts("toon:train", PROMPTS), config.pool.block)[0]
    before = {pair["prompt"]: pair for pair in pairs_of(first)}
    prompt = block.prompts[2]
    winner, loser = (before[prompt][f"{side}_index"] for side in ("winner", "loser"))
    latents = np.array(pool.latents.read(block, winner))
    latents[2, 0, 0, 0] = np.nan
    pool.latents.write(block, winner, latents)
    pool.scores(fingerprint_of(score_pool.settings(typed(config)))).path(block, winner).unlink()
    config.name = "one image less"
    runs = run_stages(config, workdir)
    after = {pair["prompt"]: pair for pair in pairs_of(runs)}
    assert (after[prompt]["winner_index"], after[prompt]["loser_index"]) == (3 - winner - loser, loser)
    assert all(np.isfinite(pair[f"{side}_latents"]).all() for pair in after.values() for side in ("winner", "loser"))
    for other in set(before) - {prompt}:
        np.testing.assert_array_equal(after[other]["winner_latents"], before[other]["winner_latents"])
    statistics = read_statistics(runs["select_pairs"].folder)
    assert (statistics["unusable_images"], statistics["pairs"], statistics["ranks"]["prompts"]) == (1, PROMPTS, 5)
    # Strict JSON, which other programs read.
    json.dumps(statistics, allow_nan=False)
    told = f"1 of 18 images are unusable, first image {winner} of prompt {shortened(prompt)!r}"
    assert f"warning: {told}" in capsys.readouterr().err


def test_prompts_without_two_usable_images_are_left_out_where_the_limit_allows_it(
    first, config, tmp_path, write_filter, capsys
):
    workdir = shutil.copytree(first["score_pool"].workdir, tmp_path / "workdir")
    config.name = "second prompt"
    # No score for the second prompt of each block; one for the black pictures that it is tried on.
    second = "(np.arange(len(images)) == 1) & (images.max() > 0)"
    config.weights.scorer = write_filter("second", f"np.where({second}, np.nan, images.mean(axis=(1, 2, 3)))")
    with pytest.raises(
        UserError, match="4 of .* images are unusable, .* the scores of weights.scorer, second:second, are not"
    ):
        run_stages(config, workdir)
    config.pool.unusable_limit = 0.4
    runs = run_stages(config, workdir)
    prompts = load_prompts("toon:train", PROMPTS)
    assert [pair["prompt"] for pair in pairs_of(runs)] == [prompts[row] for row in (0, 2, 3, 4)]
    assert read_statistics(runs["select_pairs"].folder)["unusable_images"] == 6
    assert "2 of 6 prompts left out: too few of their images are usable" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pairs.loser_rank", 4, "pairs.loser_rank is 4, expected 2 to 3"),
        ("pairs.loser_rank", 1, "pairs.loser_rank is 1"),
        ("pairs.loser_rank", -1, "pairs.loser_rank is -1"),
        ("pool.width", 18, "does not fit this model"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_drawn(config, tmp_path, field, value, message):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        run_stages(config, tmp_path)
    assert parts(tmp_path) == {}


@pytest.mark.parametrize("stage", ["generate_pool", "train_policy", "sample_images", "evaluate_policy"])
@pytest.mark.parametrize(("field", "value"), [("pool.negative_prompt", "blurred"), ("pool.clip_skip", 1)])
def test_every_stage_that_samples_is_another_with_another_negative_prompt_or_clip_skip(config, stage, field, value):
    config.prompts.update(validation="toon:validation", test="toon:test", test_count=2)
    settings = importlib.import_module(f"hgdpo_jax.stages.{stage}").settings
    before = settings(typed(config))
    config.update_from_flattened_dict({field: value})
    assert {name: new for name, new in settings(typed(config)).items() if new != before[name]} == {field: value}


@pytest.mark.parametrize(("field", "value"), [("pool.negative_prompt", "a beard"), ("pool.clip_skip", 1)])
def test_another_negative_prompt_or_clip_skip_is_another_pool(first, config, field, value):
    workdir = first["score_pool"].workdir
    before = parts(workdir)
    config.name = field
    config.update_from_flattened_dict({field: value})
    run_stages(config, workdir, STAGES[:1])
    added = {name: content for name, (content, _) in parts(workdir).items() if name not in before}
    assert len(added) == 2 * config.pool.size, "a part for each block and image"
    assert not set(added.values()) & {content for content, _ in before.values()}


def test_pictures_of_the_first_prompts_go_from_the_winner_to_the_loser(first, config):
    pairs, ranked = pairs_of(first), read_ranked(first["select_pairs"].folder)
    assert [row.prompt for row in ranked] == [pair["prompt"] for pair in pairs]
    for row, pair in zip(ranked, pairs, strict=True):
        assert list(row.ranks) == [1, 2, 3] and row.scores == sorted(row.scores, reverse=True)
        assert (row.scores[0], row.scores[-1]) == (pair["winner_score"], pair["loser_score"])
    pool = Pool(first["score_pool"].workdir / "pools" / fingerprint_of(drawing_settings(typed(config))))
    block = blocks_of(load_prompts("toon:train", PROMPTS), config.pool.block)[0]
    latents = pool.latents.read(block, pairs[0]["winner_index"])[:1]
    expected = StableDiffusion.load(config.weights.base).decode_latents(latents)[0]
    assert ranked[0].pictures[0].read_bytes() == webp_bytes(expected, 384)


def test_finished_prompts_of_an_unfinished_pool_are_told_and_give_pairs_without_drawing(first, config, tmp_path):
    shutil.copytree(first["score_pool"].workdir / "pools", tmp_path / "pools")
    # The second block, of two prompts, lacks an image.
    second = blocks_of(load_prompts("toon:train", PROMPTS), config.pool.block)[1]
    pool = Pool(epath.Path(tmp_path) / "pools" / fingerprint_of(drawing_settings(typed(config))))
    pool.latents.path(second, 2).unlink()
    run = StageRun("generate_pool", "whole", epath.Path(tmp_path), {})
    told = "6 prompts x 3 images of 2 steps; drawn are 16 of 18 images, all of the first 4 prompts"
    assert generate_pool.plan(typed(config), run) == told
    assert generate_pool.left(typed(config), run) == pytest.approx(2 / 18)
    before = parts(tmp_path)
    config.name, config.prompts.train_count = "early", 4
    assert [pair["prompt"] for pair in pairs_of(run_stages(config, tmp_path))] == load_prompts("toon:train", 4)
    assert parts(tmp_path) == before


def test_plans_say_how_much_there_is_to_do(config, tmp_path):
    run = StageRun("any", "first", epath.Path(tmp_path), {})
    config.train.update(steps=30, batch_size=4)
    names = (*STAGES, "train_policy")
    plans = [importlib.import_module(f"hgdpo_jax.stages.{name}").plan(typed(config), run) for name in names]
    assert plans == [
        "6 prompts x 3 images of 2 steps",
        "18 images decoded and scored",
        "at most 6 pairs",
        "30 steps of 4 pairs, of at most 6: each 20 times",
    ]


def _bytes(runs) -> dict:
    """Content of the files of the pairs."""
    folder = runs["select_pairs"].folder
    names = {str(path.relative_to(folder)) for path in [*folder.glob("*"), *folder.glob("*/*")] if path.is_file()}
    assert {"statistics.json", "ranked.json"} <= names
    return {name: (folder / name).read_bytes() for name in names - {"started.json", "done.json"}}
