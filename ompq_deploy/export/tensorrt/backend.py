"""Find the TensorRT that is installed: the only module that imports `tensorrt` or `tensorrt_rtx`, when asked."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from ompq_deploy.errors import BackendMissing

BACKENDS = ("tensorrt", "tensorrt_rtx")
"""In the order in which `auto` tries them."""

HOW_TO_GET = {
    "tensorrt": "use NVIDIA's JetPack or TensorRT container, or NVIDIA's wheels; the package index holds only stubs",
    "tensorrt_rtx": 'pip install "ompq-deploy[rtx]" (builds engines on any CPU; running them takes an RTX GPU)',
}


@dataclass(frozen=True, kw_only=True)
class Backend:
    """An imported TensorRT package. `module` is `tensorrt` or `tensorrt_rtx`; their Python interfaces agree."""

    name: str
    version: str
    module: Any


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """A package that is absent or cannot be imported, and why."""

    name: str
    reason: str


def probe(name: str) -> Backend | Unusable:
    """Import one package. A stub without its libraries counts as absent, with the loader's own words as the reason."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as e:
        return Unusable(name=name, reason="not installed" if e.name == name else f"its import failed: {e}")
    except (ImportError, OSError, RuntimeError, AttributeError) as e:
        return Unusable(name=name, reason=f"its import failed: {e}")
    lacking = [part for part in ("Builder", "OnnxParser", "__version__") if not hasattr(module, part)]
    if lacking:
        return Unusable(name=name, reason=f"it is a stub without {', '.join(lacking)}")
    return Backend(name=name, version=str(module.__version__), module=module)


def find_backend(name: str = "auto") -> Backend | None:
    """The backend called `name`, or for "auto" the first one that imports; None only where "auto" finds none.

    Raises BackendMissing for a name that is not installed or not known.
    """
    if name == "auto":
        probed = (probe(candidate) for candidate in BACKENDS)
        return next((found for found in probed if isinstance(found, Backend)), None)
    if name not in BACKENDS:
        raise BackendMissing(
            f"no backend is called {name!r}", where="--target", fix=f"use one of: {', '.join(BACKENDS)}"
        )
    found = probe(name)
    if isinstance(found, Unusable):
        raise BackendMissing(f"{name} cannot be used: {found.reason}", where=f"--target {name}", fix=HOW_TO_GET[name])
    return found


def no_backend_note() -> str:
    """What to tell a user whose run goes on without an engine: why each backend is out, and how to get it."""
    probed = [probe(name) for name in BACKENDS]
    lines = [f"  {p.name}: {p.reason}; to get it: {HOW_TO_GET[p.name]}" for p in probed if isinstance(p, Unusable)]
    return "\n".join(["no engine was built, since no TensorRT is installed", *lines])
