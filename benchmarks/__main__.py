"""Times this project beside PyTorch's libraries on this machine, in turn, and prints the tables of the README.

python -m benchmarks                               # all, about 40 minutes on two cores
python -m benchmarks --only=unet,weight_files      # some; the tables keep what was timed before
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.alternating import alternate, summary
from hgdpo_jax.compilation import usable_cores
from hgdpo_jax.files import write_json

COMPARISONS = ("unet", "preference_step", "sampling", "weight_files")
NAMES = (*COMPARISONS, "toon_demo")
RESULTS, DEMO = (Path(__file__).parent / name for name in ("results.json", "toon_demo.json"))


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default=",".join(NAMES), help=f"some of {', '.join(NAMES)}, comma-separated")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each side (default: 5)")
    parser.add_argument("--folder", type=Path, default=Path("workdir/benchmarks"), help="for random weights, 13 GB")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(NAMES):
        parser.error(f"there is no {', '.join(sorted(unknown))}: --only takes some of {', '.join(NAMES)}")
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}, expected 1 or more")
    # The hub knows nothing of random weights.
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in chosen:
        module = importlib.import_module(f"benchmarks.{name}")
        if name == "toon_demo":
            write_json(DEMO, module.measure(options.folder))
            continue
        for benchmark in module.benchmarks(options.folder):
            print(f"{benchmark.name}: this project, then {benchmark.peer_name}", flush=True)
            found = summary(*alternate(benchmark, options.rounds, options.folder.resolve())) | {
                "peer": benchmark.peer_name
            }
            print(f"  {found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})", flush=True)
            # One by one: what is timed should outlast a stop.
            write_json(RESULTS, _read(RESULTS) | {benchmark.name: found})
    print(f"\n{_machine()}\n\n{_comparisons(_read(RESULTS))}\n\n{_demo(_read(DEMO))}", flush=True)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _machine() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    processor = found[1] if found else "a processor without a name"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "torch", "diffusers", "peft"))
    return f"{usable_cores()} cores of {processor}; {versions}"


def _comparisons(results: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        f"| {name} | {found['peer']} ({found['peer_way']}) | {found['ratio']:.2f} ({found['low']:.2f} to "
        f"{found['high']:.2f}) | {found['ours_seconds']:.3g} s | {found['peer_seconds']:.3g} s "
        f"| {found['ours_peak_bytes'] / 1e9:.2f} GB | {found['peer_peak_bytes'] / 1e9:.2f} GB |"
        for name, found in results.items()
    ]
    head = "| | Beside | Times as fast | This project | Peer | Memory | Peer's memory |\n|---|---|---|---|---|---|---|"
    return "\n".join([head, *rows])


def _demo(demo: Mapping[str, Any]) -> str:
    stages = demo.get("stages", [])
    rows = [
        f"| {stage['name']} | {stage['seconds']:.0f} s | {stage['seconds'] / demo['seconds']:.0%} "
        f"| {stage['in_programs'] / stage['seconds']:.0%} |"
        for stage in stages
    ]
    if stages:
        rows.append(f"| all | {demo['seconds']:.0f} s | 100% | {demo['share_in_programs']:.0%} |")
        rows.append(f"\nThe first start, which compiles everything: {demo['first_seconds']:.0f} s")
    return "\n".join(["| Stage of the demo | Time | Share | In compiled programs |\n|---|---|---|---|", *rows])


if __name__ == "__main__":
    main()
