"""Ask TensorRT's own inspector about an engine; that takes a GPU on which the engine deserializes.

Two schemas are known, from NVIDIA's documentation and issue 4020 of NVIDIA/TensorRT:

    10.x      "Format/Datatype": "... row major Int8 format",  "Weights": {"Type": "Int8", "Count": 36864}
    11.x, RTX "Datatype": "Int8", "Dimensions": [16, 8, 3, 3], under "Inputs" and "Constants"
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ompq_deploy.export.tensorrt.backend import Backend
from ompq_deploy.export.tensorrt.plan_text import Operand, Operation, onnx_nodes

_BITS = {"INT4": 4, "INT8": 8, "FP8": 8, "FP16": 16, "BF16": 16, "FP32": 32}
_TYPE = re.compile(r"\b(Int4|Int8|FP8|FP16|Half|BF16|BFloat16|FP32|Float)\b", re.IGNORECASE)
_SAME = {"HALF": "FP16", "BFLOAT16": "BF16", "FLOAT": "FP32"}


def inspector_text(backend: Backend, plan: bytes) -> str:
    """The inspector's JSON, or "" where the engine does not deserialize, as on a machine without a GPU."""
    trt = backend.module
    logger = trt.Logger(trt.Logger.Severity.INTERNAL_ERROR)
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def inspector_operations(text: str) -> tuple[Operation, ...]:
    """The layers of the inspector's JSON as operations; layers of which it tells only names are left out."""
    if not text:
        return ()
    layers = json.loads(text).get("Layers", [])
    return tuple(_operation(layer) for layer in layers if isinstance(layer, dict))


def _operation(layer: dict[str, Any]) -> Operation:
    constants = [_operand(entry, constant=True) for entry in layer.get("Constants", [])]
    weights = layer.get("Weights")
    if isinstance(weights, dict) and weights.get("Count"):
        entry = {
            "Name": f"{layer.get('Name', '')} weights",
            "Datatype": weights.get("Type", ""),
            "Dimensions": [weights["Count"]],
        }
        constants.append(_operand(entry, constant=True))
    inputs = [_operand(entry, constant=False) for entry in layer.get("Inputs", [])]
    return Operation(
        kind=layer.get("ParameterType") or layer.get("LayerType", ""),
        name=layer.get("Name", ""),
        inputs=(*inputs, *constants),
        outputs=tuple(entry.get("Name", "") for entry in layer.get("Outputs", [])),
        onnx_nodes=onnx_nodes(layer.get("Metadata", "")),
    )


def _operand(entry: dict[str, Any], *, constant: bool) -> Operand:
    match = _TYPE.search(entry.get("Datatype") or entry.get("Format/Datatype") or "")
    word = match[1].upper() if match else "UNKNOWN"
    precision = _SAME.get(word, word)
    dims = tuple(entry.get("Dimensions", ()))
    size = (math.prod(dims) * _BITS[precision] + 7) // 8 if precision in _BITS else 0
    return Operand(
        name=entry.get("Name", ""),
        precision=precision,
        dims=dims,
        strides=tuple(entry.get("Strides", ())),
        constant_bytes=size if constant else None,
    )
