"""Every error that Agent Lightning raises on purpose.

    LightningError
    ├── ConfigError             a setting is wrong
    │   └── UnsupportedSetting  a backend does not honour a setting
    ├── PluginError             a plugin is broken, unknown, or registered twice
    │   └── MissingExtra        a plugin's libraries are not installed
    ├── TaskError               a task, or a file of tasks, cannot be read
    ├── WireError               foreign or damaged bytes, or another schema
    ├── StoreError              the store refused or failed
    │   ├── NotFound            no such rollout, attempt or policy
    │   ├── LeaseLost           the attempt is closed or belongs to another runner
    │   ├── StoreUnavailable    the store cannot do it now: its disk is full, or its database locked
    │   └── StoreVersionError   a store file of another version
    ├── EngineError             the engine could not generate or load
    │   └── ContextOverflow     the prompt does not fit the model
    ├── GatewayError            the gateway cannot answer, or cannot listen
    ├── AgentError              the user's agent raised, hung, or crashed
    │   ├── AgentTimeout        the agent did not return in time
    │   └── RewardError         a reward is not a finite number, or contradicts another
    ├── JudgeError              the endpoint of a judge failed, or refused a request
    ├── JoinError               model calls and framework spans do not meet
    ├── RoutingError            a model call cannot reach the gateway of its rollout
    ├── TrainerError            the trainer could not take the step
    │   ├── NonFinite           NaN or infinity in loss or gradient
    │   ├── Mismatch            the sampled tokens come from other weights than the trainer's
    │   └── HalfStep            the step failed after it changed weights
    └── RunError                a run folder cannot be made, read or resumed
        └── UnknownRun          no run has this name (also a ConfigError)

A message is two sentences: what is wrong, with the value; what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class LightningError(Exception):
    """Base of every error that Agent Lightning raises on purpose."""


class ConfigError(LightningError, ValueError):
    """A setting is wrong."""


class UnsupportedSetting(ConfigError):
    """A backend does not honour a setting (law 11)."""


class PluginError(LightningError):
    """A plugin is broken, unknown, or registered twice."""


class MissingExtra(PluginError, ImportError):
    """The plugin exists but its libraries are not installed."""


class TaskError(LightningError, ValueError):
    """A task, or a file of tasks, cannot be read."""


class WireError(LightningError, ValueError):
    """The bytes are foreign, damaged, or of another schema."""


class StoreError(LightningError):
    """The store refused or failed."""


class StoreUnavailable(StoreError):
    """The store cannot do it now, but the same call may succeed later: its disk is full, or its database locked."""


class NotFound(StoreError, LookupError):
    """No such rollout, attempt or policy."""


class LeaseLost(StoreError):
    """The attempt is closed or belongs to another runner."""


class StoreVersionError(StoreError):
    """A store file of another version."""


class EngineError(LightningError):
    """The engine could not generate or load."""


class EngineUnavailable(EngineError):
    """The server of an engine did not answer, again and again, or it refuses every request."""


class ContextOverflow(EngineError):
    """The prompt does not fit the model's context."""


class GatewayError(LightningError):
    """The gateway cannot answer, or cannot listen."""


class AgentError(LightningError):
    """The user's agent raised, hung, or crashed."""


class AgentTimeout(AgentError, TimeoutError):
    """The agent did not return in time."""


class RewardError(AgentError, ValueError):
    """A reward is not a finite number, or contradicts another."""


class JudgeError(LightningError):
    """The endpoint of a judge failed, or refused a request."""


class JoinError(LightningError):
    """Model calls and framework spans do not meet."""


class RoutingError(LightningError):
    """A model call cannot reach the gateway of its rollout."""


class TrainerError(LightningError):
    """The trainer could not take the step."""


class NonFinite(TrainerError):
    """NaN or infinity in the loss or the gradient."""


class Mismatch(TrainerError):
    """The sampled tokens come from other weights than the trainer's."""


class HalfStep(TrainerError):
    """The step failed after it changed weights, so that only a checkpoint has those of a finished step."""


class RunError(LightningError):
    """A run folder cannot be made, read or resumed."""


class UnknownRun(RunError, ConfigError):
    """No run has this name."""


LISTED_KEYS = 20
"""Keys that an error lists at most after it suggested one."""


def unknown(noun: str, name: str, names: Sequence[str], where: str = "", elsewhere: str = "") -> str:
    """`Unknown engine 'toch'. Did you mean 'torch'? Use one of torch, vllm.` `elsewhere`: a better question than that."""
    nearest = elsewhere or did_you_mean(name, names)
    advice = f"Use one of {', '.join(names)}." if names else "There is none."
    if noun == "key" and nearest and len(names) > LISTED_KEYS:
        advice = "`agl config` lists all."
    return f"Unknown {noun} {name!r}{where and ' ' + where}.{nearest} {advice}"


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """` Did you mean 'temperature'?` of `temprature` or `temp`; empty if no name is similar."""
    longer = [other for other in names if len(name) > 1 and other.startswith(name)]
    shorter = sorted((other for other in names if len(other) > 2 and name.startswith(other)), key=len, reverse=True)
    nearest = difflib.get_close_matches(name, names, n=1) or longer or shorter
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
