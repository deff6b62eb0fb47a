"""Read the program that a TensorRT for RTX plan carries, without deserializing it (which needs a GPU).

A plan is one file of little-endian parts, found by looking at plans built by 1.7.1; NVIDIA documents none of it:

    "vtrt" ... "THGW" 0 offset length      the weights: codes, scales and biases; offset (from the file's start) and
                                           length in bytes, uint64
    "NLYM" version length, then `length` bytes of text: one compiled subgraph
        tensor={ const_payload_size=1152 dims={ 16 8 3 3 } name="c" strides={ 72 1 24 8 } type=int8 ... }
        corrltn={ name="conv" output={"y" } input={"x" "c" } ... layers="[ONNX Layer: conv]..." }

Everything here answers with nothing, never with a guess, where a plan does not look like that.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

PRECISIONS = {"int4": "INT4", "int8": "INT8", "half": "FP16", "bf16": "BF16", "float": "FP32", "fp8": "FP8"}
_LINE = re.compile(r"^\s*(\w+)=\{ ?(.*)\}$")
_NODE = re.compile(r'\[ONNX Layer: (.*?)\](?=[\x1e\x1f["]|$)')
_LIST = re.compile(r'"([^"]*)"')


@dataclass(frozen=True, kw_only=True)
class Operand:
    """A tensor of a compiled program. `constant_bytes` is None for what is computed at run time; `strides` are
    in elements, in the order of `dims`."""

    name: str
    precision: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    constant_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One kernel launch: `kind` is "corrltn" for convolutions, "fully_connected", "function" for a generated kernel
    and so on; `onnx_nodes` are the nodes it computes."""

    kind: str
    name: str
    inputs: tuple[Operand, ...]
    outputs: tuple[str, ...]
    onnx_nodes: tuple[str, ...]


def weight_section(plan: bytes) -> bytes | None:
    """The bytes of the plan's weights, or None where its header does not list them."""
    position = plan.find(b"THGW\0\0\0\0", 0, 4096)
    if not plan.startswith(b"vtrt") or position < 0:
        return None
    offset, length = struct.unpack_from("<QQ", plan, position + 8)
    return plan[offset : offset + length] if offset + length <= len(plan) else None


def plan_operations(plan: bytes) -> tuple[Operation, ...]:
    """Every operation of the compiled subgraphs, in the order they run; empty where the plan holds no such text.

    Programs nested in a fused kernel repeat what the subgraph says; they hold no constants and are passed over.
    """
    found: list[Operation] = []
    start = plan.find(b"NLYM")
    while start >= 0:
        length = struct.unpack_from("<Q", plan, start + 8)[0] if start + 16 <= len(plan) else 0
        text = plan[start + 16 : start + 16 + length]
        if text.startswith(b"header {") and b"const_payload_size=" in text:
            found += _program(text.decode("utf-8", "replace"), f"{start}:")
        start = plan.find(b"NLYM", start + 4)
    return tuple(found)


def onnx_nodes(metadata: str) -> tuple[str, ...]:
    """The node names in TensorRT's layer metadata, such as `[ONNX Layer: conv][ONNX Layer: relu]`."""
    return tuple(_NODE.findall(metadata))


def _program(text: str, scope: str) -> list[Operation]:
    """The operations of one subgraph, tensor names prefixed by `scope`; operands not described are left out."""
    operands: dict[str, Operand] = {}
    found: list[Operation] = []
    for line in text.split("\n"):
        match = _LINE.match(line)
        if match is None:
            continue
        kind, body = match.groups()
        if kind in ("tensor", "sub_tensor"):
            name = _LIST.findall(_field(body, "name"))[0]
            operands[name] = _operand(body, scope + name)
        elif ' layers="' in body:
            found.append(_operation(kind, body, operands, scope))
    return found


def _operand(body: str, name: str) -> Operand:
    payload = re.search(r"const_payload_size=(\d+)", body)
    return Operand(
        name=name,
        precision=PRECISIONS.get(_field(body, "type"), _field(body, "type").upper()),
        dims=_numbers(body, "dims"),
        strides=_numbers(body, "strides"),
        constant_bytes=int(payload[1]) if payload else None,
    )


def _operation(kind: str, body: str, operands: dict[str, Operand], scope: str) -> Operation:
    read = _names(body, "input_args") or _names(body, "input")
    written = _names(body, "output_args") or _names(body, "output")
    return Operation(
        kind=kind,
        name=_field(body, "name").strip('"'),
        inputs=tuple(operands[name] for name in read if name in operands),
        outputs=tuple(scope + name for name in written),
        onnx_nodes=onnx_nodes(body.split(' layers="', 1)[1]),
    )


def _field(body: str, key: str) -> str:
    match = re.search(rf'(?:^|\s){key}=("[^"]*"|\S+)', body)
    return match[1] if match else ""


def _numbers(body: str, key: str) -> tuple[int, ...]:
    match = re.search(rf"(?:^|\s){key}={{ ([-\d ]*)}}", body)
    return tuple(int(number) for number in match[1].split()) if match else ()


def _names(body: str, key: str) -> tuple[str, ...]:
    match = re.search(rf'(?:^|\s){key}={{ ?((?:"[^"]*" )*)}}', body)
    return tuple(_LIST.findall(match[1])) if match else ()
