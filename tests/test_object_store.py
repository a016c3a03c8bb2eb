"""The whole method in a bucket: an emulator of Google Cloud Storage on this machine."""

import functools
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from gcp_storage_emulator.handlers import buckets, objects
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

from hgdpo_jax import leases
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.checkpoints import Checkpoints
from hgdpo_jax.data.pairs import open_pairs, write_pairs
from hgdpo_jax.errors import UserError
from hgdpo_jax.files import cached_copy, require_store, write_text, written_whole
from hgdpo_jax.main import main
from hgdpo_jax.pages.pictures import png_bytes
from hgdpo_jax.run_log import RunLog, read_scalars
from hgdpo_jax.weights.tensor_files import load_tensors, map_tensors, save_tensors

ROOT = Path(__file__).parent.parent
# What gcsfs hands to aiohttp is its own affair.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")

CONFIG = """
from configs.toon_smoke import get_config as toon_smoke

def get_config():
    config = toon_smoke()
    config.weights.base = {base!r}
    config.weights.scorer = {scorer!r}
    config.evaluate.scorers = ()
    config.prompts.train_count = 8
    config.prompts.validation_count = 4
    config.prompts.test_count = 4
    config.pool.size = 2
    config.pool.steps = 2
    config.train.batch_size = 4
    config.train.steps = 6
    config.train.evaluate_every = 3
    config.train.checkpoint_every = 1
    return config
"""


class Server(http.server.HTTPServer):
    def handle_error(self, *arguments):
        """Clients that leave before the answer ends are none of the test's business."""


class Handler(RequestHandler):
    # The paths of all GET requests; a test may empty it.
    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()


@pytest.fixture(scope="module")
def store():
    """Address of the emulator, which has a bucket called "bucket"."""
    storage = Storage(use_memory_fs=True)
    buckets.create_bucket("bucket", storage)
    with pytest.MonkeyPatch.context() as patch:
        send = objects.download

        def send_with_generation(request, response, storage):
            # Without this header, which the emulator leaves out, TensorStore cannot write what it has read.
            send(request, response, storage)
            if response.status < 300:
                found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
                response["x-goog-generation"] = found["generation"]

        patch.setattr(objects, "download", send_with_generation)
        server = Server(("localhost", 0), functools.partial(Handler, storage))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://localhost:{server.server_port}"
        patch.setenv("STORAGE_EMULATOR_HOST", address)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        # What it looks up for it, the emulator cannot tell.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        yield address
        server.shutdown()
        server.server_close()


@pytest.fixture
def bucket(store, tmp_path, monkeypatch):
    """A folder of its own in the bucket, and a cache of its own for copies."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return epath.Path("gs://bucket") / tmp_path.name


def write_elsewhere(store: str, name: str) -> None:
    """Writes an object as another process would."""
    address = f"{store}/upload/storage/v1/b/bucket/o?uploadType=media&name={name}"
    with urllib.request.urlopen(urllib.request.Request(address, data=b"there", method="POST")) as answer:
        assert answer.status == 200


def names_in(folder: epath.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Larger files go up in several parts.
@pytest.mark.parametrize("size", [0, 5, 6_000_000])
def test_a_file_is_there_whole(bucket, size):
    content = np.random.default_rng(0).bytes(size)
    for _ in range(2):
        with written_whole(bucket / "new" / "file") as file:
            file.write(content)
    assert (bucket / "new" / "file").read_bytes() == content
    assert names_in(bucket / "new") == ["file"]


def test_a_file_whose_writer_fails_is_not_there(bucket):
    with pytest.raises(ZeroDivisionError), written_whole(bucket / "file") as file:
        file.write(bytes(6_000_000))
        raise ZeroDivisionError
    assert not (bucket / "file").exists()


def test_what_another_process_wrote_is_listed_at_once(bucket, store):
    with written_whole(bucket / "first") as file:
        file.write(b"here")
    assert names_in(bucket) == ["first"]
    write_elsewhere(store, f"{bucket.name}/second")
    assert names_in(bucket) == ["first", "second"]


def test_one_run_writes_into_a_folder_at_a_time(bucket):
    for _ in range(2):
        with leases.held(bucket):
            with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on "), leases.held(bucket):
                pass
        assert not (bucket / "lease").exists()


def test_tensors_are_read_back(bucket):
    tensors = {"a": np.arange(6, dtype=np.float16).reshape(2, 3)}
    save_tensors(bucket / "x.safetensors", tensors, {"origin": "here"})
    read, metadata = load_tensors(bucket / "x.safetensors")
    np.testing.assert_array_equal(read["a"], tensors["a"])
    assert metadata == {"origin": "here"}
    np.testing.assert_array_equal(map_tensors(bucket / "x.safetensors")["a"], tensors["a"])


def test_a_copy_is_fetched_once_and_again_when_the_object_is_written_anew(bucket):
    (bucket / "file").write_bytes(b"one")
    copies = [cached_copy(bucket / "file") for _ in range(2)]
    inodes = {Path(copy).stat().st_ino for copy in copies}
    assert len(inodes) == 1 and copies[0].read_bytes() == b"one"
    (bucket / "file").write_bytes(b"other")
    assert cached_copy(bucket / "file").read_bytes() == b"other"
    assert names_in(copies[0].parent) == ["file"]


def test_pairs_have_the_bytes_of_local_ones_and_are_read_back(bucket, tmp_path):
    latents = np.random.default_rng(0).normal(size=(3, 2, 2, 4)).astype(np.float16)
    scores = {"winner_score": 1.0, "loser_score": 0.0, "winner_index": 1, "loser_index": 0}
    pairs = [
        {"prompt": f"prompt {i}", "winner_latents": x, "loser_latents": -x, **scores} for i, x in enumerate(latents)
    ]
    for folder in (bucket, tmp_path / "local"):
        assert write_pairs(folder, pairs, (2, 2, 4)) == 3
    for name in names_in(epath.Path(tmp_path / "local")):
        assert (bucket / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name
    read = open_pairs(bucket)
    assert [read[i]["prompt"] for i in range(len(read))] == ["prompt 0", "prompt 1", "prompt 2"]
    np.testing.assert_array_equal(read[1]["winner_latents"], latents[1])


def test_an_input_is_fetched_once_and_checked_on_the_way(bucket):
    earlier = StageRun("select_pairs", "test", bucket, {})
    earlier.start()
    for name in ("pairs", "deep/pairs"):
        write_text(earlier.folder / name, name)
    earlier.finish()
    run = StageRun("train_policy", "test", bucket, {}, {"select_pairs": earlier})
    Handler.asked.clear()
    for _ in range(2):
        folder = run.local_input("select_pairs")
        assert [(folder / name).read_text() for name in ("pairs", "deep/pairs")] == ["pairs", "deep/pairs"]
    contents = [path.partition("?")[0] for path in Handler.asked if path.startswith("/download/")]
    assert sum(path.endswith("pairs") for path in contents) == 2, contents
    # A copy that was damaged is fetched anew, an object that was altered is refused.
    times = os.stat(folder / "pairs")
    (folder / "pairs").write_text("pears")
    os.utime(folder / "pairs", (times.st_atime, times.st_mtime))
    assert (run.local_input("select_pairs") / "pairs").read_text() == "pairs"
    (earlier.folder / "pairs").write_text("altered")
    with pytest.raises(UserError, match="select_pairs/pairs was altered or damaged since select_pairs was done"):
        run.local_input("select_pairs")


def test_a_log_that_was_flushed_outlasts_a_kill_and_is_gone_on_with(bucket):
    logging = f"""
import os, signal
from hgdpo_jax.run_log import RunLog
log = RunLog({str(bucket)!r})
for step in (1, 2, 3):
    log.scalars(step, {{"loss": step}})
log.flush()
log.scalars(4, {{"loss": 4}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", logging], cwd=ROOT).returncode == -signal.SIGKILL
    assert [line["step"] for line in read_scalars(bucket)] == [1, 2, 3]
    resumed = RunLog(bucket)
    resumed.resume(2)
    resumed.scalars(3, {"loss": 30})
    resumed.image(3, "samples", png_bytes(np.zeros((4, 5, 3), np.uint8)))
    resumed.close()
    assert [(line["step"], line["loss"]) for line in read_scalars(bucket)] == [(1, 1), (2, 2), (3, 30)]
    assert len(names_in(bucket / "tensorboard")) == 2
    assert names_in(bucket / "images") == ["samples-000003.png"]


def test_checkpoints_keep_the_last_two_and_go_on_from_the_last(bucket):
    def state(step):
        return {"weights": jnp.full((4, 3), float(step)), "step": jnp.int32(step)}

    saving = Checkpoints(bucket / "checkpoints")
    assert saving.steps() == []
    for step in (1, 2, 3):
        saving.save(step, state(step))
    saving.close()
    opened = Checkpoints(bucket / "checkpoints")
    assert opened.steps() == [2, 3]
    step, restored = opened.restore(state(0))
    assert step == 3
    np.testing.assert_array_equal(restored["weights"], state(3)["weights"])
    opened.close()


def test_an_object_store_that_is_not_installed_is_one_line_that_says_what_to_install():
    with pytest.raises(UserError, match=r"s3://bucket/x cannot be opened .*pip install 'hgdpo_jax\[gcs\]'"):
        require_store("s3://bucket/x")


def test_a_bucket_that_does_not_exist_is_one_line(store, capsys):
    command = ["--config=configs/toon_smoke.py", "--workdir=gs://nowhere/x", "--stage=generate_pool"]
    assert main(command) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: workdir gs://nowhere/x cannot be written") and errors.count("\n") == 1


@pytest.fixture
def start(tmp_path, tiny_base, tiny_scorer):
    """Starts the tiny experiment in a workdir."""
    (tmp_path / "tiny.py").write_text(CONFIG.format(base=str(tiny_base), scorer=str(tiny_scorer)))

    def start(workdir, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "hgdpo_jax.main", f"--config={tmp_path / 'tiny.py'}", f"--workdir={workdir}"]
        return subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")},
        )

    return start


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_the_whole_method_in_a_bucket_killed_while_it_trains_ends_with_the_bytes_of_a_local_run(
    bucket, tmp_path, start
):
    finish(start(tmp_path / "local"))
    assert "to do" in finish(start(bucket, "--plan")) and not bucket.exists()

    killed = start(bucket)
    run = bucket / "runs/tiny"
    while not (run / "train_policy/checkpoints/2/commit_success.txt").exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (run / "train_policy/done.json").exists()
    plan = finish(start(bucket, "--plan")).splitlines()
    assert [line.split()[1] for line in plan] == ["done"] * 4 + ["partly"] + ["to"] * 3

    resumed = finish(start(bucket))
    assert resumed.count("done before, skipped") == 4
    assert resumed.splitlines()[-1] == f"report: {run}/evaluate_policy/report/index.html"
    assert [line["step"] for line in read_scalars(run / "train_policy")] == [1, 2, 3, 3, 4, 5, 6, 6]
    local = tmp_path / "local/runs/tiny"
    for name in (
        "export_adapter/hgdpo_lora.safetensors",
        "export_adapter/hgdpo_lora_kohya.safetensors",
        "evaluate_policy/report/summary.json",
    ):
        assert (run / name).read_bytes() == (local / name).read_bytes(), name
    assert not [path for path in bucket.glob("*/*/*/*") if path.name.endswith(".partial")]

    (run / "train_policy/best.safetensors").write_bytes(b"altered")
    (run / "export_adapter").rmtree()
    altered = start(bucket, "--stage=export_adapter")
    output, _ = altered.communicate(timeout=600)
    assert altered.returncode == 2 and f"{run}/train_policy/best.safetensors was altered" in output
