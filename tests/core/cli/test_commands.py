from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from agentlightning.cli.main import build
from agentlightning.cli.plugins import report
from agentlightning.errors import LightningError
from agentlightning.registry.registry import Registry
from agentlightning.training.run_folder import RunFolder

AGL = Callable[..., tuple[int, str]]


@pytest.mark.parametrize("command", [["train"], ["rollout"], ["serve"], ["show"], ["plugins"], ["models", "list"], ["models", "pull"]])
def test_the_help_of_each_command_teaches_by_example(agl: AGL, command: list[str]) -> None:
    code, output = agl(*command, "--help")
    assert code == 0
    assert "Example" in output
    assert f"agl {' '.join(command)}" in output


def test_the_first_help_names_every_command_and_where_to_start(agl: AGL) -> None:
    code, output = agl("--help")
    assert code == 0
    for name in ("train", "rollout", "serve", "show", "plugins", "models", "agl demo"):
        assert name in output


def test_the_version_is_told(agl: AGL) -> None:
    code, output = agl("--version")
    assert (code, output.split()[0]) == (0, "agentlightning")


def test_the_package_runs_as_a_module() -> None:
    run = subprocess.run([sys.executable, "-m", "agentlightning", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.split()[0] == "agentlightning"


def test_help_loads_neither_torch_nor_a_framework() -> None:
    code = (
        "import sys; from agentlightning.cli.main import build; from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(build(), ['--help']).exit_code == 0\n"
        "print(sorted({'torch', 'transformers', 'renderers', 'openai', 'langchain', 'langchain_core', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["train"], 2, "Give it a config file, or `--resume RUN`"),
        (["train", "missing.toml"], 2, "missing.toml"),
        (["train", "--resume", "latest"], 2, "There is no training run under runs"),
        (["train", "--resume", "20200101-000000-x"], 2, "There is no run '20200101-000000-x'"),
        (["train", "--resume", "latest", "--dry-run"], 2, "--resume continues an old one"),
        (["rollout", "missing.toml"], 2, "missing.toml"),
        (["serve"], 2, "needs a model, a run or an upstream"),
        (["serve", "latest", "--model", "m"], 2, "takes one of MODEL and --model"),
        (["models", "pull", "smollm2-135n"], 2, "smollm2-135m"),
        (["config", "trainr"], 2, "'trainr' in its name"),
        (["config", "eval", "--schema"], 2, "exclude one another"),
        (["show"], 2, "There is no run under runs"),
        (["show", "sqlite:typo.db"], 2, "There is no store file 'typo.db'"),
    ],
)
def test_bad_input_is_one_clear_message(
    agl: AGL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    got, output = agl(*arguments)
    assert got == code
    assert output.startswith("error: ")
    assert says in output
    assert "Traceback" not in output


def test_the_settings_of_a_part_are_shown_with_values_defaults_and_meaning(agl: AGL) -> None:
    code, output = agl("config", "eval")
    assert code == 0
    words = " ".join(output.split())
    assert "every integer ≥ 0 5 Steps between two evaluations" in words
    assert "greedy true or false true" in words
    assert "timeout" not in words, "only tables and parts with this name are shown"


def test_a_wrong_key_in_the_configuration_names_the_right_one(agl: AGL, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('agent = "a:b"\ntasks = "t.jsonl"\nmodel = "m"\nstep = 3\n')
    code, output = agl("train", str(tmp_path / "config.toml"))
    assert code == 2
    assert "Did you mean 'steps'" in output


def test_a_wrong_key_of_the_trainer_names_the_file(agl: AGL, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('agent = "a:b"\ntasks = "t.jsonl"\nmodel = "smollm2-135m"\n[trainer]\nlearning_rate = 1\n')
    (tmp_path / "t.jsonl").write_text("1\n")
    code, output = agl("train", str(config))
    assert code == 2
    assert f"{config}: Unknown key 'learning_rate' in [trainer]." in " ".join(output.split())


def command(**hooks: object) -> Registry:
    """A registry with one plugin that registers one command."""

    def register_commands(register: object) -> None:
        register("try", **hooks)  # type: ignore[operator]

    return Registry({"mine": SimpleNamespace(register_commands=register_commands)})


def test_a_plugin_adds_a_command(agl: AGL) -> None:
    def run(count: int = 1) -> None:
        """Try something."""
        typer.echo(f"tried {count}")

    result = CliRunner().invoke(build(command(target=run)), ["try", "--count", "3"])
    assert (result.exit_code, result.output) == (0, "tried 3\n")


def test_a_broken_command_stays_in_the_list_and_says_why(agl: AGL) -> None:
    found = command(target="agentlightning_missing.nothing:run")
    assert "train" in CliRunner().invoke(build(found), ["--help"]).output
    result = CliRunner().invoke(build(found), ["try"])
    assert result.exit_code == 1
    assert "agentlightning_missing" in result.output


def test_ctrl_c_exits_130_without_a_traceback(agl: AGL) -> None:
    def run() -> None:
        raise KeyboardInterrupt

    result = CliRunner().invoke(build(command(target=run)), ["try"])
    assert (result.exit_code, "Traceback" in result.output) == (130, False)


def test_debug_lets_the_error_through_with_its_traceback(agl: AGL, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> None:
        raise LightningError("deliberate")

    app = build(command(target=run))
    assert CliRunner().invoke(app, ["try"]).exit_code == 1
    monkeypatch.setenv("AGL_DEBUG", "1")
    assert isinstance(CliRunner().invoke(app, ["try"]).exception, LightningError)


def test_what_agl_rollout_left_is_no_training_to_resume(agl: AGL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.create("runs", "demo-rollout")
    folder.write_config('tasks = "gone.jsonl"')
    code, output = agl("train", "--resume", folder.name)
    assert code == 1
    assert "has no state.json, so there is no training to resume" in output.replace("\n", " ")
    for command in (["train", "--resume", "latest"], ["export", "latest", "model"]):
        code, output = agl(*command)
        assert code == 2
        assert "There is no training run under runs" in output.replace("\n", " ")


def test_a_part_whose_library_may_lie_elsewhere_refers_to_the_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    plugin = SimpleNamespace(register_engines=lambda register: register("far", "m:f", elsewhere=("no_such_library",)))
    report(Registry({"own": plugin}), Console(width=120))
    assert "no_such_library is not here: see `agl doctor`" in capsys.readouterr().out


def test_plugins_lists_what_is_registered_what_is_missing_and_what_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    def register_engines(register: object) -> None:
        register("warp", "warp:Engine", summary="fast [very]", extra="warp", needs=("warp_drive",))  # type: ignore[operator]

    def register_stores(register: object) -> None:
        raise ZeroDivisionError("by design")

    found = Registry({"good": SimpleNamespace(register_engines=register_engines), "bad": SimpleNamespace(register_stores=register_stores)})
    report(found, Console(width=160))
    output = capsys.readouterr().out
    for text in (
        "engines",
        "warp",
        "fast [very]",
        "no: warp_drive",
        "pip install 'agentlightning[warp]'",
        "broken plugin 'bad'",
        "by design",
    ):
        assert text in output, text


def test_the_list_of_models_says_what_is_in_the_cache(agl: AGL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGL_CACHE", str(tmp_path))
    code, output = agl("models", "list")
    assert code == 0
    assert "smollm2-135m" in output
    assert str(tmp_path) in output.replace("\n", "")


def test_the_current_folder_is_on_the_import_path_of_the_command(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['agl', '--version']\nfrom agentlightning.cli.main import main\ntry: main()\nfinally: print(sys.path[0])"
    path = [each for each in sys.path if each]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == str(tmp_path.resolve())


def test_init_below_a_file_is_refused_and_a_folder_with_a_space_is_quoted(
    agl: AGL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("")
    code, output = agl("init", "--folder", "afile/x")
    assert code
    assert "afile/x" in output
    assert "Next: cd 'p q', then" in agl("init", "--folder", "p q")[1]
