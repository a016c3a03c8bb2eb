"""What model cards, and metadata in their place, say of a checkpoint."""

import json
import re

from etils import epath

from hgdpo_jax.weights.sources import public_name, resolve_source
from hgdpo_jax.weights.tensor_files import load_tensors

# A card as the hub has it: YAML between dashes.
_HEAD = re.compile(r"---\n(?:(?!---).*\n)*?license: *([\"']?)(?P<license>[^\"'\n]+?)\1 *\n")


def read_license(source: epath.PathLike) -> str | None:
    """The licence that a checkpoint states: in the head of a folder's README.md, or in a single file's metadata."""
    path = resolve_source(source, weights=())
    if path.is_dir():
        card = path / "README.md"
        # A card is prose, in any encoding.
        head = _HEAD.match(card.read_bytes().decode("utf-8", "replace")) if card.is_file() else None
        return head["license"] if head else None
    # The name that the trainers of the web interfaces agreed on.
    return load_tensors(path, foreign=True)[1].get("modelspec.license") if path.suffix == ".safetensors" else None


def write_card(folder: epath.PathLike, base: str, license: str | None) -> None:
    """Writes a model card that names the base that a checkpoint was fine-tuned from, and the licence it states."""
    head = [f"base_model: {json.dumps(public_name(base))}", "pipeline_tag: text-to-image"]
    if license is not None:
        head.insert(0, f"license: {json.dumps(license)}")
    (epath.Path(folder) / "README.md").write_text("\n".join(["---", *head, "---", ""]))
