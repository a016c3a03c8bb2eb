"""Disturbs runs of the smallest experiment in every way, and prints a table of what hit, and how the run ended.

    python tests/faults.py [--kills=50] [--processes=1,2] [--faults=kill,disk,read-only,damage] [--folder=DIR]

Each run must end, after being started again as often as needed, with the pairs and the LoRA files of an undisturbed run
of as many processes, byte by byte; exit status 1 if one does not. What a message says is to be deleted is deleted.
"""

import argparse
import collections
import contextlib
import dataclasses
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "toon_smoke"
RUN = Path("runs") / NAME
FAULTS = ("kill", "disk", "read-only", "damage")
START = "start"
KILLS_A_RUN = 10
# Others than the one that was killed are given this long to end by themselves.
GRACE_SECONDS = 60
LONGEST_SECONDS = 3600
COLUMNS = {"procs": 5, "run": 4, "fault": 27, "hit": 50, "at s": 6, "pairs": 6, "lora": 6, "took s": 6, "ended": 0}

_STAGE_LINE = re.compile(r"(\w+) +(running:|done in|done before)")
_SAID = re.compile(r"(?:warning|error): ")
_TO_DELETE = re.compile(r"(?:delete|rm -r) ((?:/\S+ ?)+)")


@dataclasses.dataclass
class Row:
    """One fault: what it hit, how many seconds after the start, and how the processes ended."""

    fault: str
    hit: str
    second: float
    ended: str


class Attempt:
    """One start of the experiment in a workdir, by one process or several that know of each other."""

    def __init__(self, workdir: Path, processes: int, prefix: Sequence[str] = ()):
        self.lines: list[str] = []
        self.stage = START
        # Seconds after the start at which a stage began, and ended.
        self.began: dict[str, float] = {START: 0.0}
        self.ended: dict[str, float] = {}
        self._begin = time.monotonic()
        self._changed = threading.Condition()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [*prefix, sys.executable, "-m", "hgdpo_jax.main", f"--config=configs/{NAME}.py"]
        command += [f"--workdir={workdir}"]
        several = [f"--coordinator_address={address}", f"--num_processes={processes}"]
        self._processes = [
            subprocess.Popen(
                [*command, *([*several, f"--process_id={number}"] if processes > 1 else [])],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            )
            for number in range(processes)
        ]
        self._readers = [threading.Thread(target=self._read, args=[process]) for process in self._processes]
        for reader in self._readers:
            reader.start()

    def _read(self, process: subprocess.Popen) -> None:
        for line in process.stdout or ():
            with self._changed:
                self.lines.append(line.rstrip())
                if found := _STAGE_LINE.match(line):
                    stage, what = found.groups()
                    if what == "running:":
                        self.ended.setdefault(START, self.seconds())
                        self.began[stage], self.stage = self.seconds(), stage
                    else:
                        self.ended[stage] = self.seconds()
                self._changed.notify_all()

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begin

    def duration(self, stage: str) -> float:
        """Seconds that a stage took."""
        return self.ended[stage] - self.began[stage]

    def is_over(self) -> bool:
        """Whether all processes have ended."""
        return all(process.poll() is not None for process in self._processes)

    def wait_for(self, condition: Callable[[], bool], seconds: float = LONGEST_SECONDS) -> bool:
        """Waits until a condition holds or all has ended; whether it holds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not condition() and not self.is_over():
            with self._changed:
                self._changed.wait(0.05)
        return condition()

    def wait_for_stage(self, stage: str) -> None:
        """Waits until a stage runs, or is over."""
        self.wait_for(lambda: stage in self.began or stage in self.ended)

    def kill(self, number: int) -> str:
        """kill -9 for one process; says how the others ended."""
        self._processes[number].kill()
        self.wait_for(self.is_over, GRACE_SECONDS)
        stayed = 0
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                stayed += 1
        self.finish()
        others = [str(p.returncode) for i, p in enumerate(self._processes) if i != number]
        if not others:
            return "killed"
        return f"killed {number}; " + (f"{stayed} stayed, killed too" if stayed else f"other ended {', '.join(others)}")

    def finish(self) -> int:
        """Waits for the end; the exit status: of several processes 2 where one of them has that to say."""
        for process, reader in zip(self._processes, self._readers, strict=True):
            try:
                process.wait(LONGEST_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            reader.join()
        statuses = {process.returncode for process in self._processes}
        return 2 if 2 in statuses else max(statuses, key=abs)

    def said(self) -> str:
        """The warnings and errors, one after the other."""
        return " / ".join(dict.fromkeys(line for line in self.lines if _SAID.match(line)))


class Faults:
    """Runs of one number of processes: an undisturbed one, and all others, which are compared with it."""

    def __init__(self, folder: Path, processes: int, seed: int):
        self.folder, self.processes = folder / f"{processes}-processes", processes
        self.random = random.Random(seed)
        self.runs = 0
        self.different = 0
        self.kills: collections.Counter[str] = collections.Counter()
        # What a folder's rights forbid, they forbid root too.
        self.as_others = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []

    def undisturbed(self) -> None:
        """The run to compare with, made twice: the first one compiles."""
        self.reference = self.folder / "compiled"
        self._end(self.reference)
        with self._run("none") as (workdir, rows):
            attempt = self._end(workdir)
            rows.append(Row("none", "", 0.0, f"done in {attempt.seconds():.0f} s"))
        self.stages = list(attempt.began)
        self.durations = {stage: attempt.duration(stage) for stage in self.stages}

    def kill(self, kills: int) -> None:
        """`kill -9` at random moments of all stages alike, several in a run."""
        planned = [(i % len(self.stages), self.random.random()) for i in range(kills)]
        self.random.shuffle(planned)
        while planned:
            chosen, planned = sorted(planned[:KILLS_A_RUN]), planned[KILLS_A_RUN:]
            with self._run("kill -9") as (workdir, rows):
                for number, moment in chosen:
                    attempt = self._start(workdir)
                    self._wait_for_moment(attempt, self.stages[number], moment)
                    if attempt.is_over():
                        self._require(attempt, attempt.finish() == 0, "ended by itself, and not well")
                        # Too late for this run: another one is hit, a little earlier.
                        planned.append((number, 0.7 * moment))
                        continue
                    hit, second = attempt.stage, attempt.seconds()
                    rows.append(Row("kill -9", hit, second, attempt.kill(self.random.randrange(self.processes))))
                    self.kills[hit] += 1
                self._end(workdir)

    def disk(self) -> None:
        """A disk that is full again and again, each time with a little more room."""
        total = sum(path.stat().st_size for path in self.reference.rglob("*") if path.is_file())
        with self._run("full disk") as (workdir, rows):
            workdir.mkdir()
            room = total // 20
            if _mount(workdir, f"size={room}"):
                rows.append(Row("full disk", "", 0.0, "not tried: only root may mount a small disk"))
                self._end(workdir)
                return
            try:
                while True:
                    attempt = self._start(workdir)
                    if attempt.finish() == 0:
                        break
                    ended = f"{room / 1e6:.1f} MB: {attempt.said()}"
                    rows.append(Row("full disk", attempt.stage, attempt.seconds(), ended))
                    told = attempt.finish() == 2 and "no space left" in ended.lower()
                    self._require(attempt, told and room < 4 * total, "no word of the full disk")
                    room += total // 4
                    _mount(workdir, f"remount,size={room}")
                kept = Path(shutil.copytree(workdir, self.folder / "from-small-disk"))
            finally:
                subprocess.run(["umount", workdir], check=True)
            workdir.rmdir()
            kept.rename(workdir)

    def read_only(self) -> None:
        """A workdir whose rights are taken away in mid-run, and given back."""
        for stage in ("generate_pool", "select_pairs", "train_policy", "evaluate_policy"):
            with self._run("read-only workdir") as (workdir, rows):
                self._copy(workdir, before=stage)
                attempt = self._start(workdir, self.as_others)
                self._wait_for_moment(attempt, stage, self.random.uniform(0.0, 0.3))
                hit, second = attempt.stage, attempt.seconds()
                _set_writable(workdir, False)
                status = attempt.finish()
                _set_writable(workdir, True)
                rows.append(Row("read-only workdir", hit, second, attempt.said()))
                self._require(attempt, status == 2, "no word of the workdir")
                self._end(workdir)

    def damage(self) -> None:
        """Bytes altered, files cut short and files missing, between two starts."""
        pool, scores = "pools/*/????????????????/*", "pools/*/scores-*/*/*"
        for damage in (_alter, _truncate):
            self._damage("score_pool", pool, damage)
            self._damage("select_pairs", pool, damage)
            self._damage("select_pairs", scores, damage)
            self._damage("train_policy", f"{RUN}/select_pairs/*array_record*", damage)
            self._damage("train_policy", f"{RUN}/select_pairs/done.json", damage)
            self._damage("evaluate_policy", f"{RUN}/train_policy/best.safetensors", damage)
            self._damage("evaluate_policy", f"{RUN}/export_adapter/*.safetensors", damage)
        training = f"{RUN}/train_policy"
        for damage in (_alter, _truncate, _remove):
            self._damage("train_policy", f"{training}/checkpoints/[0-9]*/default/ocdbt*/d/*", damage, 9)
        self._damage("train_policy", f"{training}/checkpoints/[0-9]*/default/manifest.ocdbt", _remove, 9)
        self._damage("train_policy", f"{training}/best.safetensors", _alter, 9)

    def _damage(self, stage: str, pattern: str, damage: Callable[[Path], None], step: int = 0) -> None:
        """Damages a file before `stage` runs, or after it has saved a training step and was killed."""
        fault = f"{damage.__name__.strip('_')} after step {step}" if step else damage.__name__.strip("_")
        with self._run(fault) as (workdir, rows):
            self._copy(workdir, before=stage)
            if step:
                attempt = self._start(workdir)
                saved = workdir / RUN / stage / "checkpoints" / str(step)
                self._require(attempt, attempt.wait_for(saved.is_dir), f"no checkpoint of step {step}")
                attempt.kill(0)
            files = sorted(workdir.glob(pattern), key=_step_of)
            # Of a checkpoint all files: most of their bytes are superseded ones, which nobody reads.
            last = [path for path in files if _step_of(path) == _step_of(files[-1])]
            chosen = last if step else [self.random.choice(files)]
            for path in chosen:
                damage(path)
            attempt = self._start(workdir)
            status = attempt.finish()
            said = attempt.said().replace(f"{workdir}/", "")
            name = f"checkpoint {_step_of(path)}" if _step_of(path) else f"{path.parent.name}/{path.name}"
            hit = f"before {stage}: {name}"
            rows.append(Row(fault, hit, attempt.seconds(), said or f"status {status}, not noticed"))
            self._require(attempt, said or not step, "no word of the damage")
            if status:
                folders = _TO_DELETE.search(attempt.said())
                self._require(attempt, status == 2 and folders, "no word of what to do")
                for folder in folders[1].split():
                    shutil.rmtree(folder)
                self._end(workdir)

    def _start(self, workdir: Path, prefix: Sequence[str] = ()) -> Attempt:
        return Attempt(workdir, self.processes, prefix)

    def _end(self, workdir: Path) -> Attempt:
        """A start that nobody disturbs."""
        attempt = self._start(workdir)
        self._require(attempt, attempt.finish() == 0, "did not end well")
        return attempt

    def _wait_for_moment(self, attempt: Attempt, stage: str, moment: float) -> None:
        """Waits for a fraction of the time that a stage takes when nobody disturbs it."""
        attempt.wait_for_stage(stage)
        attempt.wait_for(attempt.is_over, moment * self.durations[stage])

    def _copy(self, workdir: Path, before: str) -> None:
        """The state of a run that ended before a stage."""
        shutil.copytree(self.reference, workdir)
        for stage in self.stages[self.stages.index(before) :]:
            shutil.rmtree(workdir / RUN / stage)
        if before == "generate_pool":
            shutil.rmtree(workdir / "pools")
        elif before == "score_pool":
            for scores in workdir.glob("pools/*/scores-*"):
                shutil.rmtree(scores)

    def _require(self, attempt: Attempt, condition: object, what: str) -> None:
        if not condition:
            raise AssertionError("\n".join([*attempt.lines, f"{what} (the last lines of the run are above)"]))

    @contextlib.contextmanager
    def _run(self, fault: str) -> Iterator[tuple[Path, list[Row]]]:
        """A workdir and the rows of its faults; compares and prints at the end."""
        self.runs += 1
        workdir, rows, begin = self.folder / f"{self.runs:03d}", [], time.monotonic()
        failure = ""
        try:
            yield workdir, rows
        except AssertionError as error:
            failure = str(error)
            rows.append(Row(fault, "", 0.0, failure.splitlines()[-1]))
        same = {"pairs": _same(self.reference, workdir, _pairs), "lora": _same(self.reference, workdir, _loras)}
        for row in rows:
            values = {"procs": self.processes, "run": self.runs, "fault": row.fault, "hit": row.hit}
            values |= {"at s": f"{row.second:.1f}", "took s": f"{time.monotonic() - begin:.0f}", "ended": row.ended}
            _print_row(values | {name: "same" if equal else "OTHER" for name, equal in same.items()})
        if failure or not all(same.values()):
            self.different += 1
            print(f"{failure}\nrun {self.runs} differs: {workdir}", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(workdir)


def _pairs(workdir: Path) -> list[Path]:
    return [*(workdir / RUN / "select_pairs").glob("*array_record*"), workdir / RUN / "select_pairs/dataset_info.json"]


def _loras(workdir: Path) -> list[Path]:
    return [
        workdir / RUN / "export_adapter" / name for name in ("hgdpo_lora.safetensors", "hgdpo_lora_kohya.safetensors")
    ]


def _same(reference: Path, workdir: Path, files: Callable[[Path], list[Path]]) -> bool:
    expected, found = (
        {path.name: path.read_bytes() for path in files(folder) if path.is_file()} for folder in (reference, workdir)
    )
    return expected == found and len(expected) >= 2


def _step_of(path: Path) -> int:
    """The step whose checkpoint a file belongs to; 0 for any other file."""
    parts = path.parts
    return int(parts[parts.index("checkpoints") + 1]) if "checkpoints" in parts else 0


def _alter(path: Path) -> None:
    """One bit in every thousand bytes."""
    content = bytearray(path.read_bytes())
    for start in range(0, len(content), 1000):
        stretch = len(content[start : start + 1000])
        content[start + random.Random(start).randrange(stretch)] ^= 1
    path.write_bytes(bytes(content))


def _truncate(path: Path) -> None:
    # To a tenth: the later half of a checkpoint's file can be superseded bytes alone.
    os.truncate(path, path.stat().st_size // 10)


def _remove(path: Path) -> None:
    path.unlink()


def _set_writable(folder: Path, writable: bool) -> None:
    for path in [folder, *folder.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):
            mode = path.stat().st_mode
            path.chmod(mode | 0o200 if writable else mode & ~0o222)


def _mount(folder: Path, options: str) -> int:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode


def _print_row(values: dict[str, object]) -> None:
    print("  ".join(f"{values[name]!s:{width}}" for name, width in COLUMNS.items()), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the runs; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args(arguments)
    # What is compiled is compiled once.
    folder = given.folder or Path(tempfile.mkdtemp(prefix="faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "xla"))
    chosen = given.faults.split(",")
    _print_row({name: name for name in COLUMNS})
    different = 0
    for processes in map(int, given.processes.split(",")):
        faults = Faults(folder, processes, given.seed)
        faults.undisturbed()
        if "kill" in chosen:
            faults.kill(given.kills)
        if "disk" in chosen:
            faults.disk()
        if "read-only" in chosen:
            faults.read_only()
        if "damage" in chosen:
            faults.damage()
        if faults.kills:
            hit = ", ".join(f"{stage} {faults.kills[stage]}" for stage in faults.stages)
            print(f"{processes} process(es), {faults.kills.total()} kills: {hit}", flush=True)
        different += faults.different
    print(f"{different} runs differ" if different else "all runs ended as the undisturbed ones", flush=True)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
