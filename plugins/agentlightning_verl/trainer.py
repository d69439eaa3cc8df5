"""A trainer on verl's FSDP2 workers, in their own processes.

It sends our batch, runs verl's forward, backward, and optimizer, and reads back the weights. verl's policy losses are summed with the
batch's advantages and weights, so the loss equals the torch trainer's. A step that fails before its first update leaves the weights
unchanged.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import LossSettings
from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.contracts.trainer import Capabilities, Trainer, check_capabilities, check_mismatch, mismatch
from agentlightning.errors import ConfigError, HalfStep, NonFinite, TrainerError, UnsupportedSetting
from agentlightning.rl.batch.packs import cut_packs
from agentlightning.rl.schedule import learning_rate
from agentlightning.runner.managed_process import Command, ManagedProcess
from agentlightning.runner.process_output import LogFile
from agentlightning.training.weight_sync import WeightCheck, weight_check_ids
from agentlightning.types import Policy, floats
from agentlightning_verl.environment import find_verl
from agentlightning_verl.message import Message, receive, send
from agentlightning_verl.rows import Rows, rows_of
from agentlightning_verl.settings import VerlSettings

FACTS = "trainer.json"
SCHEMA = 1
END = 5.0
"""Seconds for verl's process to end on its own."""
LOSSES = ("ppo_clip", "cispo", "sft")


class VerlTrainer(Trainer):
    """See `agentlightning.contracts.trainer.Trainer`."""

    Settings = VerlSettings

    @classmethod
    def offers(cls, settings: VerlSettings) -> Capabilities:
        """See `Trainer`."""
        why = "verl's critic is not used. Train with a critic in trainer 'torch'"
        return Capabilities(
            losses=frozenset(LOSSES),
            uris=frozenset({"file"}),
            forest=False,
            max_sequence_tokens=settings.tokens_per_pack,
            lora=True,
            why_no_critic=why,
        )

    @classmethod
    def check_settings(cls, settings: VerlSettings) -> None:
        """See `Trainer.check_settings`. Finds verl."""
        find_verl(settings.python)

    @classmethod
    async def create(cls, model: ModelFiles, settings: VerlSettings, share: Share) -> VerlTrainer:
        """Start verl's process, Ray, and the workers. Raises `ConfigError` without verl."""
        if settings.schedule != "constant" and settings.total_steps is None:
            raise ConfigError(f"trainer.schedule = {settings.schedule!r} needs total_steps outside a run. Set trainer.total_steps.")
        python, cuda = await asyncio.to_thread(find_verl, settings.python)
        if settings.device == "cuda" and not cuda:
            raise ConfigError(f"trainer.device is 'cuda', but {python} sees no GPU. Use 'auto' or 'cpu'.")
        trainer = cls(model, settings, python, cpu=settings.device == "cpu" or not cuda)
        try:
            await trainer._run(trainer._start)
        except BaseException:
            await trainer.close()
            raise
        return trainer

    def __init__(self, model: ModelFiles, settings: VerlSettings, python: str, *, cpu: bool) -> None:
        self.settings, self._model, self._cpu = settings, model, cpu
        self.policy = Policy(version=0, base=model.name, kind="lora" if settings.train == "lora" else "full", uri="verl:")
        self.capabilities = self.offers(settings)
        self.steps = 0
        """Number of steps that changed the weights, for the schedule."""
        self._folder = Path(tempfile.mkdtemp(prefix="agl-verl-"))
        (self._folder / "path").mkdir()
        # verl's environment gets only this package
        (self._folder / "path" / "agentlightning_verl").symlink_to(Path(__file__).parent, target_is_directory=True)
        ours, theirs = socket.socketpair()
        self._connection, self._failed, self._vocabulary = ours, False, 0
        self._thread, self._closed = ThreadPoolExecutor(1, "verl-trainer"), False
        line = [python, "-m", "agentlightning_verl.process", str(theirs.fileno())]
        command = Command(arguments=line, environment={**os.environ, **self._variables()}, files=[theirs.fileno()])
        self._log = LogFile(self._folder / "verl.log")
        with theirs:
            try:
                self._process = ManagedProcess(command, self._log)
            except OSError as error:
                raise ConfigError(f"verl cannot be started as {python!r}: {error}. Check trainer.python.") from error

    def _variables(self) -> dict[str, str]:
        return {
            "PYTHONPATH": str(self._folder / "path"),
            "TOKENIZERS_PARALLELISM": "false",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            **({"VERL_PLATFORM": "agl-cpu", "VERL_USE_EXTERNAL_MODULES": "agentlightning_verl.cpu_platform"} if self._cpu else {}),
        }

    async def step(self, batch: Batch, loss: LossSettings) -> tuple[Policy, dict[str, float]]:
        check_capabilities("verl", self.capabilities, loss, critic=batch.returns is not None)
        return await self._run(lambda: self._step(batch, loss))

    async def values(self, batch: Batch) -> NDArray[np.float64]:
        raise UnsupportedSetting(f"trainer 'verl': {self.capabilities.why_no_critic}")

    async def save(self, folder: Path) -> None:
        await self._run(lambda: self._save(Path(folder)))

    async def export(self, folder: Path) -> Policy:
        return await self._run(lambda: self._export(Path(folder)))

    async def restore(self, folder: Path) -> None:
        await self._run(lambda: self._restore(Path(folder)))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._connection.close()  # this ends the process
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), END)
        await self._process.stop()
        await asyncio.to_thread(self._thread.shutdown)
        if not self._failed:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _run(self, work: Any) -> Any:
        """Run it in the trainer's thread. A cancelled caller still waits for its end, because nobody can use half a step."""
        if self._closed:
            raise TrainerError("The verl trainer is closed. Take steps before close().")
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    # Below: the trainer's thread.

    def _start(self) -> None:
        self._connection.settimeout(self.settings.start_timeout)
        facts = {"model": self._model.path, "variables": self._variables(), **self.settings.facts()}
        self._vocabulary = int(self._ask(Message("start", facts)).facts["vocabulary"])
        self._connection.settimeout(None)

    def _ask(self, message: Message) -> Message:
        try:
            send(self._connection, message)
            answer = receive(self._connection)
        except OSError:
            answer = None
        if answer is None or answer.kind == "failed":
            self._failed = True
            if answer is not None:
                reason = answer.facts["error"].strip().splitlines()[-1]
            else:
                reason = "it stopped answering" if self._process.code is None else f"it {self._process.how}"
            failure = HalfStep if message.kind == "update" else TrainerError  # it may have updated some weights
            raise failure(f"verl's process failed to {message.kind}: {reason}. Its log {self._log.path} ends:\n{self._log.tail()}")
        return answer

    def _step(self, batch: Batch, loss: LossSettings) -> tuple[Policy, dict[str, float]]:
        self.old_logprobs = None
        if not batch.trained_tokens:
            return self.policy, {"tokens": 0.0, "tokens_trained": 0.0, "lr": 0.0}
        settings, began = self.settings, time.perf_counter()
        cut_packs(batch, settings.tokens_per_pack)  # names a sequence that does not fit
        parts = [p for p in (list(range(len(batch.rollout_ids)))[k :: loss.minibatches] for k in range(loss.minibatches)) if p]
        work = [rows_of(batch, part if len(parts) > 1 else None) for part in parts]
        several = loss.epochs * len(parts) > 1
        old = self._old(batch, work) if several else None
        if old is not None:
            check_mismatch(self, batch, old)
        lr = learning_rate(settings.lr, settings.schedule, settings.warmup_steps, settings.total_steps, self.steps)
        facts = {key: value for key, value in asdict(loss).items() if key in ("clip_low", "clip_high", "dual_clip")}
        if not several and math.isfinite(self.mismatch_limit):
            facts["mismatch_limit"] = self.mismatch_limit  # the workers compare before their optimizer step
        updates: list[dict[str, float]] = []
        for _ in range(loss.epochs):
            for rows in work:
                # each minibatch estimates the full loss, so it is scaled to it
                arrays = rows.arrays(batch, float(len(parts)), old, self.policy.version)
                update = self._ask(Message("update", {"lr": lr, "loss": {"loss": loss.name, **facts}}, arrays)).facts
                if update.pop("refused", 0.0):
                    raise mismatch(update["mismatch_abs"] / update["mismatch_count"], self.mismatch_limit)
                _check_finite(update, len(updates))
                updates.append(update)
        self.steps += 1
        self.old_logprobs = old
        places = sum(len(rows.ids) for rows in work) * (loss.epochs + several)
        metrics = {**_metrics(batch, updates, places, len(parts)), **_version_gaps(batch, self.policy.version)}
        seconds = time.perf_counter() - began
        self.policy = structs.replace(self.policy, version=self.policy.version + 1)
        return self.policy, {**metrics, "lr": lr, "seconds": seconds, "tokens_per_second": places / seconds}

    def _old(self, batch: Batch, work: list[Rows]) -> NDArray[np.float64]:
        """Return (tokens,) log-probabilities before the first update; NaN if not trained."""
        old = np.full(len(batch), np.nan)
        for rows in work:
            logprobs = self._ask(Message("score", arrays=rows.arrays(batch, 1.0, None, self.policy.version))).arrays["logprob"]
            trained = rows.token >= 0
            old[rows.token[trained]] = logprobs[trained]
        return old

    def _write(self, folder: Path, *, adapter: str) -> None:
        """Write the weights. `adapter` selects the format of a LoRA policy."""
        folder.mkdir(parents=True, exist_ok=True)
        form = adapter if self.settings.train == "lora" else "model"
        self._ask(Message("write", {"folder": str(folder.resolve()), "form": form}))

    def _export(self, folder: Path) -> Policy:
        self._write(folder, adapter="adapter")
        ids = weight_check_ids(self._vocabulary)
        arrays = {"lengths": np.array([len(ids)]), "temperature": np.ones(1, np.float32), "ids": ids.astype(np.int64)}
        logprobs = self._ask(Message("score", arrays=arrays)).arrays["logprob"][:-1]
        WeightCheck(ids, floats(logprobs), "float32" if self._cpu else "bfloat16").write(folder)
        return structs.replace(self.policy, uri=f"file:{quote(str(folder.resolve()))}")

    def _save(self, folder: Path) -> None:
        part = folder.with_name(f".{folder.name}.verl")
        shutil.rmtree(part, ignore_errors=True)
        self._write(part, adapter="merged")
        self._ask(Message("save", {"folder": str((part / "verl").resolve())}))
        facts = {"schema": SCHEMA, "policy": structs.asdict(self.policy), "steps": self.steps, "train": self.settings.train}
        (part / FACTS).write_text(json.dumps(facts, indent=2), "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)

    def _restore(self, folder: Path) -> None:
        try:
            facts = json.loads((folder / FACTS).read_text("utf-8"))
            policy, train = Policy(**facts["policy"]), facts["train"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainerError(
                f"{str(folder)!r} is not a checkpoint that can resume: {type(error).__name__}: {error}. Choose another."
            ) from error
        if not (folder / "verl").is_dir():
            raise TrainerError(f"Checkpoint {str(folder)!r} was not written by trainer 'verl'. Resume with the trainer that wrote it.")
        if (policy.base, train) != (self.policy.base, self.settings.train):
            raise TrainerError(
                f"Checkpoint {str(folder)!r} has {policy.base!r} with train = {train!r}, but this run trains {self.policy.base!r} with "
                f"train = {self.settings.train!r}. Use the checkpoint's settings."
            )
        self._ask(Message("restore", {"folder": str((folder / "verl").resolve())}))
        self.policy, self.steps = policy, facts["steps"]


def _check_finite(update: dict[str, float], earlier: int) -> None:
    """Raise for an update with NaN or infinity, after `earlier` updates of the same step."""
    if np.isfinite([update["loss"], update["grad_norm"]]).all():
        return
    problem = f"The loss is {update['loss']} and the gradient's norm {update['grad_norm']}"
    if earlier:
        raise HalfStep(f"{problem} in update {earlier + 1} of a step, after others changed the weights. Resume from the checkpoint.")
    raise NonFinite(f"{problem}. The weights are unchanged. Try a lower lr or clip_norm.")


def _metrics(batch: Batch, updates: list[dict[str, float]], places: int, parts: int) -> dict[str, float]:
    """Return the torch trainer's metrics, from the sums of each update. `parts` is the number of minibatches."""
    total = {name: sum(update[name] for update in updates) for name in updates[0]}
    first = {name: sum(update[name] for update in updates[:parts]) for name in updates[0]}  # the first pass sees every token
    metrics = {
        "loss": total["loss"] / len(updates),  # each minibatch is scaled to the full loss
        "grad_norm": total["grad_norm"] / len(updates),
        "tokens": float(places),
        "tokens_trained": float(batch.trained_tokens),
        "tokens_context": float(len(batch) - batch.trained_tokens),
        "entropy": total["entropy"] / total["count"],
    }
    for name in ("mismatch", "off_policy"):
        if first[f"{name}_count"]:
            metrics |= {f"{name}_{kind}": first[f"{name}_{kind}"] / first[f"{name}_count"] for kind in ("abs", "kl")}
            if first[f"{name}_count"] > 1:
                metrics[f"{name}_abs_error"] = _standard_error(first[f"{name}_abs"], first[f"{name}_square"], first[f"{name}_count"])
            metrics[f"{name}_abs_max"] = max(update[f"{name}_abs_max"] for update in updates[:parts])
    if len(updates) > 1:
        metrics |= {"ratio_mean": total["ratio"] / total["count"], "clip_fraction": total["clipped"] / total["count"]}
    return metrics


def _standard_error(total: float, squares: float, count: float) -> float:
    """Return the standard error of a mean, from the sum of the values, the sum of their squares, and their number."""
    return math.sqrt(max(0.0, squares - total**2 / count) / (count - 1) / count)


def _version_gaps(batch: Batch, version: int) -> dict[str, float]:
    """Return how many versions ago the trained tokens were sampled."""
    recorded = batch.trained & np.isfinite(batch.rollout_logprobs) & (batch.version >= 0)
    if not recorded.any():
        return {}
    gap = version - batch.version[recorded]
    return {"version_gap_mean": float(gap.mean()), "version_gap_max": float(gap.max())}
