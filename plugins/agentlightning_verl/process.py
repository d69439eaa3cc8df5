"""verl's process: starts Ray and the workers, and answers the trainer's messages one by one.

Run it in verl's environment as `python -m agentlightning_verl.process FILE`, with the socket's file number. It ends when the socket closes.
"""

# verl has an environment of its own.
# pyright: reportMissingImports=false
from __future__ import annotations

import socket
import sys
import traceback
from importlib.util import find_spec
from itertools import chain
from typing import Any

import numpy as np
import ray
import torch
from verl.single_controller.ray.base import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig

from agentlightning_verl.message import Message, receive, send
from agentlightning_verl.worker import Worker, tensors


class Group:
    """The workers of one trainer."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        cpu = get_device_name() == "cpu"
        self.size: int = facts["workers"] * facts["nodes"]
        ray.init(
            address=facts["ray_address"],
            include_dashboard=None if facts["ray_address"] else False,
            **({"num_cpus": max(facts["workers"], 1)} if cpu and not facts["ray_address"] else {}),
            runtime_env={"env_vars": facts["variables"]} if facts["ray_address"] else None,
        )
        pool = RayResourcePool(process_on_nodes=[facts["workers"]] * facts["nodes"], use_gpu=not cpu, max_colocate_count=1)
        config = self._config(cpu)
        self.vocabulary: int = config.model_config.hf_config.get_text_config().vocab_size
        init = RayClassWithInitArgs(ray.remote(Worker), config)
        self.workers = RayWorkerGroup(resource_pool=pool, ray_cls_with_init=init, device_name=get_device_name(), use_gpu=not cpu)
        self.workers.reset()

    def _config(self, cpu: bool) -> TrainingWorkerConfig:
        facts, half = self.facts, "fp32" if cpu else "bf16"
        packed = not cpu and find_spec("flash_attn") is not None  # otherwise rows are padded, with PyTorch's attention
        lora = {"lora_rank": facts["lora_rank"], "lora_alpha": facts["lora_alpha"]} if facts["train"] == "lora" else {}
        return TrainingWorkerConfig(
            model_type="language_model",
            model_config=HFModelConfig(
                path=facts["model"],
                load_tokenizer=False,
                use_remove_padding=packed,
                override_config={} if packed else {"attn_implementation": "sdpa"},
                enable_gradient_checkpointing=facts["gradient_checkpointing"],
                **lora,
            ),
            engine_config=FSDPEngineConfig(
                strategy="fsdp2",
                use_torch_compile=not cpu,
                model_dtype="fp32",
                mixed_precision={"param_dtype": half, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
                max_token_len_per_gpu=facts["tokens_per_pack"],
                infer_max_token_len_per_gpu=facts["tokens_per_pack"],
                use_remove_padding=packed,
                param_offload=facts["offload"],
                optimizer_offload=facts["offload"],
            ),
            optimizer_config=FSDPOptimizerConfig(
                lr=facts["lr"],
                weight_decay=facts["weight_decay"],
                betas=tuple(facts["betas"]),
                clip_grad=facts["clip_norm"],
                total_training_steps=1,
                lr_warmup_steps=0,
            ),
            checkpoint_config=CheckpointConfig(
                save_contents=["model", "optimizer", "extra"], load_contents=["model", "optimizer", "extra"]
            ),
        )

    def score(self, message: Message) -> Message:
        """Return the log-probability of each place's next token, (places,)."""
        data, rows = self._data(message.arrays)
        logprobs = self._result(self.workers.infer_batch(data))["log_probs"]
        return Message("scored", arrays={"logprob": np.concatenate([row.float().numpy() for row in logprobs.unbind()[:rows]])})

    def update(self, message: Message) -> Message:
        """Take one optimizer step."""
        facts = message.facts
        self.workers.set_lr(facts["lr"])
        data, _ = self._data(message.arrays)
        tu.assign_non_tensor(data, **facts["loss"])
        metrics = tu.get(self._result(self.workers.train_batch(data)), "metrics")
        own = {name.removeprefix("agl/"): _flat(value) for name, value in metrics.items() if name.startswith("agl/")}
        measured = {name: max(values) if name.endswith("_max") else sum(values) for name, values in own.items()}
        return Message("updated", {**measured, "grad_norm": float(metrics["grad_norm"])})

    def write(self, message: Message) -> Message:
        self.workers.write(message.facts["folder"], message.facts["form"])
        return Message("written")

    def save(self, message: Message) -> Message:
        self.workers.save_checkpoint(message.facts["folder"])
        return Message("saved")

    def restore(self, message: Message) -> Message:
        self.workers.load_checkpoint(message.facts["folder"])
        return Message("restored")

    def _data(self, arrays: Any) -> tuple[Any, int]:
        """Return the rows and their number, padded with empty rows until every worker has equally many."""
        data = tensors(arrays)
        rows = len(arrays["lengths"])
        extra = -rows % self.size
        if extra:
            empty = {name: np.concatenate([value[:0], np.zeros(2 * extra, value.dtype)]) for name, value in arrays.items()}
            empty |= {"lengths": np.full(extra, 2), "temperature": np.ones(extra, np.float32)}
            data = tensors({name: np.concatenate([value, empty[name]]) for name, value in arrays.items()})
        return data, rows

    @staticmethod
    def _result(future: Any) -> Any:
        return future.get() if type(future).__name__ == "DataProtoFuture" or not hasattr(future, "batch_size") else future


def _flat(value: Any) -> list[float]:
    """Flatten verl's metrics, one list per worker."""
    return list(chain.from_iterable(_flat(item) for item in value)) if isinstance(value, list | tuple) else [float(value)]


def main() -> None:
    torch.set_num_threads(1)
    connection = socket.socket(fileno=int(sys.argv[1]))
    group: Group | None = None
    while (message := receive(connection)) is not None:
        try:
            if message.kind == "start":
                group = Group(message.facts)
                answer = Message("started", {"vocabulary": group.vocabulary})
            else:
                assert group is not None
                answer = getattr(group, message.kind)(message)
        except Exception as error:
            traceback.print_exc()
            answer = Message("failed", {"error": f"{type(error).__name__}: {error}"})
        send(connection, answer)
    ray.shutdown()


if __name__ == "__main__":
    main()
