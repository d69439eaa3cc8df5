"""One copy of a model's weights for a run's engine and trainer.

Hold `lock` to run the model or to change it. After a change, set `policy` before releasing the lock. That raises `generation`, and the
engine drops its cache.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as bars

from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.contracts.served_policies import MAIN
from agentlightning.errors import ConfigError, EngineError, UnsupportedSetting
from agentlightning.types import Policy
from agentlightning_torch.adapters import Adapters, add_adapter, compare_adapter, plain, undone_on_error
from agentlightning_torch.number_type import number_type
from agentlightning_torch.own_layers import base_state
from agentlightning_torch.products import use_faster_products
from agentlightning_torch.workers import ending_workers

# peft 0.21 uses the old name of transformers 5
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

ADAPTER_SETTINGS = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")
"""Settings that change what an adapter's weights mean. The names of its weights tell its layers."""


HARMLESS = (
    "architectures", "attention_dropout", "bos_token_id", "dtype", "eos_token_id", "id2label", "initializer_range", "label2id",
    "max_position_embeddings", "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "return_dict", "torch_dtype",
    "transformers_version", "use_cache",
)  # fmt: skip
"""Fields of a configuration that do not change what a model computes. Nor do those that begin with `_`."""


class FairLock:
    """A reentrant lock that serves waiting threads in order.

    The engine takes it again right after each decode step. With `threading.RLock`, a trainer could wait forever.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._owner = 0
        self._depth = 0

    def __enter__(self) -> None:
        if self._owner != threading.get_ident():
            with self._turn:  # a waiting thread keeps the turn, so the last owner queues behind it
                self._lock.acquire()
            self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = 0
            self._lock.release()


class Weights:
    """A model in eval mode, with the policy of its weights, or with several policies over it."""

    def __init__(self, model: PreTrainedModel, policy: Policy, files: ModelFiles, device: torch.device, dtype: torch.dtype) -> None:
        self.model: Any = model
        """A transformers `PreTrainedModel`, or a trainer's peft `PeftModel` around it."""
        self.files = files
        self.device = device
        self.dtype = dtype
        self.lock = FairLock()
        self.generation = 0
        self.policies = {policy.name: policy}
        """By name: `main` alone, or the named ones."""
        self.adapters = Adapters()

    @property
    def policy(self) -> Policy:
        """Return the policy of the current weights, of several the first."""
        return next(iter(self.policies.values()))

    @policy.setter
    def policy(self, policy: Policy) -> None:
        """Name the policy of weights that have changed. Its name tells which one of several."""
        others = {name: other for name, other in self.policies.items() if (name == MAIN) == (policy.name == MAIN)}
        self.policies = others | {policy.name: policy}
        self.generation += 1

    def version_of(self, policy: str) -> int:
        """Return the version of a policy."""
        return self.policies[policy].version if self.adapters.named else self.policy.version

    def copy(self) -> Weights:
        """Return a copy of the weights. `take` updates it."""
        with self.lock:
            twin, adapters = copy.deepcopy((self.model, self.adapters))
            weights = Weights(twin.eval().requires_grad_(False), self.policy, self.files, self.device, self.dtype)
            weights.policies, weights.adapters = dict(self.policies), adapters
            for layers in adapters.own.values():
                for layer in layers.values():
                    layer.requires_grad_(False)
            return weights

    @ending_workers()
    def take(self, source: Weights) -> None:
        """Update this copy from `source`. Only trained parameters can differ."""
        with source.lock, self.lock, torch.no_grad():
            mine = dict(self.model.named_parameters())
            for name, theirs in source.model.named_parameters():
                if theirs.requires_grad:
                    mine[name].copy_(theirs)
            for policy, layers in source.adapters.own.items():
                for name, layer in layers.items():
                    self.adapters.own[policy][name].load_state_dict(layer.state_dict())
            for policy in source.policies.values():
                self.policy = policy

    def add_policy(self, policy: Policy, settings: Any = None) -> None:
        """Add a named policy: a fresh adapter with peft's `settings`, or the model as it is. The caller holds the lock."""
        if settings is not None:
            self.model = add_adapter(self.model, policy.name, settings)
            self.adapters.install(self.model)
        self.adapters.named = True
        self.policy = policy

    def load_state(self, folder: str | Path) -> None:
        """Load a folder from `save_pretrained`: a full model or a LoRA adapter.

        The caller sets `policy`. Raises `EngineError` without any change if the folder has no weights, or those of another model.
        """
        folder = Path(folder)
        adapter = (folder / "adapter_config.json").is_file()
        if not adapter and not (folder / "config.json").is_file():
            raise EngineError(
                f"{str(folder)!r} holds no weights: config.json and adapter_config.json are missing. Give a folder from `save_pretrained`."
            )
        with self.lock:
            try:
                if adapter:
                    self._load_adapter(folder)
                else:
                    self._load_full(folder)
            except EngineError:
                raise
            except Exception as error:
                raise EngineError(f"The weights in {str(folder)!r} cannot be loaded into {self.files.name!r}: {error}") from error
            self.generation += 1

    def _load_full(self, folder: Path) -> None:
        if not isinstance(self.model, PreTrainedModel):
            raise EngineError(
                f"{str(folder)!r} holds a full model, but this run trains a LoRA adapter on {self.files.name!r}. Load an adapter."
            )
        new, old = read_full(self, folder), self.model.state_dict()
        with torch.no_grad():
            for name, value in new.items():
                old[name].copy_(value)

    def _load_adapter(self, folder: Path) -> None:
        import peft  # slow to import, so only for adapters

        state = peft.load_peft_weights(str(folder), device=str(self.device))
        if isinstance(self.model, PreTrainedModel):
            with undone_on_error(self.model):
                model = peft.PeftModel.from_pretrained(self.model, str(folder)).eval()
                compare_adapter(folder, state, peft.get_peft_model_state_dict(model))
            self.model = model
            return
        name = self.model.active_adapter
        theirs, ours = peft.PeftConfig.from_pretrained(str(folder)), self.model.peft_config[name]
        for setting in ADAPTER_SETTINGS:
            new, old = getattr(theirs, setting, None), getattr(ours, setting, None)
            if new != old:
                raise EngineError(
                    f"The adapter in {str(folder)!r} has {setting} {new!r}, but the model's has {old!r}. Load one with the same settings."
                )
        compare_adapter(folder, state, peft.get_peft_model_state_dict(self.model, adapter_name=name))
        peft.set_peft_model_state_dict(self.model, state, adapter_name=name)


def read_full(weights: Weights, folder: Path) -> dict[str, torch.Tensor]:
    """Return the state of a full model in a folder. Raises `EngineError` unless it is complete, and computes what the weights' model does
    with them: names, shapes, and configuration are the same."""
    with no_bars():
        pair: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=weights.dtype, output_loading_info=True)
    model, loaded = pair
    new, old = model.state_dict(), base_state(weights.model)
    wrong = sorted(new.keys() ^ old.keys()) or [name for name in new if new[name].shape != old[name].shape]
    if not wrong:
        theirs, ours = (one.config.get_text_config().to_dict() for one in (model, plain(weights.model)))
        fields = [key for key in sorted(theirs.keys() & ours.keys()) if key not in HARMLESS and not key.startswith("_")]
        wrong = [key for key in fields if theirs[key] != ours[key]]
    if wrong:
        raise EngineError(f"{str(folder)!r} is not {weights.files.name!r}: {wrong[0]} differs. Load weights of the same model.")
    if missing := sorted(loaded["missing_keys"]):
        raise EngineError(f"{str(folder)!r} has no weights for {missing[0]}. Load a complete model.")
    return new


def chosen_type(files: ModelFiles, device: torch.device, dtype: str) -> torch.dtype:
    """Return the number type of a model's weights with this setting."""
    config = AutoConfig.from_pretrained(files.path).get_text_config()
    return number_type(dtype, device, getattr(config, "hidden_size", 0))


def get_weights(share: Share, files: ModelFiles, *, device: str = "auto", dtype: str = "auto") -> Weights:
    """Return the run's weights of a model. The first call loads them.

    `auto` is bfloat16 on a CUDA GPU and on a CPU that multiplies faster in it, else float32. Raises `ConfigError` if the model cannot be
    loaded, or is already loaded with another device or dtype.
    """
    place = find_device(device)
    key = _key(files)
    weights = share.get(key)
    if isinstance(weights, Weights):
        number = weights.dtype if dtype == "auto" else number_type(dtype, place, 0)
        asked = {"device": (device, place, weights.device), "dtype": (dtype, number, weights.dtype)}
        for name, (setting, wanted, present) in asked.items():
            if setting != "auto" and wanted != present:
                raise ConfigError(
                    f"{name} is {setting!r}, but the engine and trainer share weights with {name} {str(present)!r}. Use one value for both."
                )
        return weights
    try:
        number = chosen_type(files, place, dtype)
        with no_bars():
            model: Any = AutoModelForCausalLM.from_pretrained(files.path, dtype=number)
    except ConfigError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        if "Unrecognized configuration class" in str(error):  # the text names every class that transformers has
            raise UnsupportedSetting(
                f"transformers has no causal language model for {files.name!r} (in {files.path!r}). Use another model."
            ) from error
        raise ConfigError(
            f"Model {files.name!r} cannot be loaded from {files.path!r}: {error}. Expected a folder or hub id for transformers."
        ) from error
    model = model.to(place).eval()
    if place.type == "cpu" and number == torch.float32:
        use_faster_products(model, getattr(model.config.get_text_config(), "hidden_size", 0))
    _check_causal(model, files.name)
    weights = Weights(model, Policy(version=0, base=files.name, uri=f"memory:{key}"), files, place, number)
    share[key] = weights
    return weights


def _check_causal(model: PreTrainedModel, name: str) -> None:
    """Raise `UnsupportedSetting` unless the model reads token ids alone, from left to right."""
    ids = torch.arange(1, 9, device=model.device) % model.config.get_text_config().vocab_size
    rows = ids[None], ids[[0, 1, 2, 3, 7, 6, 5, 4]][None]
    kind = model.config.model_type
    try:
        with torch.no_grad():
            first, second = (model(input_ids=row, use_cache=False).logits[0, :4].float() for row in rows)
    except Exception as error:
        raise UnsupportedSetting(
            f"Model {name!r} ({kind}) does not run on token ids alone: {type(error).__name__}: {error}. Use a causal language model."
        ) from error
    if not torch.allclose(first, second, rtol=0.01, atol=0.01 * float(first.abs().max())):
        raise UnsupportedSetting(
            f"Model {name!r} ({kind}) reads the tokens that it should predict. Use a causal language model. If it was trained as a "
            "decoder, set is_decoder = true in its config.json."
        )


def is_loaded(share: Share, files: ModelFiles) -> bool:
    """Return True if a model's weights are loaded."""
    return _key(files) in share


def _key(files: ModelFiles) -> str:
    return f"torch:{files.path}"


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Hide the progress bars of transformers."""
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def find_device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)  # asks the driver, because a valid name may belong to an absent device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {error}. Expected 'auto', 'cpu' or 'cuda'.") from error
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device
