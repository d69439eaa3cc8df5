"""Run in verl's environment: verl's TransferQueue and replay buffer, with our manager between them and a tiny model. Writes what verl
has got as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import ray
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils import tensordict_utils as tu
from verl.workers.rollout.replica import TokenOutput

from agentlightning.types import Sampling, ints
from agentlightning_torch.engine import TorchEngine, TorchEngineSettings
from agentlightning_torch.testing import tiny_model
from agentlightning_torch.weights import get_weights
from agentlightning_verl.agent_loop import LightningAgentLoopManager

FOLDER = Path(sys.argv[1])
AGENT = """
from openai import AsyncOpenAI

async def solve(task, llm):
    if task["extra_info"]["bad"]:
        raise RuntimeError("this one fails")
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
        messages = list(task["raw_prompt"])
        for turn in range(2):
            answer = await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=8)
            messages += [{"role": "assistant", "content": answer.choices[0].message.content or ""}, {"role": "user", "content": "more"}]
        if task["index"] == 1:  # a sub-agent with a conversation of its own
            await client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": "judge"}], max_tokens=4)
    return 0.25 + task["index"]
"""


class Client:
    """Stands where verl's client of its servers stands: the same call, answered by the torch engine."""

    def __init__(self, path: str) -> None:
        files = tiny_model(path)
        self.engine = TorchEngine(get_weights({}, files, device="cpu", dtype="float32"), TorchEngineSettings())
        self.asked: list[str] = []

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> TokenOutput:
        self.asked.append(request_id)
        assert sampling_params["logprobs"]
        assert sampling_params["top_k"] == -1
        sampling = Sampling(
            temperature=sampling_params["temperature"],
            max_tokens=sampling_params["max_tokens"],
            stop_ids=tuple(sampling_params["stop_token_ids"]),
            seed=sampling_params["seed"],
        )
        ids, scores = [], []
        async for chunk in self.engine.generate(ints(prompt_ids), sampling):
            ids += chunk.ids.tolist()
            scores += chunk.logprobs.tolist()  # type: ignore[union-attr]
        return TokenOutput(token_ids=ids, log_probs=scores, stop_reason="completed", extra_fields={"global_steps": 7})


def prompts(validate: bool) -> Any:
    count = 3
    rows = {
        "uid": [f"{'val' if validate else 'train'}-{n}" for n in range(count)],
        "raw_prompt": [[{"role": "user", "content": f"question {n}"}] for n in range(count)],
        "extra_info": [{"bad": n == 2} for n in range(count)],
        "index": list(range(count)),
        "dummy_tensor": torch.zeros(count, 1),
    }
    batch = tu.get_tensordict(
        {name: value if isinstance(value, torch.Tensor) else tu.NonTensorStack(*value) for name, value in rows.items()}
    )
    tu.assign_non_tensor_data(batch, "global_steps", 7)
    if validate:
        tu.assign_non_tensor_data(batch, "validate", True)
    return batch


def main() -> None:
    torch.set_num_threads(1)
    ray.init(num_cpus=4, include_dashboard=False)
    tq.init(OmegaConf.create({"enable": True, "backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
    (FOLDER / "my_agent.py").write_text(AGENT)
    (FOLDER / "agent.toml").write_text(f'agent = "my_agent:solve"\nstore = "sqlite:{FOLDER / "agl.db"}"\n[runner]\nattempts = 1\n')
    (FOLDER / "model").mkdir()
    client = Client(str(FOLDER / "model"))
    rollout = {
        "name": "vllm", "n": 2, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "prompt_length": 256, "response_length": 256,
        "val_kwargs": {"n": 1, "do_sample": False, "temperature": 0.0}, "agent": {"agent_loop_config_path": str(FOLDER / "agent.toml")},
    }  # fmt: skip
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout, "model": {"path": str(FOLDER / "model")}}})
    manager = LightningAgentLoopManager.create(config=config, llm_client=client, teacher_client=None, reward_loop_worker_handles=None)
    found: dict[str, Any] = {}
    for partition in ("train", "val"):
        batch = prompts(partition == "val")
        tags = [{"is_prompt": True, "status": "pending", "global_steps": 7} for _ in range(3)]
        tq.kv_batch_put(keys=list(batch["uid"]), partition_id=partition, tags=tags)
        manager.generate_sequences(batch)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            listed = tq.kv_list(partition)[partition]
            if all(listed[f"{partition}-{n}"]["status"] in ("finished", "failure") for n in range(3)):
                break
            time.sleep(0.2)
        keys = sorted(key for key in listed if key.count("_") == 2)
        fields = ["prompts", "responses", "response_mask", "loss_mask", "input_ids", "position_ids", "rollout_log_probs", "rm_scores"]
        data = tq.kv_batch_get(keys=keys, partition_id=partition, select_fields=fields)
        found[partition] = {
            "prompts": {key: tag["status"] for key, tag in listed.items() if key.count("_") == 0},
            "tags": {key: listed[key] for key in keys},
            "samples": {key: {name: data[name][place].tolist() for name in fields} for place, key in enumerate(keys)},
        }
    found["asked"] = len(set(client.asked))
    found["sampled"] = sampled()
    found["replay"] = replay()
    manager.close()
    asyncio.run(client.engine.close())
    ray.shutdown()
    (FOLDER / "found.json").write_text(json.dumps(found))  # Ray writes to the outputs as well


def sampled() -> int:
    """How many rows verl's own replay buffer samples of it: of all three prompts, for of fewer it takes any; the failed one has none."""
    buffer = ReplayBuffer(
        trainer_mode="sync",
        trainer_config=OmegaConf.create({}),
        max_off_policy_threshold=None,
        max_off_policy_strategy="drop",
        sampler_kwargs={},
        poll_interval=0.1,
    )
    batch, _ = buffer.sample(global_steps=7, partition_id="train", batch_size=3)
    return len(batch.keys)


def replay() -> list[str]:
    return sorted(tq.kv_list("train").get("train", {}))


if __name__ == "__main__":
    main()
