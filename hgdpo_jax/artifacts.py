"""Where a run's files lie, which stages are done, and whether they still are what the settings ask for.

    WORKDIR/runs/<experiment>/<stage>/    one stage's files, with started.json and done.json
    WORKDIR/pools/                        image pools and their scores, shared by experiments
    WORKDIR/rates/                        how fast they were made, for plans (experiment/rates.py)

A stage is done once its done.json exists: settings, fingerprint and the checksums of its files.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from hgdpo_jax.errors import UserError
from hgdpo_jax.files import PARTIAL_SUFFIX, cached_place, checked_copy, checksum, is_remote, write_json
from hgdpo_jax.provenance import provenance
from hgdpo_jax.texts import some
from hgdpo_jax.weights.folders import contents

STARTED, DONE, TRACEBACK, LEASE = "started.json", "done.json", "traceback.txt", "lease"

# What only serves to go on, to look on or to keep other runs away: it may change after the stage is done.
_NOT_PART_OF_THE_RESULT = ("checkpoints", "tensorboard", LEASE, STARTED, DONE, TRACEBACK)
_LONGEST_VALUE = 60
# Fingerprints and checksums within a setting.
_HASH = re.compile(r"\b(?:[0-9a-f]{64}|[0-9a-f]{16})\b")
# Files of a stage that are read at the same time.
_READERS = 16


def fingerprint_of(values: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that name these plain values; lists and tuples count as the same."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class StageRun:
    """One stage of one experiment: its settings, its folder and the earlier stages it reads."""

    name: str
    experiment: str
    workdir: epath.Path
    settings: Mapping[str, Any]
    inputs: Mapping[str, "StageRun"] = dataclasses.field(default_factory=dict)
    # That of the stage, unless one experiment runs it several times.
    folder_name: str = ""

    @property
    def folder(self) -> epath.Path:
        """Where the stage writes."""
        return self.workdir / "runs" / self.experiment / (self.folder_name or self.name)

    @property
    def pools(self) -> epath.Path:
        """Where image pools and their scores lie, one folder a fingerprint, shared by experiments."""
        return self.workdir / "pools"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names what the stage makes: its settings and its inputs' fingerprints."""
        return fingerprint_of({"stage": self.name, "settings": self.settings, "inputs": self._input_fingerprints()})

    def input(self, name: str, *files: str) -> epath.Path:
        """Folder of an earlier stage, with all its files, or those named, checked against their checksums.

        Raises UserError where that stage is not done, or a file of it is missing or altered.
        """
        self._earlier(name).verify(*files)
        return self._earlier(name).folder

    def local_input(self, name: str) -> epath.Path:
        """`input` of large files: of a folder in an object store a local copy, checked as it is made."""
        self._earlier(name).verify(copy=True)
        return cached_place(self._earlier(name).folder)

    def _earlier(self, name: str) -> "StageRun":
        if name not in self.inputs:
            raise KeyError(f"{self.name} reads {name} but does not name it in INPUTS")
        return self.inputs[name]

    def is_done(self) -> bool:
        """Whether the stage has finished, whatever its settings were."""
        return (self.folder / DONE).is_file()

    def is_started(self) -> bool:
        """Whether the stage has begun, whatever its settings were."""
        return (self.folder / STARTED).is_file() or self.is_done()

    def changes(self) -> list[str]:
        """What differs from the settings that the stage was started with, one "name old -> new" each; [] if nothing."""
        if not self.is_started():
            return []
        marker = read_marker(self.folder / (DONE if self.is_done() else STARTED))
        if marker["fingerprint"] == self.fingerprint:
            return []
        changed = differences(marker["settings"], _as_json(self.settings), marker.get("contents", {}))
        inputs = self._input_fingerprints()
        changed += [f"{name} made anew" for name in inputs if marker["inputs"].get(name) != inputs[name]]
        changed += [f"{name} is read no longer" for name in marker["inputs"] if name not in inputs]
        return changed

    def start(self) -> None:
        """Marks the stage as begun with these settings, and clears away what a killed run left half written."""
        for path in list(_files(self.folder)):
            if path.name.endswith(PARTIAL_SUFFIX):
                path.unlink()
        (self.folder / TRACEBACK).unlink(missing_ok=True)
        write_json(self.folder / STARTED, {**self._marker(), "made": provenance()})

    @property
    def made(self) -> dict[str, str]:
        """The `provenance` of the stage's last start; empty if it has not begun, or an earlier version began it."""
        path = self.folder / STARTED
        return json.loads(path.read_text()).get("made", {}) if path.is_file() else {}

    def finish(self) -> None:
        """Marks the stage as done, with the checksums of its files."""
        paths = list(_files(self.folder))
        with concurrent.futures.ThreadPoolExecutor(_READERS) as executor:
            checksums = executor.map(checksum, paths)
        files = {str(path.relative_to(self.folder)): found for path, found in zip(paths, checksums, strict=True)}
        write_json(self.folder / DONE, {**self._marker(), "files": files})

    def verify(self, *files: str, copy: bool = False) -> None:
        """Raises UserError where the stage is not done, or a file of it is missing or not what was written.

        Looks at all files of the result, or at those named. With `copy` it leaves a `cached_copy` of each.
        """
        if not self.is_done():
            raise UserError(f"{self.name} is not done in {self.folder.parent}: add it to --stage, or leave --stage out")
        written = read_marker(self.folder / DONE)["files"]

        def check(name: str) -> None:
            path, expected = self.folder / name, written.get(name, "")
            whole = path.is_file() and (checked_copy(path, expected) if copy else checksum(path) == expected)
            if not whole:
                what = "was altered or damaged" if path.is_file() else "is missing"
                raise UserError(f"{path} {what} since {self.name} was done: delete {self.folder} to make it again")

        with concurrent.futures.ThreadPoolExecutor(_READERS) as executor:
            for _ in executor.map(check, files or written):
                pass

    def _input_fingerprints(self) -> dict[str, str]:
        return {name: stage.fingerprint for name, stage in self.inputs.items()}

    def _marker(self) -> dict[str, Any]:
        settings = json.dumps(self.settings)
        return {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "settings": json.loads(settings),
            "inputs": self._input_fingerprints(),
            # For messages alone: the fingerprint above says whether something changed, this says which file.
            "contents": {found: listed for found in _HASH.findall(settings) if (listed := contents(found))},
        }


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], contents_before: Mapping[str, Any] | None = None
) -> list[str]:
    """What differs in nested settings, plain values as JSON gives them back, one "name old -> new" each.

    `contents_before` are those of fingerprints in `before`, as `weights.folders.contents` gives them.
    """
    before, now, earlier = flat(before), flat(now), contents_before or {}
    return [
        f"{name} {_shown(before, name, earlier)} -> {_shown(now, name, {})}{_changed_files(before, now, name, earlier)}"
        for name in dict.fromkeys([*now, *before])
        if _text(before, name) != _text(now, name)
    ]


def refuse_changes(runs: Sequence[StageRun]) -> None:
    """Raises UserError where a stage was started with other settings, with every change and every folder concerned."""
    changed = [(run, changes) for run in runs if (changes := run.changes())]
    if not changed:
        return
    first = changed[0][0]
    # A change upstream shows again as "made anew" in all that follows: say it once.
    described = dict.fromkeys(change for _, changes in changed for change in changes)
    settings = [change for change in described if not change.endswith(" made anew")] or list(described)
    folders = " ".join(str(run.folder) for run, _ in changed)
    remove = "gcloud storage rm -r" if is_remote(first.folder) else "rm -r"
    raise UserError(
        f"{first.name} in {first.folder.parent} was started with other settings: {', '.join(settings)}; "
        f"keep both with --config.name=NAME or --workdir=DIR, or start over with {remove} {folders}"
    )


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    """All files that belong to a stage's result, in the order of their names, unfinished ones among them."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name in _NOT_PART_OF_THE_RESULT:
            continue
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def read_marker(path: epath.Path) -> dict[str, Any]:
    """What started.json or done.json says of a stage; raises UserError where the file is damaged."""
    try:
        marker = json.loads(path.read_text())
        expected = {"fingerprint", "settings", "inputs"} | ({"files"} if path.name == DONE else set())
        if missing := expected - set(marker):
            raise ValueError(f"no {', '.join(sorted(missing))}")
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete {path.parent} to make the stage again") from error
    return marker


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as a marker gives them back: tuples become lists, and only plain values are left."""
    return json.loads(json.dumps(settings))


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _text(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else "(none)"


def _shown(settings: Mapping[str, Any], name: str, earlier: Mapping[str, Any]) -> str:
    """A setting as messages show it; of fingerprints, where it was read what they stand for, and their first digits."""
    text = _text(settings, name)

    def named(found: re.Match) -> str:
        known = earlier.get(found[0]) or contents(found[0])
        return f"{known.get('source', 'content')} ({found[0][:8]})"

    if _HASH.search(text):
        return _HASH.sub(named, text)
    return text[: _LONGEST_VALUE - 3] + "..." if len(text) > _LONGEST_VALUE else text


def _changed_files(before: Mapping[str, Any], now: Mapping[str, Any], name: str, earlier: Mapping[str, Any]) -> str:
    """The files that differ between folders whose fingerprints a setting holds, where both are known."""
    hashes = [_HASH.findall(_text(settings, name)) for settings in (before, now)]
    files: set[str] = set()
    for old, new in zip(*hashes, strict=False):
        was, is_now = ((earlier.get(old) or contents(old)).get("files", {}), contents(new).get("files", {}))
        if len(was) > 1 and len(is_now) > 1:
            files |= {file for file, _ in was.items() ^ is_now.items()}
    return f" (changed: {some(sorted(files))})" if files else ""
