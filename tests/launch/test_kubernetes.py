"""The manifests, validated against published schemas, and the image that they run."""

import re
import subprocess

import kubernetes_validate
import pytest
import yaml
from launching import LAUNCH, ROOT, tool

from hgdpo_jax.config_files import load_config


def documents(name):
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("name", ["kubernetes.yaml", "kubernetes_workdir.yaml"])
def test_manifests_keep_to_the_published_schemas(name, version):
    for document in documents(name):
        kubernetes_validate.validate(document, version, strict=True)


def test_hadolint_finds_nothing():
    finished = subprocess.run([tool("hadolint"), str(LAUNCH / "Dockerfile")], capture_output=True, text=True)
    assert (finished.returncode, finished.stdout) == (0, "")


def test_pods_find_the_first_of_them_under_its_name():
    service, job = documents("kubernetes.yaml")
    container = job["spec"]["template"]["spec"]["containers"][0]
    variables = {variable["name"]: variable for variable in container["env"]}
    host, port = variables["JAX_COORDINATOR_ADDRESS"]["value"].split(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert int(port) == service["spec"]["ports"][0]["port"]
    count = int(variables["JAX_NUM_PROCESSES"]["value"])
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == count


def test_pods_share_the_claim_and_run_an_experiment_that_lacks_nothing():
    (claim,), (_, job) = documents("kubernetes_workdir.yaml"), documents("kubernetes.yaml")
    pod = job["spec"]["template"]["spec"]
    claimed = [volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    arguments = dict(argument.removeprefix("--").split("=", 1) for argument in pod["containers"][0]["args"])
    assert [arguments.pop("workdir")] == [mounts[name] for name in claimed]
    path = str(ROOT / arguments.pop("config"))
    config = load_config(path, [f"--{name}={value}" for name, value in arguments.items()])
    assert all((config.weights.base, config.weights.scorer))
    assert all((config.prompts.train, config.prompts.validation, config.prompts.test))


def test_the_image_gets_what_main_imports_and_nothing_that_is_left_out():
    copied = re.findall(r"^COPY (.*) \S+$", (LAUNCH / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    kept = re.findall(r"^!(.*)$", (LAUNCH / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert names == set(kept) >= {"hgdpo_jax", "configs"}
    assert all((ROOT / name).exists() for name in names)


def test_the_image_has_the_packages_that_the_extras_name():
    pinned = re.findall(r'"\w+[=>]=[^"]+"', (LAUNCH / "Dockerfile").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    assert len(pinned) == 2 and all(requirement in project for requirement in pinned)
