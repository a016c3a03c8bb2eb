import jax
import numpy as np

from hgdpo_jax.random_keys import image_key, image_noise, training_key

PROMPTS = ["a woman with red hair", "ein Mann mit Bart", "", "a woman with red hair", "人", "a man"]
INDICES = np.array([0, 1, 2, 3, 19, 0])
SHAPE = (16, 12, 4)


def test_noise_of_an_image_depends_neither_on_order_nor_on_size_of_the_batch():
    noise = np.asarray(image_noise(7, PROMPTS, INDICES, SHAPE))
    order = np.array([4, 2, 0, 5, 1, 3])
    shuffled = image_noise(7, [PROMPTS[i] for i in order], INDICES[order], SHAPE)
    np.testing.assert_array_equal(shuffled, noise[order])
    for row, prompt in enumerate(PROMPTS):
        np.testing.assert_array_equal(image_noise(7, [prompt], INDICES[row : row + 1], SHAPE)[0], noise[row])
    np.testing.assert_array_equal(image_noise(7, PROMPTS[:3], INDICES[:3], SHAPE), noise[:3])


def test_noise_is_drawn_from_the_images_key():
    noise = image_noise(7, PROMPTS, INDICES, SHAPE)
    for row, (prompt, index) in enumerate(zip(PROMPTS, INDICES, strict=True)):
        np.testing.assert_array_equal(jax.random.normal(image_key(7, prompt, index), SHAPE), noise[row])


def test_noise_differs_between_prompts_images_and_seeds():
    noise = np.asarray(image_noise(7, PROMPTS, INDICES, SHAPE)).reshape(len(PROMPTS), -1)
    other_seed = np.asarray(image_noise(8, PROMPTS, INDICES, SHAPE)).reshape(len(PROMPTS), -1)
    correlation = np.corrcoef(np.concatenate([noise, other_seed]))
    # 768 independent values correlate by 0.036 on average; 0.2 is beyond five deviations.
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.2


def test_noise_is_standard_normal():
    noise = np.asarray(image_noise(0, ["a man"] * 64, np.arange(64), SHAPE))
    # 49,152 values: standard errors 0.0045 and 0.0032, five of each.
    assert abs(noise.mean()) < 0.023 and abs(noise.std() - 1) < 0.016


def test_keys_are_those_of_earlier_versions():
    # Other keys would be other pools under the same fingerprint.
    assert jax.random.key_data(image_key(1, "a man", 2)).tolist() == [1601224097, 1223831162]
    assert jax.random.key_data(training_key(1, 2)).tolist() == [757326791, 1623925639]


def test_training_keys_meet_no_other_key():
    keys = [
        training_key(0, 0),
        training_key(0, 1),
        training_key(1, 0),
        image_key(0, "", 0),
        image_key(0, "training", 0),
    ]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)
