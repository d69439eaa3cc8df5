"""Models by name: a registered model, a folder, a GGUF file, a LoRA adapter, a run, or a hub id.

Engines and trainers get a folder that `from_pretrained` loads, or a hub id. A GGUF file is dequantised and an adapter is merged into its
base once, into the cache. The cache knows them by their content.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import platformdirs

from agentlightning.config.run_folders import latest_training
from agentlightning.contracts.model import ModelFiles
from agentlightning.contracts.rendering import FILE as RENDERING
from agentlightning.errors import ConfigError, RunError, unknown
from agentlightning.files import safetensors_header
from agentlightning.registry.registry import Registry, registry
from agentlightning.types import new_id

FetchProgress = Callable[[str, float | None], None]
"""Called with a phase (`downloading`) and its finished fraction, 0 to 1; None: unknown."""
ADAPTER = "adapter_config.json"
HUB_SECONDS = 5.0
"""Seconds to wait for the hub before it counts as unreachable."""
OTHER_FORMS = " You can also name a folder, a .gguf file, a LoRA adapter, a run (`runs/x`, `latest`), or a hub id (`owner/name`)."


def cache_folder() -> Path:
    """Return `AGL_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("AGL_CACHE") or platformdirs.user_cache_dir("agentlightning"))


def find_model(name: str, *, progress: FetchProgress | None = None, plugins: Registry | None = None, weights: bool = True) -> ModelFiles:
    """Find a model by any of its names, and prepare what is not in the cache yet: a download, a GGUF file, an adapter.

    `weights=False` prepares only configuration and tokenizer. Raises `ConfigError` for a name that leads to no model, `RunError` for a run
    without weights.
    """
    finder = _Finder(plugins or registry(), progress or (lambda what, part: None), weights)
    return finder.find(name)


def is_model(name: str) -> bool:
    """Whether a name is that of a registered model, or of files that are no run."""
    path = Path(name).expanduser()
    return name in registry().names("models") or path.is_file() or (path.is_dir() and not is_run(path))


def model_path(name: str, base: Path) -> str:
    """Return the absolute path of a model on this disk, relative to `base` or in `./runs`; any other name unchanged."""
    if name in registry().names("models"):
        return name
    path = base / Path(name).expanduser()
    if path.is_file() or (path.is_dir() and not is_run(path)):
        return str(path.resolve())
    run = path if path.is_dir() else find_run(name)
    return name if run is None else str(best_weights(run))


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, and no model itself."""
    files = [(folder / file).exists() for file in ("config.toml", "result.json", "state.json")]
    return any(files) and not (folder / "config.json").exists() and not (folder / ADAPTER).exists()


def find_run(name: str) -> Path | None:
    """Return the run folder of a name: a folder, a folder in `./runs`, or `latest`, the last training run. None: there is none."""
    if name == "latest":
        return latest_training()
    return next((path.resolve() for path in (Path(name), Path("runs") / name) if path.is_dir() and is_run(path)), None)


def best_weights(run: Path, policy: str | None = None) -> Path:
    """Return the folder of a run's best weights. Of a run with several policies, it is that of one `policy`. Raises `RunError`
    if it has none."""
    result = run_result(run)
    if "policies" in result or policy is not None:
        return _policy_weights(run, result, policy)
    if "checkpoint" not in result:
        advice = f"If it is a stopped training run, continue it with `agl train --resume {run.name}`."
        raise RunError(f"Run {run.name} has no trained weights. {advice}")
    path = run / str(result["checkpoint"])
    if not path.is_dir():
        raise RunError(f"The best weights of run {run.name} are gone: {path} does not exist. Restore the folder, or name another run.")
    return path.resolve()


def _policy_weights(run: Path, result: dict[str, Any], policy: str | None) -> Path:
    policies: dict[str, dict[str, Any]] = result.get("policies", {})
    if not policies:
        raise ConfigError(f"Run {run.name} has one policy, and you name {policy!r}. Leave the name of the policy out.")
    if policy is None:
        names = ", ".join(policies)
        raise RunError(
            f"Run {run.name} has several policies: {names}. Serve all of them with `agl serve {run.name}`, or export one with "
            f"`agl export {run.name} FOLDER --policy {next(iter(policies))}`."
        )
    if policy not in policies:
        raise ConfigError(unknown("policy", policy, list(policies)))
    if "checkpoint" not in policies[policy]:
        raise RunError(f"Policy {policy!r} of run {run.name} is the model before training. Use that model.")
    path = run / str(policies[policy]["checkpoint"])
    if not path.is_dir():
        raise RunError(f"The weights of policy {policy!r} of run {run.name} are gone: {path} does not exist. Restore the folder.")
    return path.resolve()


def run_result(run: Path) -> dict[str, Any]:
    """Return the result of a run; empty: it has none."""
    try:
        return dict(json.loads((run / "result.json").read_bytes()))
    except (OSError, ValueError):
        return {}


def weights_problem(folder: Path) -> str | None:
    """Return what is wrong with the weights of a model folder: there are none, or a safetensors file was cut off."""
    files = [file for kind in ("*.safetensors", "*.bin", "*.pt", "*.h5", "*.msgpack") for file in sorted(folder.glob(kind))]
    if not files:
        return "no weights in its folder. Put model.safetensors there, or download the model again."
    cut = next((file for file in files if file.suffix == ".safetensors" and not _is_complete(file)), None)
    return None if cut is None else f"incomplete or damaged weights in {cut.name}. Download the file again."


def _is_complete(file: Path) -> bool:
    try:
        safetensors_header(file)
    except ValueError:
        return False
    return True


COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "chat_template.jinja", RENDERING,
)  # fmt: skip
"""Files beside a GGUF file that its conversion reads."""


class _Finder:
    """One search for a model."""

    def __init__(self, plugins: Registry, progress: FetchProgress, weights: bool) -> None:
        self.plugins, self.progress, self.weights = plugins, progress, weights

    def find(self, name: str, nearby: Path | None = None) -> ModelFiles:
        """Find a model. `nearby`: paths are relative to this folder too."""
        if name in self.plugins.names("models"):
            folder = cache_folder() / "models" / name
            if not (folder / "config.json").is_file():
                fetch = self.plugins.load("models", name)
                _fill(folder, lambda part: fetch(part, self.progress))
            return ModelFiles(name, str(folder))
        for path in [Path(name).expanduser(), *([nearby / name] if nearby is not None else [])]:
            if path.is_file():
                return self._file(path.resolve())
            if path.is_dir() and not is_run(path):
                return self._folder(path.resolve())
        run = find_run(name)
        if run is not None:
            return ModelFiles(run.name, str(best_weights(run)))
        if name == "latest":
            raise ConfigError("The folder ./runs has no training run. Start one with `agl train CONFIG.toml`, or name another model.")
        if name.startswith("runs/") and Path("runs").is_dir():
            raise ConfigError(f"There is no run or model {name!r} on this disk. `agl runs` lists the runs.")
        if _is_hub_id(name):
            return self._hub(name)
        raise ConfigError(unknown("model", name, self.plugins.names("models")) + OTHER_FORMS)

    def _file(self, path: Path) -> ModelFiles:
        if path.suffix.lower() != ".gguf":
            raise ConfigError(f"The model {str(path)!r} is a file, but not a .gguf file. Name its folder instead.")
        if "-of-0" in path.stem:
            raise ConfigError(
                f"{path.name} is one part of a GGUF file. Join the parts with `llama-gguf-split --merge` and name the result."
            )
        companions = [path.parent / name for name in COMPANIONS]
        folder = self._converted("gguf", path.stem, [path, *companions], lambda part, convert: convert(path, part, weights=self.weights))
        return ModelFiles(path.stem, str(folder))

    def _folder(self, path: Path) -> ModelFiles:
        if (path / ADAPTER).is_file() and not any(path.glob("model*.safetensors")):
            return self._adapter(path)
        ggufs = [file for file in sorted(path.glob("*.gguf")) if not file.name.startswith("mmproj")]
        if ggufs and not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
            if len(ggufs) > 1:
                names = ", ".join(file.name for file in ggufs)
                raise ConfigError(f"The folder {str(path)!r} holds several GGUF files: {names}. Name one of the files.")
            return replace(self._file(ggufs[0]), name=path.name)
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"The model folder {str(path)!r} has no config.json. Name a folder that `from_pretrained` loads, or that holds a .gguf "
                "file, a LoRA adapter, or a run."
            )
        problem = weights_problem(path) if self.weights else None
        if problem is not None:
            raise ConfigError(f"The model {str(path)!r} has {problem}")
        return ModelFiles(path.name, str(path))

    def _adapter(self, path: Path) -> ModelFiles:
        try:
            settings: Any = json.loads((path / ADAPTER).read_bytes())
            base_name = settings["base_model_name_or_path"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path / ADAPTER} names no base model ({error!r}). Set base_model_name_or_path to a folder or hub id."
            ) from error
        if not isinstance(base_name, str) or not base_name:
            raise ConfigError(f"{path / ADAPTER} has the base model {base_name!r}. Set base_model_name_or_path to a folder or hub id.")
        try:
            base = self.find(base_name, nearby=path)
        except ConfigError as error:
            raise ConfigError(f"The LoRA adapter {str(path)!r} needs its base model {base_name!r}. {error}") from error
        sources = sorted(file for file in path.iterdir() if file.suffix in (".json", ".jinja", ".safetensors", ".bin", ".model"))
        if Path(base.path).is_dir():
            sources += sorted(file for file in Path(base.path).iterdir() if file.suffix in (".json", ".jinja", ".safetensors", ".bin"))
        folder = self._converted(
            "lora", path.name, sources, lambda part, merge: merge(path, base.path, part, weights=self.weights), salt=base.path
        )
        return ModelFiles(path.name, str(folder))

    def _converted(self, kind: str, name: str, sources: Sequence[Path], convert: Callable[[Path, Any], None], *, salt: str = "") -> Path:
        """Return the folder in the cache with the conversion of these files, made by the converter `kind`."""
        self.progress(f"reading {name}", None)
        key = content_key([file for file in sources if file.is_file()], salt)
        folder = cache_folder() / "converted" / f"{kind}-{key}"
        described = folder.with_name(f"{folder.name}.described")
        if (folder / "config.json").is_file():
            return folder
        if not self.weights and (described / "config.json").is_file():
            return described
        converter = self.plugins.load("converters", kind)
        self.progress(f"converting {name}", None)
        target = folder if self.weights else described

        def fill(part: Path) -> None:
            convert(part, converter)
            own = sources[0].parent / RENDERING
            if own.is_file():
                shutil.copy(own, part / RENDERING)

        _fill(target, fill)
        return target

    def _hub(self, name: str) -> ModelFiles:
        """A hub id, or the adapter under that id. Without the hub: the folder in the cache of its library."""
        config, adapter = _in_hub_cache(name, "config.json"), _in_hub_cache(name, ADAPTER)
        if adapter is not None and config is None:
            return replace(self._adapter(adapter.parent), name=name)
        try:
            _ask_hub(name)
        except ConfigError:
            if config is None:
                raise
            return ModelFiles(name, str(config.parent))
        return ModelFiles(name, name)


def content_key(files: Sequence[Path], salt: str = "") -> str:
    """Return a hash of contents, and of the names of a model's files. A file whose size and time are known is not read again."""
    memo_file = cache_folder() / "digests.json"
    try:
        memo: dict[str, str] = dict(json.loads(memo_file.read_bytes()))
    except (OSError, ValueError):
        memo = {}
    before, total = len(memo), hashlib.sha256(salt.encode())
    for file in files:
        state = file.stat()
        identity = f"{file.resolve()}:{state.st_size}:{state.st_mtime_ns}"
        if identity not in memo:
            with file.open("rb") as data:
                memo[identity] = hashlib.file_digest(data, "sha256").hexdigest()
        name = "" if file.suffix == ".gguf" else file.name  # a file of its own, under any name
        total.update(f"{name}:{memo[identity]};".encode())
    if len(memo) > before:
        memo_file.parent.mkdir(parents=True, exist_ok=True)
        part = memo_file.with_name(f".digests.{new_id()}")
        part.write_text(json.dumps(memo), encoding="utf-8")
        part.replace(memo_file)
    return total.hexdigest()[:16]


def _fill(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary folder and rename it, so that a broken download never looks like a model."""
    part = folder.with_name(f".{folder.name}.{new_id()}")
    part.mkdir(parents=True)
    try:
        fill(part)
        if not folder.exists():
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def model_folder(path: str) -> Path | None:
    """Return the folder with a model's files, for its path or hub id. None: there is none on this disk."""
    if path and Path(path).is_dir():
        return Path(path).resolve()
    config = _in_hub_cache(path, "config.json") if _is_hub_id(path) else None
    return None if config is None else config.parent


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith(".gguf")


def _in_hub_cache(name: str, file: str) -> Path | None:
    try:
        hub: Any = importlib.import_module("transformers.utils.hub")
    except ImportError:
        return None
    quiet: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        path: Any = hub.cached_file(name, file, local_files_only=True, **quiet)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(f"{name!r} cannot be read from the cache of the hub: {reason}. Use owner/name.") from error
    return Path(path) if isinstance(path, str) else None


def _ask_hub(name: str) -> None:
    """Raise `ConfigError` if the hub cannot be reached, or does not have the model."""
    try:
        constants: Any = importlib.import_module("huggingface_hub.constants")
    except ImportError:  # the engine says what to install
        return
    end = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    advice = "Name a folder, or a model from `agl models list`."
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise ConfigError(f"Model {name!r} is not in the cache, and HF_HUB_OFFLINE is set. {advice}")
    try:
        answer = httpx.head(f"{end}/{name}/resolve/main/config.json", timeout=HUB_SECONDS, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(f"Model {name!r} is not in the cache, and {end} cannot be reached ({error}). {advice}") from error
    if answer.status_code == 404:
        raise ConfigError(f"Model {name!r} is not in the cache, and {end} has no config.json for it. {advice}")
