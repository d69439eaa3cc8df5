"""The CPU as a platform of verl, for tests and machines without an accelerator.

verl finds it through `VERL_USE_EXTERNAL_MODULES`. Import this module, `worker`, and `process` only in verl's environment.
"""

# verl has an environment of its own.
# pyright: reportMissingImports=false
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

NAME = "agl-cpu"


@PlatformRegistry.register(platform=NAME)
class CPU(PlatformBase):
    """See verl's `PlatformBase`."""

    device_name = "cpu"
    vendor_name = "cpu"

    @property
    def device_module(self) -> Any:
        def nothing(*_: Any, **__: Any) -> None: ...

        def zero(*_: Any, **__: Any) -> int:
            return 0

        return SimpleNamespace(
            is_available=lambda: True,
            current_device=lambda: torch.device("cpu"),
            device_count=lambda: 1,
            set_device=nothing,
            synchronize=nothing,
            empty_cache=nothing,
            manual_seed=torch.manual_seed,
            manual_seed_all=torch.manual_seed,
            get_rng_state=lambda *_: torch.get_rng_state(),
            set_rng_state=lambda state, *_: torch.set_rng_state(state),
            memory_allocated=zero,
            memory_reserved=zero,
            max_memory_allocated=zero,
            max_memory_reserved=zero,
            mem_get_info=lambda *_: (0, 0),
            reset_peak_memory_stats=nothing,
        )

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...
    def synchronize(self, device_index: int | None = None) -> None: ...
    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None: ...
    def empty_cache(self) -> None: ...
    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None: ...
    def profiler_stop(self) -> None: ...
    def ray_resource_name(self) -> str:
        return "CPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> Any:
        return None
