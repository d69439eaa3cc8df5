"""Where the reward of a rollout comes from: the agent or its program, a function, or a judge."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

from msgspec import Meta

from agentlightning.config.endpoint import EndpointSettings
from agentlightning.errors import ConfigError
from agentlightning.settings import BaseSettings, FiniteFloat, PositiveInt, convert

RewardFrom = Literal["stdout", "exit_code", "file", "post", "none"]
"""Where the reward of a command comes from.

`stdout`: the last line that it prints, a number or a JSON object with a `reward`. `file`: the same, as the last line of the file that
`AGL_REWARD_FILE` names. `exit_code`: 1 for exit code 0, and 0 for 1 to 125 (test programs end so; higher codes mean that it crashed or did
not start). `post`: it sends the same by POST to `AGL_REWARD_URL`, with `OPENAI_API_KEY` as the bearer token. `none`: it gives none.
"""
PROGRAM_REWARDS = ("stdout", "exit_code", "file", "post", "none")
RewardName: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^(stdout|exit_code|file|post|none)$|.:.",
        description="'stdout', 'exit_code', 'file', 'post', 'none', or 'module:function'",
    ),
]


@dataclass(frozen=True, kw_only=True)
class JudgeSettings(EndpointSettings):
    """A model that scores each finished rollout by a rubric (`docs/judges.md`), at temperature 0. Rewards are from 0 to 1."""

    table = "reward.judge"
    rubric: str
    """What a good rollout is: text, or the path of a `.md` or `.txt` file."""
    scale: tuple[FiniteFloat, FiniteFloat] = (0.0, 10.0)
    """Lowest and highest score that the judge may give. They become the rewards 0 and 1."""
    sees: Literal["answer", "messages"] = "answer"
    """What the judge sees besides the task: the last reply, or all messages of the rollout."""
    relative: bool = False
    """Rank the training rollouts of each group in one request, in place of a score for each. The best gets 1, the worst 0. Rollouts of an
    evaluation are scored one by one."""
    concurrency: PositiveInt = 8
    """Requests in flight."""
    max_tokens: PositiveInt = 1024
    """Tokens of a judgement, at most. Without a limit, a small judge may repeat itself until `timeout` ends each request."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.scale
        if low >= high:
            raise ConfigError(f"{self.table}.scale is [{low:g}, {high:g}]. Put the lowest score first, as in [0, 10].")
        if not self.rubric.strip():
            raise ConfigError(f"{self.table}.rubric is empty. Describe a good rollout in it.")

    @property
    def rubric_file(self) -> Path | None:
        """The file of the rubric; None: the setting is the text itself."""
        is_file = "\n" not in self.rubric and self.rubric.endswith((".md", ".txt"))
        return Path(self.rubric).expanduser() if is_file else None

    def rubric_text(self) -> str:
        """Return the rubric. Raises `ConfigError` if its file cannot be read, or is empty."""
        file = self.rubric_file
        if file is None:
            return self.rubric.strip()
        try:
            text = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.table}.rubric: {str(file)!r} cannot be read: {error}. Check the path of the rubric.") from error
        if not text:
            raise ConfigError(f"{self.table}.rubric: {str(file)!r} is empty. Describe a good rollout in it.")
        return text


@dataclass(frozen=True, kw_only=True)
class RewardTable(BaseSettings):
    """A reward that a judge gives."""

    table = "reward"
    judge: JudgeSettings

    def under(self, base: Path) -> RewardTable:
        """Return the same settings, with the path of a rubric made absolute."""
        file = self.judge.rubric_file
        return self if file is None else replace(self, judge=replace(self.judge, rubric=str(base / file)))


RewardSetting: TypeAlias = RewardName | RewardTable


def read_reward_setting(path: Path) -> RewardSetting:
    """Return the `reward` of a config file, or of a file that holds nothing else. Raises `ConfigError`."""
    try:
        table: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: The file cannot be read as TOML: {error}. Check it.") from error
    if "reward" not in table:
        raise ConfigError(f"{path} has no reward. Add a [reward.judge] table.")
    setting = cast(RewardSetting, convert(table["reward"], RewardSetting, "reward"))
    return setting.under(path.resolve().parent) if isinstance(setting, RewardTable) else setting
