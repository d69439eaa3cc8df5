"""A trainer on verl's FSDP2 workers, in processes of their own: our batch in, verl's forward, backward and optimiser, weights out.

Advantages and weights are those of the batch, and verl's policy losses are summed with them: nothing is computed again, and the loss is the
torch trainer's. A step that fails before its first update leaves the weights as they were.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
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
from agentlightning.contracts.trainer import Capabilities, Trainer, check_capabilities
from agentlightning.errors import ConfigError, NonFinite, TrainerError, UnsupportedSetting
from agentlightning.rl.batch.packs import cut_packs
from agentlightning.rl.schedule import learning_rate
from agentlightning.runner.managed_process import Process
from agentlightning.training.weight_sync import WeightCheck, weight_check_ids
from agentlightning.types import Policy, floats
from agentlightning_verl.message import Message, receive, send
from agentlightning_verl.rows import Rows, rows_of
from agentlightning_verl.settings import Settings

FACTS = "trainer.json"
SCHEMA = 1
LOSSES = ("ppo_clip", "cispo", "sft")
ASK = """
import importlib.metadata, importlib.util, json
print(json.dumps({"verl": importlib.metadata.version("verl"), "cuda": __import__("torch").cuda.is_available()}))
"""


class VerlTrainer(Trainer):
    """See `agentlightning.contracts.trainer.Trainer`."""

    Settings = Settings

    @classmethod
    def offers(cls, settings: Settings) -> Capabilities:
        """See `Trainer`."""
        why = "verl's critic is not used; train with a critic in trainer 'torch'"
        return Capabilities(
            losses=frozenset(LOSSES),
            uris=frozenset({"file"}),
            forest=False,
            max_sequence_tokens=settings.tokens_per_pack,
            lora=True,
            why_no_critic=why,
        )

    @classmethod
    async def create(cls, model: ModelFiles, settings: Settings, share: Share) -> VerlTrainer:
        """Start verl's process, Ray and the workers. Raises `ConfigError` where there is no verl."""
        if settings.schedule != "constant" and settings.total_steps is None:
            raise ConfigError(f"trainer.schedule {settings.schedule!r} needs total_steps, which only a run can fill in by itself")
        python, cuda = await asyncio.to_thread(find_verl, settings.python)
        if settings.device == "cuda" and not cuda:
            raise ConfigError(f"trainer.device is 'cuda', and {python} sees no GPU")
        trainer = cls(model, settings, python, cpu=settings.device == "cpu" or not cuda)
        try:
            await trainer._run(trainer._start)
        except BaseException:
            await trainer.close()
            raise
        return trainer

    def __init__(self, model: ModelFiles, settings: Settings, python: str, *, cpu: bool) -> None:
        self.settings, self._model, self._cpu = settings, model, cpu
        self.policy = Policy(version=0, base=model.name, kind="lora" if settings.train == "lora" else "full", uri="verl:")
        self.capabilities = self.offers(settings)
        self.steps = 0
        """Steps that changed the weights; the schedule counts them."""
        self._folder = Path(tempfile.mkdtemp(prefix="agl-verl-"))
        (self._folder / "path").mkdir()
        # our own package alone, since the rest of this environment is not for verl's
        (self._folder / "path" / "agentlightning_verl").symlink_to(Path(__file__).parent, target_is_directory=True)
        ours, theirs = socket.socketpair()
        self._connection, self._failed, self._vocabulary = ours, False, 0
        self._thread, self._closed = ThreadPoolExecutor(1, "verl-trainer"), False
        line = [python, "-m", "agentlightning_verl.process", str(theirs.fileno())]
        with theirs:
            try:
                self._process = Process(line, {**os.environ, **self._variables()}, self._folder / "verl.log", files=[theirs.fileno()])
            except OSError as error:
                raise ConfigError(f"verl cannot be started as {python!r}: {error}") from error

    def _variables(self) -> dict[str, str]:
        return {
            "PYTHONPATH": str(self._folder / "path"),
            "TOKENIZERS_PARALLELISM": "false",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            **({"VERL_PLATFORM": "agl-cpu", "VERL_USE_EXTERNAL_MODULES": "agentlightning_verl.platform"} if self._cpu else {}),
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
        self._connection.close()  # upon which the process ends
        for _ in range(50):
            if self._process.code is not None:
                break
            await asyncio.sleep(0.1)
        await self._process.stop()
        await asyncio.to_thread(self._thread.shutdown)
        if not self._failed:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _run(self, work: Any) -> Any:
        """Do it in the trainer's thread. A caller that is cancelled waits for the end: a step that is half done belongs to nobody."""
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
            why = "it does not answer" if answer is None else answer.facts["error"].strip().splitlines()[-1]
            if answer is None and self._process.code is not None:
                why = f"it {self._process.how}"
            raise TrainerError(f"verl's process failed to {message.kind}: {why}; its log {self._process.log} ends:\n{self._process.tail()}")
        return answer

    def _step(self, batch: Batch, loss: LossSettings) -> tuple[Policy, dict[str, float]]:
        if not batch.trained_tokens:
            return self.policy, {"tokens": 0.0, "tokens_trained": 0.0, "lr": 0.0}
        settings, began = self.settings, time.perf_counter()
        cut_packs(batch, settings.tokens_per_pack)  # refuses what does not fit, by name
        parts = [p for p in (list(range(len(batch.rollout_ids)))[k :: loss.minibatches] for k in range(loss.minibatches)) if p]
        work = [rows_of(batch, part if len(parts) > 1 else None) for part in parts]
        several = loss.epochs * len(parts) > 1
        old = self._old(batch, work) if several else None
        lr = learning_rate(settings.lr, settings.schedule, settings.warmup_steps, settings.total_steps, self.steps)
        facts = {key: value for key, value in asdict(loss).items() if key in ("clip_low", "clip_high", "dual_clip")}
        done: list[dict[str, float]] = []
        for _ in range(loss.epochs):
            for rows in work:
                # every minibatch is an estimate of the full loss, and so is scaled to it
                arrays = rows.arrays(batch, float(len(parts)), old, self.policy.version)
                found = self._ask(Message("update", {"lr": lr, "loss": {"loss": loss.name, **facts}}, arrays)).facts
                if not np.isfinite([found["loss"], found["grad_norm"]]).all():
                    said = f"the loss is {found['loss']} and the gradient's norm {found['grad_norm']}"
                    if done:
                        raise TrainerError(
                            f"{said} in update {len(done) + 1} of a step; the updates before it are made: go on from the checkpoint"
                        )
                    raise NonFinite(f"{said}; the weights are as before. A lower lr or clip_norm may help")
                done.append(found)
        self.steps += 1
        places = sum(len(rows.ids) for rows in work) * (loss.epochs + several)
        metrics = _metrics(batch, done, places, self.policy.version, len(parts))
        seconds = time.perf_counter() - began
        self.policy = structs.replace(self.policy, version=self.policy.version + 1)
        return self.policy, {**metrics, "lr": lr, "seconds": seconds, "tokens_per_second": places / seconds}

    def _old(self, batch: Batch, work: list[Rows]) -> NDArray[np.float64]:
        """(tokens,) log-probabilities before the first update; NaN where not trained."""
        old = np.full(len(batch), np.nan)
        for rows in work:
            found = self._ask(Message("score", arrays=rows.arrays(batch, 1.0, None, self.policy.version))).arrays["logprob"]
            trained = rows.token >= 0
            old[rows.token[trained]] = found[trained]
        return old

    def _write(self, folder: Path, *, adapter: str) -> None:
        """`adapter` is the form in which one is written."""
        folder.mkdir(parents=True, exist_ok=True)
        form = adapter if self.settings.train == "lora" else "model"
        self._ask(Message("write", {"folder": str(folder.resolve()), "form": form}))

    def _export(self, folder: Path) -> Policy:
        self._write(folder, adapter="adapter")
        ids = weight_check_ids(self._vocabulary)
        arrays = {"lengths": np.array([len(ids)]), "temperature": np.ones(1, np.float32), "ids": ids.astype(np.int64)}
        logprobs = self._ask(Message("score", arrays=arrays)).arrays["logprob"][:-1]
        WeightCheck(ids, floats(logprobs)).write(folder)
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
            raise TrainerError(f"no checkpoint to go on from in {str(folder)!r}: {type(error).__name__}: {error}") from error
        if not (folder / "verl").is_dir():
            raise TrainerError(f"checkpoint {str(folder)!r} was not written by trainer 'verl'; go on with the trainer that wrote it")
        if (policy.base, train) != (self.policy.base, self.settings.train):
            raise TrainerError(
                f"checkpoint {str(folder)!r} is of {policy.base!r} trained as {train!r}, but this run trains {self.policy.base!r} as "
                f"{self.settings.train!r}"
            )
        self._ask(Message("restore", {"folder": str((folder / "verl").resolve())}))
        self.policy, self.steps = policy, facts["steps"]


def _metrics(batch: Batch, done: list[dict[str, float]], places: int, version: int, parts: int) -> dict[str, float]:
    """Under the names of the torch trainer; of what was measured."""
    total = {name: sum(each[name] for each in done) for name in done[0]}
    first = {name: sum(each[name] for each in done[:parts]) for name in done[0]}  # the first pass sees every token
    found = {
        "loss": total["loss"] / len(done),  # each minibatch is scaled to the full loss
        "grad_norm": total["grad_norm"] / len(done),
        "tokens": float(places),
        "tokens_trained": float(batch.trained_tokens),
        "tokens_context": float(len(batch) - batch.trained_tokens),
        "entropy": total["entropy"] / total["count"],
    }
    known = batch.trained & np.isfinite(batch.rollout_logprobs) & (batch.version >= 0)
    if known.any():
        gap = version - batch.version[known]
        found |= {"version_gap_mean": float(gap.mean()), "version_gap_max": float(gap.max())}
    for name in ("mismatch", "off_policy"):
        if first[f"{name}_count"]:
            found |= {f"{name}_{kind}": first[f"{name}_{kind}"] / first[f"{name}_count"] for kind in ("abs", "kl")}
            found[f"{name}_abs_max"] = max(each[f"{name}_abs_max"] for each in done[:parts])
    if len(done) > 1:
        found |= {"ratio_mean": total["ratio"] / total["count"], "clip_fraction": total["clipped"] / total["count"]}
    return found


def find_verl(python: str | None) -> tuple[str, bool]:
    """A Python that has verl, and whether it sees a GPU."""
    chosen = shutil.which(python) if python is not None else sys.executable
    hint = "expected a Python that has it: pip install 'agentlightning[torch,verl]' here, or trainer.python = \"/path/to/bin/python\""
    if chosen is None:
        raise ConfigError(f"trainer.python is {python!r}, which is no program; {hint}")
    try:
        ran = subprocess.run([chosen, "-c", ASK], capture_output=True, text=True, timeout=120, check=True)  # noqa: S603 (the user's)
        found = json.loads(ran.stdout.strip().splitlines()[-1])
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError(f"trainer 'verl': {chosen} has no verl ({said}); {hint}") from error
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise ConfigError(f"trainer 'verl': {chosen} cannot be asked for verl: {error}; {hint}") from error
    return chosen, bool(found["cuda"])
