"""The habits of the repository that a machine can hold: who imports whom, sorted public names, no trace of one machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("core", "adapters", "plugins", "benchmarks")
PACKAGES = {each.name: each.parent.name for folder in FOLDERS for each in (ROOT / folder).glob("agentlightning*") if each.is_dir()}

LIGHT = {"numpy", "msgspec", "pluggy", "starlette", "uvicorn", "httpx", "rich", "typer", "click", "platformdirs", "watchfiles", "tomli_w"}
"""What core may import with itself; Typer brings click."""
LATE = {
    "pyarrow",
    "renderers",
    "transformers",
    "tokenizers",
    "matplotlib",
    "huggingface_hub",
    "openai",
    "pytest",
    "opentelemetry",
    "google",
    "prometheus_client",
}
"""What a function of core may import; extras bring them (pytest: the contract tests for implementations)."""

LAYERS = (
    ("types", "errors", "settings", "files", "lazy"),
    ("contracts",),
    ("registry", "stores", "capture", "telemetry"),
    ("rl", "gateway"),
    ("config",),
    ("runner",),
    ("training", "algorithms"),
    ("serving", "records", "testing"),
    ("page",),
    ("cli", "__main__"),
)
"""Folders of core, from the bottom to the top. A module imports its own layer and those below, also under TYPE_CHECKING."""


@dataclass(frozen=True)
class Import:
    file: Path
    line: int
    module: str
    names: tuple[str, ...]
    late: bool
    """Inside a function."""
    typing: bool
    """Under `if TYPE_CHECKING`."""

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"

    @property
    def top(self) -> str:
        return self.module.split(".")[0]


def sources(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in file.parts]


@cache
def imports(file: Path) -> tuple[Import, ...]:
    return tuple(_imports(file, ast.parse(file.read_text(encoding="utf-8")), late=False, typing=False))


def _imports(file: Path, node: ast.AST, *, late: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for each in child.names:
                yield Import(file, child.lineno, each.name, (), late, typing)
        elif isinstance(child, ast.ImportFrom):
            module = child.module or ""
            if child.level:
                module = ".".join([*file.relative_to(ROOT).parts[1 : -child.level], *([module] if module else [])])
            yield Import(file, child.lineno, module, tuple(each.name for each in child.names), late, typing)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for each in child.body:
                yield from _imports(file, ast.Module([each], []), late=late, typing=True)
            for each in child.orelse:
                yield from _imports(file, ast.Module([each], []), late=late, typing=typing)
        else:
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(file, child, late=late or inner, typing=typing)


def all_imports(*folders: str) -> list[Import]:
    return [each for file in sources(*folders) for each in imports(file)]


def package(file: Path) -> str:
    """The import package that a file lies in."""
    return file.relative_to(ROOT).parts[1].removesuffix(".py")


def core_targets(each: Import) -> list[str]:
    """The modules of core that an import opens, as their first names: `rl`, `store`."""
    if each.top != "agentlightning":
        return []
    parts = each.module.split(".")
    if len(parts) > 1:
        return [parts[1]]
    here = ROOT / "core/agentlightning"
    return [name for name in each.names if (here / name).is_dir() or (here / f"{name}.py").is_file()]


def rank(module: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if module in names)


def unit(file: Path) -> str:
    return file.relative_to(ROOT / "core/agentlightning").parts[0].removesuffix(".py")


def test_core_imports_only_the_standard_library_and_light_libraries() -> None:
    wrong = []
    for each in all_imports("core"):
        known = each.top == "agentlightning" or each.top in sys.stdlib_module_names or each.top in LIGHT
        if not known and not each.typing and not (each.late and each.top in LATE):
            wrong.append(str(each))
    assert wrong == []


def test_importing_core_loads_nothing_heavy() -> None:
    code = (
        "import sys, agentlightning, agentlightning.runner.runner, agentlightning.algorithms.lightning, agentlightning.config.schema\n"
        "print(*({m.split('.')[0] for m in sys.modules} & {'torch', 'transformers', 'renderers', 'langchain', 'langgraph', 'openai'}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.split() == []


def test_adapters_and_plugins_never_import_each_other() -> None:
    wrong = [
        str(each)
        for each in all_imports("adapters", "plugins")
        if each.top in PACKAGES and each.top not in ("agentlightning", package(each.file))
    ]
    assert wrong == []


def test_nothing_imports_benchmarks_or_tests_and_core_no_adapter_or_plugin() -> None:
    wrong = [
        str(each) for each in all_imports("core", "adapters", "plugins") if PACKAGES.get(each.top) == "benchmarks" or each.top == "tests"
    ]
    wrong += [str(each) for each in all_imports("core") if PACKAGES.get(each.top) in ("adapters", "plugins")]
    assert wrong == []


def test_nothing_imports_through_a_folder_name() -> None:
    assert [str(each) for each in all_imports(*FOLDERS, "tests") if each.top in FOLDERS] == []


def test_our_imports_name_modules_that_exist() -> None:
    """Pyright says so too, but not in files that import verl: these tell it to let missing modules pass."""

    def exists(module: str) -> bool:
        path = ROOT / PACKAGES[module.split(".")[0]] / module.replace(".", "/")
        return path.with_suffix(".py").exists() or path.is_dir()

    assert [str(wrong) for wrong in all_imports(*FOLDERS) if wrong.top in PACKAGES and not exists(wrong.module)] == []


def test_plugin_modules_are_light() -> None:
    wrong = []
    for file in sources("adapters", "plugins", "benchmarks"):
        if file.name != "plugin.py":
            continue
        for each in imports(file):
            light = (
                each.top in sys.stdlib_module_names
                or each.module == "agentlightning.contracts.hookspecs"
                or each.module == "agentlightning"
            )
            if not (light or each.late or each.typing):
                wrong.append(str(each))
    assert wrong == []


def test_imports_inside_core_point_down() -> None:
    here, found = ROOT / "core/agentlightning", set[tuple[str, str]]()
    for file in sources("core"):
        if file == here / "__init__.py":
            continue  # the public names, opened when they are first used
        if unit(file) == "testing":
            continue  # fakes and contract tests of everything; nothing below imports it
        for each in imports(file):
            if any(rank(target) > rank(unit(file)) for target in core_targets(each)):
                found.add((file.relative_to(here).as_posix(), each.module))
    assert found == set()


def test_nothing_of_core_needs_the_fakes() -> None:
    wrong = [str(each) for file in sources("core") if unit(file) != "testing" for each in imports(file) if "testing" in core_targets(each)]
    assert wrong == []


def test_modules_of_core_import_each_other_in_no_circle() -> None:
    here = ROOT / "core"

    def module(file: Path) -> str:
        parts = file.relative_to(here).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    files = {module(file): file for file in sources("core")}
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        opened: set[str] = set()
        for each in imports(file):
            if each.late or each.top != "agentlightning":
                continue
            inner = {f"{each.module}.{part}" for part in each.names} & files.keys()
            opened |= inner or {each.module}
        graph[name] = (opened & files.keys()) - {name}
    done: set[str] = set()
    while ready := [name for name in graph if name not in done and graph[name] <= done]:
        done.update(ready)
    assert graph.keys() - done == set()


def test_public_names_are_named_once_and_there() -> None:  # their order is ruff's (RUF022)
    import agentlightning

    names = list(agentlightning.__all__)
    assert len(names) == len(set(names))
    missing = [name for name in names if not hasattr(agentlightning, name)]
    assert missing == []


def tracked() -> list[Path]:
    """The files of the repository that are text."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [file for file in files if file.is_file() and b"\0" not in file.read_bytes()[:4096]]


def test_no_file_names_a_path_of_one_machine() -> None:
    private = re.compile(r"(?<![\w.])/(?:home/\w|Users/\w|root/|work/|tmp/(?!\.)\w)|[A-Z]:\\\\Users")
    wrong = []
    for file in tracked():
        if file == Path(__file__).resolve():
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if private.search(line):
                wrong.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert wrong == []


def test_test_files_have_names_of_their_own_and_tests_are_sentences() -> None:
    files = [file for file in sources("tests") if file.name.startswith("test_")]
    names = [file.name for file in files]
    assert sorted(names) == sorted(set(names))
    short = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_") and node.name.count("_") < 3
    ]
    assert short == []
