"""Carry all calibration samples through the network, one layer at a time.

The graph is cut in front of every layer. Between two cuts live only the tensors that are still to be read, for all
samples; a step feeds them through the next piece with onnxruntime. A whole walk costs about one pass of the network.
Tensors on an integer grid are carried as their uint8 codes where the stream simulates quantization.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ompq_deploy.artifacts import Grid, PreparedGraph, Samples
from ompq_deploy.graph.index import GraphIndex, reads
from ompq_deploy.runtime.batches import feeds
from ompq_deploy.runtime.sessions import session_options, start

if TYPE_CHECKING:
    import onnxruntime as ort

BATCH = 8
"""Samples fed at a time where the batch axis is free."""

KEEP_FLOAT_WEIGHTS = ("session.disable_quant_qdq", "1")
"""Without it onnxruntime quantizes a float weight between Q/DQ nodes by itself, to int8 per tensor."""
CODES = ":codes"
RAW = ":raw"

Watch = Callable[[int, NDArray], None]
"""Called with the number of a batch and a tensor of it."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What stands in for the layer node that begins a piece: nodes and the constants they add."""

    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, NDArray]


def pieces(graph: PreparedGraph) -> list[list[onnx.NodeProto]]:
    """The graph's nodes in order, cut in front of every node of a layer; the first piece holds what precedes them."""
    heads = {name for layer in graph.layers for name in layer.nodes}
    result: list[list[onnx.NodeProto]] = [[]]
    for node in graph.model.graph.node:
        if node.name in heads:
            result.append([])
        result[-1].append(node)
    return result


class Stream:
    """All samples between two pieces. `grids` are the grids to simulate; empty for the float network."""

    def __init__(self, graph: PreparedGraph, samples: Samples, grids: Mapping[str, Grid], threads: int) -> None:
        self._graph = graph
        self._index = GraphIndex(graph.model)
        self._pieces = pieces(graph)
        self._next = 0
        self._grids = grids
        self._threads = threads
        self._last_read = {name: i for i, piece in enumerate(self._pieces) for node in piece for name in reads(node)}
        self._batches: list[dict[str, NDArray]] = []
        self._counts: list[int] = []
        self._size = graph.batch or BATCH
        for feed, count in feeds(samples, graph.batch, BATCH):
            self._batches.append({name: self._codes(name, feed[name]) for name in graph.input_names})
            self._counts.append(count)

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self._batches)

    def first_row(self, batch: int) -> int:
        """The place of a batch's first sample among all."""
        return batch * self._size

    def value(self, batch: int, tensor: str) -> NDArray:
        """A tensor in front of the next piece: its codes where the stream simulates its grid."""
        return self._of_samples(batch, self._batches[batch][tensor])

    def step(self, head: Head | None = None, tap: str = "", watch: Watch | None = None) -> None:
        """Feed every batch through the next piece; `head` stands in for its first node.

        `tap` is a tensor of the piece to show to `watch`, as computed, before it is put on a grid.
        """
        piece = self._pieces[self._next]
        kept = [name for node in piece for name in node.output if self._last_read.get(name, -1) > self._next]
        if kept or tap:
            session = self._session(piece, [self._fed(name) for name in kept], self._raw(tap) if tap else "", head)
            names = [value.name for value in session.get_outputs()]
            for i, carried in enumerate(self._batches):
                feed = {value.name: carried[value.name.removesuffix(CODES)] for value in session.get_inputs()}
                results = dict(zip(names, session.run(names, feed), strict=True))
                if watch is not None:
                    watch(i, self._of_samples(i, results[self._raw(tap)]))
                carried.update({name: results[self._fed(name)] for name in kept})
        for carried in self._batches:
            for name in [name for name in carried if self._last_read.get(name, -1) <= self._next]:
                del carried[name]
        self._next += 1

    def _of_samples(self, batch: int, value: NDArray) -> NDArray:
        """What a batch's samples have of a tensor, without what fills up a fixed batch."""
        fixed = self._graph.batch
        if fixed is None or self._counts[batch] == fixed or len(value) % fixed:
            return value
        return value[: len(value) // fixed * self._counts[batch]]

    def _session(
        self, piece: Sequence[onnx.NodeProto], outputs: Sequence[str], tap: str, head: Head | None
    ) -> ort.InferenceSession:
        if head is not None:
            piece = [*head.nodes, *piece[1:]]
        constants = (
            {name: numpy_helper.from_array(value, name) for name, value in head.constants.items()} if head else {}
        )
        made = {name for node in piece for name in node.output}
        nodes, inputs = [], []
        for name in sorted({name for node in piece for name in reads(node)} - made - set(constants)):
            if self._index.is_constant(name):
                constants[name] = self._index.initializers[name]
                continue
            elem = helper.np_dtype_to_tensor_dtype(self._batches[0][name].dtype)
            inputs.append(helper.make_tensor_value_info(self._fed(name), elem, None))
            if name in self._grids:
                nodes.append(
                    helper.make_node("DequantizeLinear", [self._fed(name), *self._grid(name, constants)], [name])
                )
        for node in piece:
            nodes += self._simulated(node, constants)
        returned = dict.fromkeys([*outputs, tap] if tap else outputs)
        values = [onnx.ValueInfoProto(name=name) for name in returned]
        graph = helper.make_graph(nodes, "piece", inputs, values, list(constants.values()))
        model = helper.make_model(
            graph, opset_imports=self._graph.model.opset_import, ir_version=self._graph.model.ir_version
        )
        options = session_options(self._threads)
        options.add_session_config_entry(*KEEP_FLOAT_WEIGHTS)
        return start(model, options)

    def _simulated(self, node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
        """The node, and what puts its outputs on their grids."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        result = [copy]
        for position, name in enumerate(node.output):
            if name in self._grids:
                copy.output[position] = self._raw(name)
                grid = self._grid(name, constants)
                result.append(helper.make_node("QuantizeLinear", [self._raw(name), *grid], [self._fed(name)]))
                result.append(helper.make_node("DequantizeLinear", [self._fed(name), *grid], [name]))
        return result

    def _grid(self, tensor: str, constants: dict[str, onnx.TensorProto]) -> tuple[str, str]:
        """Names of the scale and zero-point of a tensor."""
        scale, zero_point = f"{tensor}{CODES}_scale", f"{tensor}{CODES}_zero_point"
        constants[scale] = numpy_helper.from_array(np.array(self._grids[tensor].scale, np.float32), scale)
        constants[zero_point] = numpy_helper.from_array(np.array(self._grids[tensor].zero_point, np.uint8), zero_point)
        return scale, zero_point

    def _fed(self, tensor: str) -> str:
        """The name under which a tensor enters or leaves a piece."""
        return f"{tensor}{CODES}" if tensor in self._grids else tensor

    def _raw(self, tensor: str) -> str:
        """The name of a tensor before it is put on its grid."""
        return f"{tensor}{RAW}" if tensor in self._grids else tensor

    def _codes(self, tensor: str, value: NDArray) -> NDArray:
        grid = self._grids.get(tensor)
        return value if grid is None else (grid.steps(value) + grid.zero_point).astype(np.uint8)
