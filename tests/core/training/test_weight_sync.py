"""From the trainer to the engine: which way, what stays on the disk, and what a weight check finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from agentlightning.contracts.engine import EngineInfo
from agentlightning.contracts.trainer import Capabilities
from agentlightning.errors import EngineError, UnsupportedSetting
from agentlightning.training.weight_sync import WeightCheck, WeightSync, compare_weights, folder_of, weight_check_ids
from agentlightning.types import Policy, floats


class Gives:
    """A trainer that writes its version into a folder."""

    def __init__(self, uri: str, *uris: str) -> None:
        self.policy = Policy(version=0, base="b", uri=uri)
        self.capabilities = Capabilities(losses=frozenset(), uris=frozenset(uris))
        self.exports = 0

    def step(self) -> Policy:
        self.policy = replace(self.policy, version=self.policy.version + 1)
        return self.policy

    async def export(self, folder: Path) -> Policy:
        folder.mkdir()
        self.exports += 1
        return replace(self.policy, uri=f"file:{folder}")


class Takes:
    """An engine that only remembers what it was given."""

    def __init__(self, *uris: str) -> None:
        self.info = EngineInfo("m", "", 10, frozenset(uris))
        self.loaded: list[Policy] = []

    async def load(self, policy: Policy) -> dict[str, float]:
        self.loaded.append(policy)
        return {"weight_check_diff": 0.5}


def weight_sync(trainer: Any, engine: Any, folder: Path) -> WeightSync:
    return WeightSync(trainer, engine, folder)


async def test_in_one_process_nothing_is_written(tmp_path: Path) -> None:
    trainer, engine = Gives("memory:x", "memory", "file"), Takes("memory", "file")
    assert await weight_sync(trainer, engine, tmp_path / "w").serve(trainer.policy) == {"weight_check_diff": 0.5}
    assert engine.loaded == [trainer.policy]
    assert not (tmp_path / "w").exists()


async def test_through_files_each_version_is_written_once_and_the_last_two_stay(tmp_path: Path) -> None:
    trainer, engine = Gives("memory:x", "memory", "file"), Takes("file")
    over = weight_sync(trainer, engine, tmp_path / "w")
    await over.serve(trainer.policy)
    await over.serve(trainer.policy)  # a step that trained nothing
    assert trainer.exports == 1
    assert engine.loaded[0] == engine.loaded[1]
    for _ in range(3):
        await over.serve(trainer.step())
    assert [each.version for each in engine.loaded] == [0, 0, 1, 2, 3]
    assert folder_of(engine.loaded[-1]) == tmp_path / "w" / "version-00003"
    assert sorted(each.name for each in (tmp_path / "w").iterdir()) == ["version-00002", "version-00003"]
    weight_sync(trainer, engine, tmp_path / "w")  # what a run that was killed left is not taken for this one's
    assert not (tmp_path / "w").exists()


async def test_a_reload_gives_the_engine_a_new_folder_of_the_same_version(tmp_path: Path) -> None:
    trainer, engine = Gives("memory:x", "file"), Takes("file")
    over = weight_sync(trainer, engine, tmp_path / "w")
    await over.serve(trainer.policy)
    await over.serve(trainer.step())
    for _ in range(2):
        await over.reload(trainer.policy)
    assert [policy.version for policy in engine.loaded] == [0, 1, 1, 1]
    assert len({policy.uri for policy in engine.loaded}) == 4
    folders = sorted(folder for folder in (tmp_path / "w").iterdir())
    assert folders == [tmp_path / "w" / "version-00000", folder_of(engine.loaded[-1])]
    await over.serve(trainer.policy)  # a step that trained nothing
    assert engine.loaded[-1] == engine.loaded[-2]


def test_a_trainer_and_an_engine_without_a_way_in_common_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSetting, match="provides weights as memory, but the engine takes file"):
        weight_sync(Gives("memory:x", "memory"), Takes("file"), tmp_path)


def test_a_weight_check_is_read_as_it_was_written_and_none_is_no_error(tmp_path: Path) -> None:
    assert WeightCheck.read(tmp_path) is None
    check = WeightCheck(weight_check_ids(50), floats(np.linspace(-9, -0.25, 63)))
    check.write(tmp_path)
    again = WeightCheck.read(tmp_path)
    assert again is not None
    assert again.ids.tolist() == check.ids.tolist()
    assert again.logprobs.tolist() == check.logprobs.tolist()
    (tmp_path / "weight_check.json").write_text("{}")
    with pytest.raises(EngineError, match=r"weight_check\.json cannot be read"):
        WeightCheck.read(tmp_path)


def test_the_tokens_of_a_weight_check_are_the_same_for_each_version_and_within_the_vocabulary() -> None:
    assert weight_check_ids(259).tolist() == weight_check_ids(259).tolist()
    assert len(weight_check_ids(259)) == 64
    assert weight_check_ids(3).max() < 3
    assert weight_check_ids(3).min() >= 0


@pytest.mark.parametrize(
    ("step", "noise", "loaded", "wrong"),
    [
        (0.1, 1e-5, "new", None),
        (0.1, 1e-5, "old", "version before"),
        (1e-3, 1e-5, "new", None),
        (1e-3, 1e-5, "old", "version before"),  # far below the limit
        (1e-3, 1e-2, "new", None),  # bfloat16: the step cannot be seen, so nothing is claimed
        (0.0, 1e-5, "old", None),
        (0.1, 1e-5, "other", "differ from the trainer's"),
        (0.1, 1e-5, "nan", "differ from the trainer's"),
    ],
)
def test_a_comparison_tells_new_weights_from_earlier_and_other_ones(step: float, noise: float, loaded: str, wrong: str | None) -> None:
    rng = np.random.default_rng(7)
    ids = weight_check_ids(259)
    old = rng.normal(-8, 1, len(ids) - 1)
    new = old + step * rng.normal(0, 1, len(old))
    source = {"new": new, "old": old, "other": old + 1, "nan": old * np.nan}[loaded]
    served = floats(source + noise * rng.normal(0, 1, len(old)))
    difference, said = compare_weights(WeightCheck(ids, floats(new)), served, limit=0.2, before=WeightCheck(ids, floats(old)))
    assert (said is None) if wrong is None else (wrong in str(said))
    if loaded == "new":
        assert difference == pytest.approx(noise * 0.8, rel=0.35)


def test_a_comparison_without_a_version_before_is_by_the_limit_alone() -> None:
    check = WeightCheck(weight_check_ids(9), floats(np.full(63, -2.0)))
    assert compare_weights(check, floats(np.full(63, -2.1)), limit=0.2)[1] is None
    assert "0.3" in str(compare_weights(check, floats(np.full(63, -2.3)), limit=0.2)[1])
    with pytest.raises(EngineError, match="scored 3 tokens of a weight check of 63"):
        compare_weights(check, floats([0, 0, 0]), limit=1)
