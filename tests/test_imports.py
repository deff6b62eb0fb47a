"""`import ompq_deploy` stays light: heavy and optional packages load when a stage needs them."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import ompq_deploy

OPTIONAL = ("torch", "tensorrt", "tensorrt_rtx", "pycuda", "cuda", "skimage", "matplotlib")
LATE = ("onnxruntime", "ortools", "pandas", "onnxscript")


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_the_package_imports_nothing_heavy() -> None:
    assert not loaded_after("import ompq_deploy") & {*OPTIONAL, *LATE, "numpy", "onnx"}


def test_the_command_line_imports_no_runtime_before_it_needs_one() -> None:
    assert not loaded_after("import ompq_deploy.cli") & {*OPTIONAL, *LATE}


def test_the_whole_line_imports_no_optional_package() -> None:
    assert not loaded_after("import ompq_deploy.pipeline") & set(OPTIONAL)


def test_no_package_imports_one_that_needs_it() -> None:
    needs: dict[str, set[str]] = {}
    root = Path(ompq_deploy.__file__).parent
    for path in root.rglob("*.py"):
        here = path.relative_to(root).with_suffix("").parts[0]
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        modules = [f"{node.module}.{alias.name}".split(".") for node in nodes for alias in node.names]
        needs.setdefault(here, set()).update(m[1] for m in modules if m[0] == "ompq_deploy" and m[1] != here)
    assert len(needs) > 20
    TopologicalSorter(needs).prepare()
