"""Tiny checkpoints with random weights, in the layouts of the trained ones, and a hub to fetch them from."""

import hashlib
import http.server
import json
import os
import tempfile
import threading
import urllib.parse

import jax
import numpy as np
import pytest
from huggingface_hub import constants

# Tests, stages and processes compile the same few programs again and again. The variable is for processes and main,
# which would take the user's own folder else.
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Workers inherit the folder of the process that starts them.
    _COMPILED = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

PIXELS = {"width": 48, "height": 64}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="session")
def toon_tokenizer(tmp_path_factory):
    """Tokenizer files with bytes for a vocabulary."""
    from hgdpo_jax.toon.vocabulary import write_tokenizer

    folder = tmp_path_factory.mktemp("toon_tokenizer")
    write_tokenizer(folder, size=600)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory, toon_tokenizer):
    """Folder of a Stable Diffusion that draws 48x64 noise."""
    from hgdpo_jax.families.stable_diffusion.files import StableDiffusionFiles, write_folder
    from hgdpo_jax.families.stable_diffusion.model import StableDiffusion, by_file
    from hgdpo_jax.weights.conversion import from_tree

    configs = {
        "unet": {
            "block_out_channels": [16, 16],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
        },
        "vae": {
            "block_out_channels": [8, 8, 8],
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "scaling_factor": 1.0,
        },
        "text_encoder": {
            "vocab_size": 600,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        "scheduler": {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "timestep_spacing": "linspace",
        },
    }
    shapes = by_file(StableDiffusion.of_configs(configs).parameters)
    folder = tmp_path_factory.mktemp("tiny_base")
    tensors = {name: from_tree(random_parameters(tree, seed=1)) for name, tree in shapes.items()}
    files = StableDiffusionFiles(configs=configs, tensors=tensors, tokenizer=toon_tokenizer)
    write_folder(folder, files, storage="float32")
    return folder


@pytest.fixture(scope="session")
def tiny_scorer(tmp_path_factory, toon_tokenizer):
    """Folder of a preference scorer."""
    return write_tiny_scorer(tmp_path_factory.mktemp("tiny_scorer"), toon_tokenizer, seed=2)


@pytest.fixture(scope="session")
def tiny_judge(tmp_path_factory, toon_tokenizer):
    """Folder of a preference scorer of another opinion."""
    return write_tiny_scorer(tmp_path_factory.mktemp("tiny_judge"), toon_tokenizer, seed=3)


def write_tiny_scorer(folder, tokenizer, seed):
    from hgdpo_jax.scorers.pick_score import PickScore
    from hgdpo_jax.weights import clip_files
    from hgdpo_jax.weights.conversion import from_tree

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {
        # transformers takes the state at this token.
        "text_config": {
            "vocab_size": 600,
            "max_position_embeddings": 77,
            "bos_token_id": 598,
            "eos_token_id": 599,
            "pad_token_id": 599,
            **tower,
        },
        "vision_config": {"image_size": 32, "patch_size": 8, **tower},
        "projection_dim": 16,
    }
    preprocessor = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": 32},
        "crop_size": 32,
    }
    tensors = from_tree(random_parameters(PickScore.without_weights(config, preprocessor).parameters, seed))
    tensors["logit_scale"] = np.float32(3.0).reshape(tensors["logit_scale"].shape)
    files = clip_files.CLIPFiles(config=config, tensors=tensors, preprocessor=preprocessor, tokenizer=tokenizer)
    clip_files.write_folder(folder, files, storage="float32")
    return folder


def random_parameters(shapes, seed):
    """Normal weights that keep activations near one; scales of norms near one."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        fan_in = int(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 100
        offset = 1.0 if path[-1].key == "scale" else 0.0
        return (offset + random.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="session")
def make_open_clip():
    """Makes a CLIP in PyTorch as open_clip builds it: names, fused projections, tokens of two towers.

    Widths are those of a block; the heads are ViT-H/14's, of 80 in the image tower and 64 in the other.
    """
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, width, head):
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attn = nn.MultiheadAttention(width, width // head, batch_first=True)
            self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

        def forward(self, x, mask):
            h = self.ln_1(x)
            x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
            return x + self.mlp["c_proj"](nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))

    class Tower(nn.Module):
        def __init__(self, width, head, layers):
            super().__init__()
            self.resblocks = nn.ModuleList(Block(width, head) for _ in range(layers))

        def forward(self, x, mask=None):
            for block in self.resblocks:
                x = block(x, mask)
            return x

    class ImageTower(nn.Module):
        def __init__(self, width, layers, size, projection):
            super().__init__()
            self.conv1 = nn.Conv2d(3, width, 14, 14, bias=False)
            self.class_embedding = nn.Parameter(torch.zeros(width))
            self.positional_embedding = nn.Parameter(torch.zeros((size // 14) ** 2 + 1, width))
            self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
            self.transformer = Tower(width, 80, layers)
            self.proj = nn.Parameter(torch.zeros(width, projection))

        def forward(self, pixels):
            patches = self.conv1(pixels).flatten(2).transpose(1, 2)
            x = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
            x = self.transformer(self.ln_pre(x + self.positional_embedding))
            return nn.functional.normalize(self.ln_post(x[:, 0]) @ self.proj, dim=-1)

    class OpenCLIP(nn.Module):
        def __init__(self, image_width, text_width, layers, size, vocabulary, projection):
            super().__init__()
            self.visual = ImageTower(image_width, layers, size, projection)
            self.token_embedding = nn.Embedding(vocabulary, text_width)
            self.positional_embedding = nn.Parameter(torch.zeros(77, text_width))
            self.transformer = Tower(text_width, 64, layers)
            self.ln_final = nn.LayerNorm(text_width)
            self.text_projection = nn.Parameter(torch.zeros(text_width, projection))
            self.logit_scale = nn.Parameter(torch.zeros([]))

        def forward(self, tokens):
            mask = torch.full((77, 77), -torch.inf).triu(1)
            x = self.ln_final(self.transformer(self.token_embedding(tokens) + self.positional_embedding, mask))
            x = x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ self.text_projection
            return nn.functional.normalize(x, dim=-1)

    def make(**sizes):
        torch.manual_seed(5)
        model = OpenCLIP(**sizes).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, float(np.prod(parameter.shape[1:])) ** -0.5)
                else:
                    # Gains and shifts: at 1 and 0 they hide mistakes.
                    parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.1)
        return model

    return make


def answer_at(monkeypatch, port: int) -> None:
    """Lets the hub's library look for the hub at a local port."""
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server of the hub's protocol for the repositories in its `files`, {owner/name: {path: content}}.

    The names of data sets begin with "datasets/". `requests` are the paths asked for; `disconnect()` takes it off.
    """

    from hgdpo_jax.data.hub_files import fetch_files
    from hgdpo_jax.weights.sources import resolve_source

    def forget():
        for asked_once in (resolve_source, fetch_files):
            asked_once.cache_clear()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def answer(self, status, content=b"", **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_GET(self):
            server.requests.append(self.path)
            parts = urllib.parse.unquote(self.path).partition("?")[0].strip("/").split("/")
            if parts[0] == "api":
                name, revision = "/".join(parts[2:4]), (parts[5:] or ["main"])[0]
                if parts[1] == "datasets":
                    name = f"datasets/{name}"
                if name not in server.files:
                    return self.answer(401, X_Error_Code="RepoNotFound")
                if revision not in ("main", "v2", COMMIT):
                    return self.answer(404, X_Error_Code="RevisionNotFound")
                siblings = [{"rfilename": path} for path in server.files[name]]
                if "tree" in parts:
                    siblings = [
                        {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                        for path, content in server.files[name].items()
                    ]
                    return self.answer(200, json.dumps(siblings).encode(), Content_Type="application/json")
                info = {"id": name, "sha": COMMIT, "siblings": siblings}
                return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
            words = 3 if parts[0] == "datasets" else 2
            content = server.files["/".join(parts[:words])]["/".join(parts[words + 2 :])]
            return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests, server.commit = {}, [], COMMIT

    def disconnect():
        answer_at(monkeypatch, port=9)
        # As a program that is started later.
        forget()

    server.disconnect = disconnect
    threading.Thread(target=server.serve_forever, daemon=True).start()
    answer_at(monkeypatch, server.server_port)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    forget()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def many_runs(tmp_path_factory):
    """Folders of runs that fill every table and figure of the paper, and one of a user's own."""
    from runs_on_disk import write_many_runs

    return write_many_runs(tmp_path_factory.mktemp("workdir") / "runs")


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A running Chromium, that of the variable CHROMIUM or of PATH."""
    from chromium import Browser, find_chromium

    program = find_chromium()
    # A browser comes from the system: the suite must run where there are only packages of PyPI.
    if not program:
        pytest.skip("needs Chromium: none on PATH, and CHROMIUM names none")
    running = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield running
    running.close()
