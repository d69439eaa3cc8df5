"""The manifests of docker/kuberay: valid by the schemas of Kubernetes and KubeRay, and they fit together.

`make test-ray` installs the schemas of Kubernetes. For those of KubeRay, name a folder with its `ray.io_rayjobs.yaml` in AGL_TEST_CRDS. It
is in `helm-chart/kuberay-operator/crds` of KubeRay's repository.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from agentlightning.config.schema import Config, load_config
from agentlightning_ray.settings import RaySettings

FILE = Path(__file__).parents[3] / "docker/kuberay/run.yaml"
MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all(FILE.read_text()))
BY_KIND = {manifest["kind"]: manifest for manifest in MANIFESTS}
CLUSTER = BY_KIND["RayJob"]["spec"]["rayClusterSpec"]
HEAD = CLUSTER["headGroupSpec"]
[TRAINER] = HEAD["template"]["spec"]["containers"]
[AGENTS] = CLUSTER["workerGroupSpecs"][0]["template"]["spec"]["containers"]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in BY_KIND["ConfigMap"]["data"].items():
        (tmp_path / name).write_text(text)
    return load_config(tmp_path / "config.toml")


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def test_the_run_is_served_where_its_agents_look_for_it(config: Config) -> None:
    address = urlsplit(config.address or "")
    assert (address.hostname, address.port) == (HEAD["headService"]["metadata"]["name"], config.port)
    assert config.port in [port["containerPort"] for port in TRAINER["ports"]]
    assert config.host == "0.0.0.0"
    assert "AGL_TOKEN" in environment(TRAINER)


def test_agents_run_on_the_cpu_nodes_alone(config: Config) -> None:
    assert isinstance(config.runner, RaySettings)
    assert HEAD["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" in TRAINER["resources"]["limits"]
    assert "nvidia.com/gpu" not in AGENTS["resources"]["limits"]
    nodes = CLUSTER["workerGroupSpecs"][0]["replicas"]
    assert config.runner.workers * config.runner.cpus <= nodes * float(AGENTS["resources"]["requests"]["cpu"])


def test_the_store_is_the_postgresql_of_the_file_and_its_password_is_in_no_config(config: Config) -> None:
    service, stateful = BY_KIND["Service"], BY_KIND["StatefulSet"]
    [server] = stateful["spec"]["template"]["spec"]["containers"]
    store = urlsplit(config.store or "")
    assert (store.hostname, store.port) == (service["metadata"]["name"], service["spec"]["ports"][0]["port"])
    assert store.username == environment(server)["POSTGRES_USER"]
    assert store.password is None
    assert environment(TRAINER)["PGPASSWORD"] == environment(server)["POSTGRES_PASSWORD"]
    assert service["spec"]["selector"].items() <= stateful["spec"]["template"]["metadata"]["labels"].items()


def test_the_entry_point_names_the_config_and_the_agents_have_its_folder(config: Config) -> None:
    words = shlex.split(BY_KIND["RayJob"]["spec"]["entrypoint"])
    folder = str(Path(words[2]).parent)
    assert words[:2] == ["agl", "train"]
    for container in (TRAINER, AGENTS):
        assert folder in [mount["mountPath"] for mount in container["volumeMounts"]]
    assert Path(words[2]).name in BY_KIND["ConfigMap"]["data"]
    assert config.folder in [mount["mountPath"] for mount in TRAINER["volumeMounts"]]


@pytest.mark.parametrize(
    "manifest", [manifest for manifest in MANIFESTS if "ray.io" not in manifest["apiVersion"]], ids=lambda m: m["kind"]
)
def test_a_manifest_is_valid_by_the_schema_of_kubernetes(manifest: dict[str, Any]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="make test-ray installs the schemas of Kubernetes")
    validator.validate(manifest, validator.latest_version(), strict=True)


def closed(schema: Any) -> Any:
    """The schema without room for unknown fields, as `kubectl` reads it with --validate=strict."""
    if isinstance(schema, list):
        return [closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if inner.get("x-kubernetes-int-or-string"):
        inner.pop("format", None)
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict) and not is_open:
        inner["additionalProperties"] = False
    return inner


def test_the_job_is_valid_by_the_schema_of_kuberay() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    folder = os.environ.get("AGL_TEST_CRDS")
    if not folder:
        pytest.skip("AGL_TEST_CRDS names no folder with the schemas of KubeRay")
    definition = yaml.safe_load((Path(folder) / "ray.io_rayjobs.yaml").read_text())
    [schema] = [version["schema"]["openAPIV3Schema"] for version in definition["spec"]["versions"] if version["name"] == "v1"]
    schema = closed(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(BY_KIND["RayJob"], schema)
