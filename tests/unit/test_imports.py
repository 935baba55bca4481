"""Which file may import what, read from the syntax trees: imports point one way, and light parts stay light."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def modules(folder: Path, package: str) -> dict[str, Path]:
    """Dotted name -> file, of every module of a package."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


SRPO = modules(ROOT / "srpo", "srpo")
KERNELS = modules(ROOT / "kernels/srpo_kernels", "srpo_kernels")


def imports(source: str, *, anywhere: bool) -> Iterator[str]:
    """Names that a module imports; `from a import b` gives a.b. Only what runs when it is imported, or anywhere."""
    stack: list[ast.AST] = [ast.parse(source)]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not anywhere and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        stack.extend(ast.iter_child_nodes(node))


def starts(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def owner(name: str) -> str | None:
    """The module of ours that an imported name lives in."""
    while name not in SRPO and name not in KERNELS:
        if "." not in name:
            return None
        name = name.rpartition(".")[0]
    return name


def loaded_with(module: str) -> set[str]:
    """Everything that importing a module imports, through modules of ours."""
    seen: set[str] = set()
    found: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for imported in imports((SRPO | KERNELS)[name].read_text(), anywhere=False):
            found.add(imported)
            ours = owner(imported)
            # importing a.b.c runs a and a.b too
            todo += [".".join(ours.split(".")[:n]) for n in range(1, ours.count(".") + 2)] if ours else []
    return found


@pytest.mark.parametrize(("source", "at_import", "in_all"), [
    ("import torch.nn as nn, os", {"torch.nn", "os"}, {"torch.nn", "os"}),
    ("from torch import nn", {"torch.nn"}, {"torch.nn"}),
    ("try:\n  import vllm\nfinally:\n  pass", {"vllm"}, {"vllm"}),
    ("class A:\n  import torch", {"torch"}, {"torch"}),
    ("if x:\n  from a.b import c, d", {"a.b.c", "a.b.d"}, {"a.b.c", "a.b.d"}),
    ("def f():\n  import torch", set(), {"torch"}),
])
def test_the_reader_of_imports(source, at_import, in_all):
    assert set(imports(source, anywhere=False)) == at_import
    assert set(imports(source, anywhere=True)) == in_all


def test_there_is_something_to_check():
    assert {"srpo.cli", "srpo.config", "srpo.train"} <= set(SRPO) and "srpo_kernels" in KERNELS
    assert any(starts(m, "srpo.control") for m in SRPO) and any(starts(m, "srpo.sandbox") for m in SRPO)


@pytest.mark.parametrize("module", [
    m for m in SRPO
    if m in ("srpo", "srpo.check", "srpo.cli", "srpo.config", "srpo.doctor", "srpo.errors", "srpo.rollout.reshard")
    or any(starts(m, p) for p in ("srpo.commands", "srpo.control", "srpo.data", "srpo.forecast", "srpo.plan",
                                  "srpo.sandbox"))
])
def test_light_modules_load_no_torch(module):
    heavy = ("torch", "vllm", "megatron", "triton")
    assert not [name for name in loaded_with(module) if any(starts(name, package) for package in heavy)]


@pytest.mark.parametrize("module", [
    "srpo.check", "srpo.config", "srpo.errors", *(m for m in SRPO if starts(m, "srpo.control"))])
def test_controller_and_configuration_never_import_torch(module):
    assert not [name for name in imports(SRPO[module].read_text(), anywhere=True) if starts(name, "torch")]


@pytest.mark.parametrize(("library", "home"), [("megatron", "srpo.megatron"), ("vllm", "srpo.rollout")])
def test_one_home_for_each_library(library, home):
    users = {m for m, path in (SRPO | KERNELS).items()
             if any(starts(name, library) for name in imports(path.read_text(), anywhere=True))}
    assert users and {m for m in users if not starts(m, home)} == set()


@pytest.mark.parametrize("module", KERNELS)
def test_kernels_need_only_torch_and_triton(module):
    allowed = {"torch", "triton", "srpo_kernels", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imports(KERNELS[module].read_text(), anywhere=True)} <= allowed


MAY_IMPORT = {  # who may import these, beside their own package
    "srpo.analysis": {"srpo.commands", "srpo.report"},
    "srpo.cli": {"srpo.__main__"},
    "srpo.commands": {"srpo.cli"},
    "srpo.doctor": {"srpo.commands"},
    "srpo.train": {"srpo.commands"},
    "srpo.metrics": {"srpo.train", "srpo.warm_start"},
    "srpo.preflight": {"srpo.train"},
    "srpo.stragglers": {"srpo.train"},
    "srpo.watchdog": {"srpo.train"},
    "srpo.plan": {"srpo.commands"},
    "srpo.forecast": {"srpo.commands"},
    "srpo.history": {"srpo.commands"},
    "srpo.report": {"srpo.commands"},
    "srpo.evaluation": {"srpo.commands"},
    "srpo.prepare": {"srpo.commands", "srpo.evaluation"},
    "srpo.rollout": {"srpo.train", "srpo.evaluation", "srpo.prepare"},
    "srpo.rewards": {"srpo.train", "srpo.groups", "srpo.evaluation", "srpo.statistics",
                     "srpo.prepare", "srpo.analysis"},
    "srpo.sandbox": {"srpo.rewards", "srpo.prepare"},
    "srpo.control": {"srpo.train", "srpo.progress", "srpo.plan", "srpo.forecast", "srpo.history", "srpo.report"},
    "srpo.megatron": {"srpo.train", "srpo.warm_start", "srpo.rollout", "srpo.doctor"},
}


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_point_one_way(part):
    users = {m for m, path in (SRPO | KERNELS).items()
             if any(starts(name, part) for name in imports(path.read_text(), anywhere=True))}
    assert {m for m in users if not any(starts(m, p) for p in (part, *MAY_IMPORT[part]))} == set()
