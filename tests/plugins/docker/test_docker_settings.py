"""The settings of containers and the command line that they build, on a machine without any engine too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentlightning.config.schema import build_config
from agentlightning.errors import ConfigError
from agentlightning.training.train import train
from agentlightning_docker.agent import gateway_of
from agentlightning_docker.engines import engine_environment, run_command
from agentlightning_docker.settings import DockerSettings


def config(**runner: Any) -> Any:
    table = {"name": "docker", "image": "agent:1", **runner}
    return build_config({"command": "node agent.js", "tasks": "x.jsonl", "model": "m", "runner": table})


def test_the_name_of_the_runner_chooses_its_settings() -> None:
    assert config(memory="512m", processes=64).runner == DockerSettings(image="agent:1", memory="512m", processes=64)


@pytest.mark.parametrize(
    ("runner", "message"),
    [
        ({"image": ""}, "runner.image"),
        ({"imag": "x"}, "Did you mean 'image'"),
        ({"memory": "2 GB"}, "runner.memory is '2 GB'"),
        ({"cpus": 0}, "runner.cpus is 0"),
        ({"processes": 0}, "runner.processes is 0"),
        ({"engine": "lxc"}, "runner.engine is 'lxc'"),
        ({"workers": 2}, "runner.workers is 2"),
        ({"remote": True}, "both set"),
        ({"options": ["--network=host"]}, "runner.options has '--network=host'"),
        ({"options": ["--volume", "./data:/data"]}, "a relative path"),
        ({"options": ["--privileged"]}, "runner.options has '--privileged'"),
        ({"options": ["-v", "/data:/data", "--cap-add", "SYS_ADMIN"]}, "runner.options has '--cap-add'"),
    ],
)
def test_a_wrong_setting_is_named(runner: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**runner)


def test_the_image_is_required() -> None:
    with pytest.raises(ConfigError, match="Missing 'image'"):
        build_config({"command": "x", "tasks": "x.jsonl", "model": "m", "runner": {"name": "docker"}})


def test_the_command_line_closes_the_container_and_holds_no_secret(tmp_path: Path) -> None:
    settings = DockerSettings(image="agent:1", cpus=0.5, memory="512m", processes=64, options=("--gpus", "all"))
    words = run_command("docker", "agl-1", tmp_path, settings)
    assert words[:7] == ["docker", "run", "--rm", "--name", "agl-1", "--label", "agentlightning"]
    assert words[7:9] == ["--gpus", "all"]
    pairs = {
        "--network": "none", "--cpus": "0.5", "--memory": "512m", "--memory-swap": "512m", "--pids-limit": "64", "--cap-drop": "ALL",
        "--log-driver": "none", "--pull": "never", "--entrypoint": "python3",
    }  # fmt: skip
    assert {name: words[words.index(name) + 1] for name in pairs} == pairs
    assert "no-new-privileges" in words
    assert [word for word in words if str(tmp_path) in word] == [
        f"{tmp_path}:/agl:ro", f"{tmp_path}/reward:/agl/reward", f"{tmp_path}/records:/agl/records",
    ]  # fmt: skip
    assert words[-2:] == ["agent:1", "/agl/inside.py"]


def test_the_engine_gets_neither_tokens_nor_proxies() -> None:
    environment = {"PATH": "/bin", "DOCKER_HOST": "unix:///x", "HTTPS_PROXY": "http://u:p@x", "http_proxy": "y", "AGL_TOKEN": "t"}
    assert engine_environment(environment) == {"PATH": "/bin", "DOCKER_HOST": "unix:///x"}


def test_a_gateway_behind_tls_is_refused() -> None:
    assert gateway_of("http://127.0.0.1:8000/v1") == ("127.0.0.1", 8000)
    with pytest.raises(ConfigError, match="by http only"):
        gateway_of("https://gateway/v1")


@pytest.mark.parametrize(
    ("engine", "message"),
    [(None, "docker: not installed; podman: not installed. To fix this, install podman or start"), ("podman", "podman: not installed")],
)
def test_without_an_engine_the_run_ends_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str | None, message: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    runner = {"name": "docker", "image": "agent:1", **({"engine": engine} if engine else {})}
    with pytest.raises(ConfigError, match=message):
        train("agents:solve", tasks=[{"id": "1"}], model=str(tmp_path / "no-model"), folder=tmp_path, runner=runner)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon.' >&2\nexit 1\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(ConfigError, match=r"docker: Cannot connect to the Docker daemon. To fix this, start the daemon of docker"):
        DockerSettings(image="agent:1", engine="docker").check_machine()


def test_a_missing_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\n[ $1 = version ] || { echo 'No such image: agent:1' >&2; exit 1; }\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(
        ConfigError, match=r"runner\.image is 'agent:1', which docker does not have .No such image: agent:1.. Run: docker pull"
    ):
        DockerSettings(image="agent:1", engine="docker").check_machine()
