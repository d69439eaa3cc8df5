"""verl's training worker with our loss, and with weights as files. Import it only in verl's environment."""

# verl has an environment of its own.
# pyright: reportMissingImports=false
from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, register
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name
from verl.workers.config import ActorConfig, TrainingWorkerConfig
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp import FSDPEngineWithLMHead
from verl.workers.engine_workers import TrainingWorker

OFF = 1e9
"""A clip bound that no ratio reaches."""


class Engine(FSDPEngineWithLMHead):
    """verl's engine with the torch trainer's rules: only matrices decay, and the rollouts of other weights are not trained."""

    _refused = False
    """Whether the gradients are those of other weights' rollouts."""

    def _build_optimizer(self, module: Any) -> Any:
        optimizer = super()._build_optimizer(module)
        (group,) = optimizer.param_groups
        vectors = [p for p in group["params"] if p.ndim < 2]
        group["params"] = [p for p in group["params"] if p.ndim >= 2]
        optimizer.add_param_group({**group, "params": vectors, "weight_decay": 0.0})
        return optimizer

    def forward_backward_batch(self, data: TensorDict, loss_function: Any, forward_only: bool = False) -> Any:
        outputs = super().forward_backward_batch(data, loss_function, forward_only=forward_only)
        limit = tu.get(data, key="mismatch_limit", default=None)
        if limit is not None and not forward_only:
            metrics = outputs["metrics"]
            sums = torch.tensor([sum(metrics[f"agl/mismatch_{name}"]) for name in ("abs", "count")], device=get_device_name())
            torch.distributed.all_reduce(sums, group=self.get_data_parallel_group())
            self._refused = bool(sums[0] > limit * sums[1])
            metrics["agl/refused"] = [float(self._refused)]
        return outputs

    def optimizer_step(self) -> float:
        if self._refused:
            self._refused = False
            self.optimizer_zero_grad()
            return 0.0
        return super().optimizer_step()


class Worker(TrainingWorker):
    """One process of the worker group."""

    def __init__(self, config: TrainingWorkerConfig) -> None:
        if get_device_name() == "cpu" and not torch.distributed.is_initialized():  # verl would otherwise name the CPU twice
            torch.distributed.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
        EngineRegistry._engines["language_model"]["fsdp2"] = {get_device_name(): Engine}  # its `register` replaces nothing
        super().__init__(config)
        self.set_loss_fn(_loss)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next steps."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def write(self, folder: str, form: str) -> None:
        """Write the weights.

        `form` is `model`, `adapter` (in peft's format), or `merged` (the model with its adapter). All workers take part, and the first one
        writes.
        """
        params, _ = self.engine.get_per_tensor_param(**({} if form == "model" else {"base_sync_done": True}))
        dtype = _dtype()
        state = {name: _gathered(value).to(dtype) if value.is_floating_point() else _gathered(value) for name, value in params}
        if torch.distributed.get_rank() == 0:
            if form == "model":
                _write_model(Path(folder), state, self.config.model_config)
            else:
                _write_adapter(Path(folder), state, self.engine)
            if form == "merged":
                _merge(Path(folder), self.config.model_config)
            if form != "adapter":
                _write_tokenizer(Path(folder), self.config.model_config.local_path)
        torch.distributed.barrier()


def _dtype() -> torch.dtype:
    return torch.float32 if get_device_name() == "cpu" else torch.bfloat16


def _gathered(value: torch.Tensor) -> torch.Tensor:
    value = value.full_tensor() if hasattr(value, "full_tensor") else value  # type: ignore[operator]
    return value.detach().cpu().contiguous()


def _write_model(folder: Path, state: dict[str, torch.Tensor], config: Any) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config.hf_config, dtype=_dtype())
    model.save_pretrained(folder, state_dict=state)
    if config.generation_config is not None:
        config.generation_config.save_pretrained(folder)


def _write_tokenizer(folder: Path, source: str) -> None:
    from transformers import AutoTokenizer

    with contextlib.suppress(OSError, ValueError):  # not every model folder has one
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def _write_adapter(folder: Path, state: dict[str, torch.Tensor], engine: Any) -> None:
    module = getattr(engine.module, "_fsdp_wrapped_module", engine.module)
    module.peft_config["default"].save_pretrained(folder)
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})


def _merge(folder: Path, config: Any) -> None:
    """Replace the adapter in a folder with the merged model. The base is not trained, so it comes from its files."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(config.local_path, dtype=_dtype())
    merged = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).unlink()
    merged.save_pretrained(folder)


def _loss(model_output: dict[str, Any], data: TensorDict, dp_group: Any = None) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the sum of weight * term over this worker's trained tokens, times the number of workers, because FSDP averages over them."""
    logprob = model_output["log_probs"].values()
    loss, clip = data["loss"], {key: data[key] for key in ("clip_low", "clip_high", "dual_clip") if key in data}
    mask, weight, advantage, rollout_logprobs, sampled, fresh = (
        data[name].values().to(logprob.device) for name in ("mask", "weight", "advantage", "rollout_logprobs", "sampled", "fresh")
    )
    old_logprobs = data["old_logprobs"].values().to(logprob) if "old_logprobs" in data else logprob.detach()
    weight, advantage = weight.to(logprob), advantage.to(logprob)
    if loss == "sft":
        value = -(weight * advantage * logprob * mask).sum() * data["dp_size"]
    else:
        config = _actor(clip.get("clip_low", 0.2), clip.get("clip_high", 0.2), clip.get("dual_clip") or OFF)
        config.global_batch_info["dp_size"] = data["dp_size"]
        value, _ = get_policy_loss_fn({"ppo_clip": "vanilla", "cispo": "cispo"}[loss])(
            old_log_prob=old_logprobs[None],
            log_prob=logprob[None],
            advantages=advantage[None],
            response_mask=mask[None],
            loss_agg_mode="token-sum",
            config=config,
            rollout_is_weights=weight[None],
        )
    with torch.no_grad():
        ratio, gap = torch.exp(logprob - old_logprobs)[mask], old_logprobs - rollout_logprobs.to(old_logprobs)
        outside = (ratio < 1 - clip.get("clip_low", OFF)) | (ratio > 1 + clip.get("clip_high", OFF))
        measured = {
            "loss": float(value) / data["dp_size"],
            "count": float(mask.sum()),
            "entropy": float(model_output["entropy"].values()[mask].sum()),
            "ratio": float(ratio.sum()),
            "clipped": float(outside.sum()),
        }
        for name, chosen in (("mismatch", sampled & fresh), ("off_policy", sampled & ~fresh)):  # sums over the tokens, and the maximum
            gaps = gap[chosen]
            measured |= {
                f"{name}_count": float(len(gaps)),
                f"{name}_abs": float(gaps.abs().sum()),
                f"{name}_square": float(gaps.double().square().sum()),
                f"{name}_kl": float((torch.expm1(gaps) - gaps).sum()),
                f"{name}_abs_max": float(gaps.abs().max()) if len(gaps) else 0.0,
            }
    return value, {f"agl/{name}": metric for name, metric in measured.items()}


def _actor(low: float, high: float, dual: float) -> ActorConfig:
    return ActorConfig(
        strategy="fsdp2",
        rollout_n=1,
        use_dynamic_bsz=True,
        clip_ratio=low,
        clip_ratio_low=low,
        clip_ratio_high=high,
        clip_ratio_c=dual,
        optim=SimpleNamespace(),  # type: ignore[arg-type]
    )


def tensors(arrays: dict[str, Any]) -> TensorDict:
    """Return rows in verl's format: nested tensors, one batch entry per row."""
    lengths = torch.from_numpy(arrays["lengths"]).tolist()

    def nested(name: str) -> torch.Tensor:
        return torch.nested.as_nested_tensor(list(torch.from_numpy(arrays[name].copy()).split(lengths)), layout=torch.jagged)

    columns = {name: nested(name) for name in arrays if name not in ("lengths", "temperature", "ids")}
    places = [torch.arange(length) for length in lengths]
    columns |= {
        "input_ids": nested("ids"),
        "position_ids": torch.nested.as_nested_tensor(places, layout=torch.jagged),
        "loss_mask": torch.nested.as_nested_tensor(
            list(torch.from_numpy(arrays["mask"].astype("int64")).split(lengths)) if "mask" in arrays else [p * 0 + 1 for p in places],
            layout=torch.jagged,
        ),
        "temperature": torch.from_numpy(arrays["temperature"].copy()),
    }
    data = TensorDict(columns, batch_size=[len(lengths)])
    tu.assign_non_tensor(data, calculate_entropy=True, compute_loss=False, global_token_num=None)
    return data
