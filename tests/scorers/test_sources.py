import dataclasses
import gc
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hgdpo_jax import Aesthetic, CLIPScore, PickScore
from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.measures import headline, load_scores, score_sources
from hgdpo_jax.models.score_head import ScoreHead
from hgdpo_jax.scorers.sources import ScorerSource
from hgdpo_jax.toon import captions
from hgdpo_jax.toon.oracle import AttributeOracle


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own with scorers, good and bad."""
    (tmp_path / "own_scorers.py").write_text(
        "def brightness(images, prompts):\n    return images.mean(axis=(1, 2, 3)) + [len(p) for p in prompts]\n"
        "def one_number(images, prompts):\n    return 1.0\n"
        "def nothing(images, prompts):\n    return [float('nan')] * len(images)\n"
        "def crash(images, prompts):\n    return prompts[7]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("own_scorers", None)


@pytest.mark.parametrize(
    ("text", "name", "kind", "source", "options"),
    [
        ("studio/scorer", "pick_score", "pick_score", "studio/scorer", {"processor": ""}),
        ("pick_score:a,processor=b", "pick_score", "pick_score", "a", {"processor": "b"}),
        ("judge=toon-judge", "judge", "pick_score", "toon-judge", {"processor": ""}),
        ("my_scorers.people:count", "count", "function", "my_scorers.people:count", {}),
        (
            "hps_v2:xswu/HPSv2/HPS_v2.1_compressed.pt",
            "hps_v2",
            "hps_v2",
            "xswu/HPSv2/HPS_v2.1_compressed.pt",
            {"tokenizer": "openai/clip-vit-large-patch14"},
        ),
        ("beauty=aesthetic:head.pth,clip=clip", "beauty", "aesthetic", "head.pth", {"clip": "clip"}),
        ("gs://bucket/scorer", "pick_score", "pick_score", "gs://bucket/scorer", {"processor": ""}),
    ],
)
def test_a_text_names_a_scorer(text, name, kind, source, options):
    found = ScorerSource.parse(text)
    assert (found.name, found.kind, found.source, dict(found.options)) == (name, kind, source, options)


def test_a_fingerprint_follows_what_decides_the_scores_and_not_the_name(tiny_scorer, tiny_judge, own):
    def fingerprint(text):
        return ScorerSource.parse(text).fingerprint()

    assert fingerprint(f"a={tiny_scorer}") == fingerprint(str(tiny_scorer)) != fingerprint(str(tiny_judge))
    assert fingerprint(str(tiny_scorer)) != fingerprint(f"{tiny_scorer},processor={tiny_judge}")
    assert fingerprint("own_scorers:brightness") != fingerprint("own_scorers:crash")


@pytest.mark.parametrize("source", ["tiny_scorer", "own_scorers:brightness"])
def test_one_prompt_or_one_image_counts_for_all_of_the_other(source, tiny_scorer, own):
    scorer = ScorerSource.parse(str(tiny_scorer) if source == "tiny_scorer" else source).load()
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    prompts = ["a man", "a tall woman"]
    np.testing.assert_array_equal(scorer.score(images, "a man"), scorer.score(images, ["a man"] * 3))
    np.testing.assert_array_equal(scorer.score(images[0], prompts), scorer.score(images[[0, 0]], prompts))
    with pytest.raises(UserError, match="3 images, 2 prompts are given"):
        scorer.score(images, prompts)
    with pytest.raises(UserError, match="float64.*expected uint8"):
        scorer.score(images / 255, "a man")


def test_a_function_of_the_users_own_scores_beside_a_model(tiny_scorer, own):
    scores = load_scores(score_sources(str(tiny_scorer), ["own_scorers:brightness"]), "float32", "crop", 2)
    images, prompts = np.full((2, 32, 32, 3), 9, np.uint8), ["a man", "a woman"]
    assert headline(list(scores)) == "brightness"
    np.testing.assert_array_equal(scores["brightness"].function(images, prompts), np.float32([14, 16]))
    assert scores["scorer"].function(images, prompts).shape == (2,)


@pytest.mark.parametrize(
    ("function", "words"),
    [("one_number", r"shape \[\] for 2 images"), ("nothing", r"returned \[nan, nan\]"), ("crash", "IndexError")],
)
def test_a_function_that_returns_no_number_for_each_image_is_refused(function, words, own):
    scorer = ScorerSource.parse(f"own_scorers:{function}").load()
    with pytest.raises(UserError, match=words):
        scorer.try_out("a", 8, 8)


def pick_score(folder):
    return PickScore.load(str(folder))


def aesthetic(folder):
    clip = CLIPScore.load(str(folder))
    shapes = jax.eval_shape(ScoreHead().init, jax.random.key(0), jnp.zeros((1, 16)))["params"]
    head = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    fields = {field.name: getattr(clip, field.name) for field in dataclasses.fields(clip)}
    return Aesthetic(**fields | {"parameters": {"clip": clip.parameters, "head": head}})


@pytest.mark.parametrize(
    "load", [pick_score, aesthetic, lambda _: AttributeOracle()], ids=["clip", "aesthetic", "oracle"]
)
def test_a_used_scorer_frees_its_weights_without_a_garbage_collection(tiny_scorer, load):
    images, prompts = np.zeros((2, 64, 48, 3), np.uint8), captions.prompts("test", 2)
    gc.disable()
    try:
        scorer = load(tiny_scorer)
        if isinstance(scorer, AttributeOracle):
            scorer(images, prompts)
        else:
            scorer.score(images, prompts)
            scorer.embed_images(images)
        weights = [weakref.ref(leaf) for leaf in jax.tree.leaves(scorer.parameters)]
        del scorer
        assert weights and not [leaf() for leaf in weights if leaf() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (["a=b", "a=c"], "put NAME= before one of them"),
        (["pick_score:a,procesor=b"], "option procesor, expected processor"),
        ([""], "names no scorer"),
    ],
)
def test_texts_that_name_no_scorer_are_refused_in_one_line(others, words):
    with pytest.raises(UserError, match=words):
        score_sources("x/y", others)
