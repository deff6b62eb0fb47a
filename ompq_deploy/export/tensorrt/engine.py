"""Build an engine, on any machine that has a backend, and record what the built engine holds."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import onnx

from ompq_deploy.artifacts import QuantizedGraph
from ompq_deploy.errors import BackendMissing
from ompq_deploy.export.tensorrt.backend import Backend
from ompq_deploy.export.tensorrt.graph import treat
from ompq_deploy.export.tensorrt.inspect import read_engine
from ompq_deploy.passes.input_sizes import refuse_open_sizes

MAX_BYTES = 2**31 - 1
"""What one protobuf message can hold."""


@dataclass(frozen=True, kw_only=True)
class EngineBuild:
    """A serialized engine, for batches of 1 to `batch` samples, or of the graph's own size where that is fixed.

    `messages` are what the builder said, each as (severity, text), from INFO upwards.
    """

    plan: bytes
    batch: int
    seconds: float
    messages: tuple[tuple[str, str], ...]


def build_engine(model: onnx.ModelProto, backend: Backend, *, batch: int = 1) -> EngineBuild:
    """Parse `model` into a strongly typed network and build its engine, at full inspection detail.

    Raises BackendMissing, with the backend's own words and the node's name where it gives one.
    """
    trt = backend.module
    refuse_open_sizes(model)
    if model.ByteSize() > MAX_BYTES:
        raise _refused(backend, f"the model takes {model.ByteSize()} bytes, over protobuf's {MAX_BYTES}", model)
    started = time.perf_counter()
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        error = parser.get_error(0)
        raise _refused(backend, error.desc(), model, node=f"{error.node_name()} ({error.node_operator()})")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _set_batch(builder, network, config, batch)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        words = [text for severity, text in logger.messages if severity in ("ERROR", "INTERNAL_ERROR")]
        raise _refused(backend, "; ".join(words) or "the build failed without a message", model)
    return EngineBuild(
        plan=bytes(plan),
        batch=batch,
        seconds=time.perf_counter() - started,
        messages=tuple(logger.messages),
    )


def engine_record(build: EngineBuild, quantized: QuantizedGraph, backend: Backend) -> dict[str, Any]:
    """The contents of engine.json. Under `layers`, `weight_bits` and `note` are what was asked for; `storage`,
    `weight_bytes`, `compute_type` and `codes_found` are read back from the engine, null where it does not tell."""
    reading = read_engine(build.plan, quantized, backend)
    layers = [
        {
            "name": layer.layer.name,
            "op": layer.layer.op,
            "weight_bits": layer.bits,
            "storage": read.storage,
            "weight_bytes": read.weight_bytes,
            "compute_type": read.compute_type,
            "codes_found": read.codes_found,
            "note": treat(layer).note,
        }
        for layer, read in zip(quantized.layers, reading.layers, strict=True)
    ]
    return {
        "backend": backend.name,
        "version": backend.version,
        "batch": build.batch,
        "build_seconds": round(build.seconds, 3),
        "file_bytes": len(build.plan),
        "sha256": hashlib.sha256(build.plan).hexdigest(),
        "weight_bytes": reading.weight_bytes,
        "how_read": reading.how_read,
        "warnings": [text for severity, text in build.messages if severity == "WARNING"],
        "layers": layers,
    }


def _logger(trt: Any) -> Any:
    """An ILogger that keeps every message from INFO upwards and prints none."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[str, str]] = []

        def log(self, severity: Any, text: str) -> None:
            if severity != trt.ILogger.Severity.VERBOSE:
                self.messages.append((str(severity).rpartition(".")[2], text))

    return Logger()


def _network_flags(trt: Any) -> int:
    """STRONGLY_TYPED where the version knows the flag; later ones know nothing else."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _set_batch(builder: Any, network: Any, config: Any, batch: int) -> None:
    """Give every input with a free first axis the range 1 to `batch`, tuned for 1."""
    profile = builder.create_optimization_profile()
    free = False
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        shape = tuple(tensor.shape)
        if shape and shape[0] < 0:
            free = True
            profile.set_shape(tensor.name, (1, *shape[1:]), (1, *shape[1:]), (batch, *shape[1:]))
    if free:
        config.add_optimization_profile(profile)


def _refused(backend: Backend, words: str, model: onnx.ModelProto, node: str = "") -> BackendMissing:
    """The error for a model the backend does not take; names the nodes that its words mention."""
    mentioned = [n.name for n in model.graph.node if n.name and f"{n.name}:" in words]
    where = f"node {node}" if node else ", ".join(f"node {name}" for name in dict.fromkeys(mentioned))
    return BackendMissing(
        f"{backend.name} {backend.version} refused the model: {words.strip()}",
        where=where or "model.trt.onnx",
        fix="use --target onnx or integer, or change that part of the network",
    )
