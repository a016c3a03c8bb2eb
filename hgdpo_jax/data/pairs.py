"""Preference pairs as a TFDS data set in ArrayRecord files, written and read without TensorFlow."""

import itertools
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core import example_serializer, naming
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.core.file_adapters import FileFormat

from hgdpo_jax.errors import UserError
from hgdpo_jax.files import PARTIAL_SUFFIX, cached_folder, is_remote

_NAME, _SPLIT, _SUFFIX = "pairs", "train", FileFormat.ARRAY_RECORD.file_suffix
_INFO_FILE = "dataset_info.json"
_LATENTS = ("winner_latents", "loser_latents")
# A file of 180 MB at 704x1024.
_PAIRS_PER_FILE = 1024


def write_pairs(folder: epath.PathLike, pairs: Iterable[dict[str, Any]], latent_shape: Sequence[int]) -> int:
    """Writes pairs in their order into `folder`, which `tfds.builder_from_directory` then opens; returns how many.

    A pair has `prompt`, `winner_latents` and `loser_latents` float16 of `latent_shape`, `winner_score`, `loser_score`,
    `winner_index` and `loser_index`. Equal pairs give equal bytes. dataset_info.json comes last: a folder that has it
    is whole. Raises UserError where there are no pairs.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _INFO_FILE).unlink(missing_ok=True)
    for leftover in folder.glob(f"{_NAME}-{_SPLIT}.{_SUFFIX}-*"):
        leftover.unlink()
    # ArrayRecord writes local files only.
    remote = is_remote(folder)
    beside = epath.Path(tempfile.mkdtemp()) if remote else folder / f"{_NAME}{PARTIAL_SUFFIX}"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        count = _write(beside, pairs, _features(latent_shape))
        for path in sorted(beside.iterdir(), key=lambda path: path.name == _INFO_FILE):
            path.copy(folder / path.name) if remote else path.replace(folder / path.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return count


def open_pairs(folder: epath.PathLike) -> grain.MapDataset:
    """The pairs of a folder: dicts as in `write_pairs`, with float32 latents; raises UserError if it holds none."""
    folder = epath.Path(folder)
    if not (folder / _INFO_FILE).is_file():
        raise UserError(f"{folder} holds no pairs, expected {_INFO_FILE}: run the stage select_pairs")
    # ArrayRecord reads local files only.
    local = cached_folder(folder, [path.name for path in folder.iterdir()])
    source = tfds.builder_from_directory(str(local)).as_data_source(split=_SPLIT)
    return grain.MapDataset.source(source).map(_read)


def _read(pair: dict[str, Any]) -> dict[str, Any]:
    latents = {name: pair[name].astype(np.float32) for name in _LATENTS}
    return {**pair, "prompt": pair["prompt"].decode(), **latents}


def _features(latent_shape: Sequence[int]) -> tfds.features.FeaturesDict:
    # Without this encoding, records hold lists of numbers, and none of float16.
    latents = tfds.features.Tensor(shape=tuple(latent_shape), dtype=np.float16, encoding="bytes")
    score, index = tfds.features.Scalar(np.float32), tfds.features.Scalar(np.int32)
    return tfds.features.FeaturesDict(
        {
            "prompt": tfds.features.Text(),
            "winner_latents": latents,
            "loser_latents": latents,
            "winner_score": score,
            "loser_score": score,
            "winner_index": index,
            "loser_index": index,
        }
    )


def _write(folder: epath.Path, pairs: Iterable[dict[str, Any]], features: tfds.features.FeaturesDict) -> int:
    """Writes the data set file by file.

    TFDS's own writers keep a second copy of all pairs, to shuffle them, and serialise the features of a record in an
    order that changes between processes.
    """
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    template = naming.ShardedFileTemplate(
        data_dir=folder,
        dataset_name=_NAME,
        split=_SPLIT,
        filetype_suffix=_SUFFIX,
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
    )
    lengths: list[int] = []
    size = 0
    remaining = iter(pairs)
    for first in remaining:
        path = template.sharded_filepath(shard_index=len(lengths), num_shards=None)
        writer = ArrayRecordWriter(str(path), "group_size:1")
        lengths.append(0)
        for pair in itertools.chain([first], itertools.islice(remaining, _PAIRS_PER_FILE - 1)):
            record = serializer.get_tf_example(features.encode_example(pair)).SerializeToString(deterministic=True)
            writer.write(record)
            lengths[-1] += 1
            size += len(record)
        writer.close()
    if not lengths:
        raise UserError(
            "no prompt has a winner and a loser: all scores are equal, or too few images are usable or kept by the "
            "filter; check config.weights.scorer and config.pairs.filter"
        )
    identity = DatasetIdentity(
        name=_NAME, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name="hgdpo_jax"
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description="Preference pairs of an image pool: scaled latents of winner and loser (HG-DPO, Sec. 3.1).",
        features=features,
        disable_shuffling=True,
    )
    info.set_file_format(FileFormat.ARRAY_RECORD)
    split = tfds.core.SplitInfo(name=_SPLIT, shard_lengths=lengths, num_bytes=size, filename_template=template)
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.write_to_directory(str(folder))
    return sum(lengths)
