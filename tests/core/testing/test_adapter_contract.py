"""The adapter of CONTRIBUTING.md keeps the contract of adapters, and the contract catches adapters that break it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import tiny_agents
from guide import code, length, module_of

from agentlightning.testing.adapter_contract import AdapterContract

SOURCE = code("CONTRIBUTING.md", "# my_package/adapter.py")


def adapter_of(source: str) -> Any:
    return module_of(source, "my_package.adapter")


def class_of_the_guide() -> Any:
    """The class of the guide's test file, with the guide's adapter as the package that it imports."""
    package: Any = ModuleType("my_package")
    package.adapter = adapter_of(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "my_package", package)
        return module_of(code("CONTRIBUTING.md", "# tests/test_my_adapter.py"), "test_my_adapter").TestMyAdapter


TestTheAdapterOfTheGuide = class_of_the_guide()


def test_the_adapter_of_the_guide_is_short() -> None:
    assert length(SOURCE) <= 40


BROKEN = {
    "joined_to_its_tokens": ("call.end() if kind", "(None, None) if kind"),
    "name_of_their_agent": ("agent=agent.name", "agent='nobody'"),
    "below_the_agent": ("parent_id=open_span.get()", "parent_id=None"),
    "start_and_an_end": ("ended=time.time()", "ended=None"),
    "tool_that_fails": ('["error"] = failure(error)', '["failed"] = True'),
    "reward_in_a_tool": ("current_span_id = open_span.get", "current_span_id = lambda: None"),
    "concurrent": ("recorder = current()", "recorder = originals.setdefault('recorder', current())"),
    "stands_for": ("clients().install(__name__, models)", "clients().install(__name__)"),
    "in_a_thread": (
        "recorder = current()",
        "recorder = current() if __import__('threading').current_thread().name[0] == 'M' else None",
    ),
    "another_model": ('span.attributes.update({"unjoined": unjoined} if unjoined else {})', "pass"),
    "twice": ("if not originals else ()", ""),
    "outside": ("if recorder is None:", "if recorder is None: raise RuntimeError('no rollout')\n        if recorder is None:"),
    "uninstalled": ("while originals:", "while False:"),
}
"""For each test of the contract a change of the guide's adapter that it catches."""
TESTS = [name for name, _ in inspect.getmembers(AdapterContract) if name.startswith("test_")]


def test_every_test_of_the_contract_has_an_adapter_that_it_catches() -> None:
    assert [sum(part in name for part in BROKEN) for name in TESTS] == [1] * len(TESTS)
    assert len(TESTS) == len(BROKEN)


@pytest.fixture
def as_it_was() -> Iterator[None]:
    methods = {name: getattr(tiny_agents.Agent, name) for name in ("run", "ask_model", "use_tool")}
    yield
    for name, method in methods.items():
        setattr(tiny_agents.Agent, name, method)


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize("part", BROKEN)
async def test_the_contract_catches_an_adapter_that_breaks_it(part: str) -> None:
    before, after = BROKEN[part]
    assert SOURCE.count(before) == 1

    class Checked(TestTheAdapterOfTheGuide):  # type: ignore[misc]
        adapter = adapter_of(SOURCE.replace(before, after))

    (name,) = [name for name in TESTS if part in name]
    with pytest.raises(Exception):  # noqa: B017, PT011 (an assertion, or what the broken adapter raises in the agent)
        await getattr(Checked(), name)()
