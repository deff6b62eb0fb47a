"""Small ONNX graphs for tests, with seeded random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class GraphBuilder:
    """Collects nodes and initializers; every method returns the name of the tensor it made."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray, name: str) -> str:
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def conv(
        self, x: str, name: str, c_in: int, c_out: int, kernel: int = 3, groups: int = 1, **attributes: object
    ) -> str:
        fan_in = c_in // groups * kernel * kernel
        weight = self.random.standard_normal((c_out, c_in // groups, kernel, kernel)) * np.sqrt(2 / fan_in)
        bias = self.random.standard_normal(c_out) * 0.1
        inputs = [
            x,
            self.constant(weight.astype(np.float32), f"{name}_weight"),
            self.constant(bias.astype(np.float32), f"{name}_bias"),
        ]
        attributes.setdefault("pads", [kernel // 2] * 4)
        return self.node("Conv", inputs, name, group=groups, kernel_shape=[kernel, kernel], **attributes)

    def gemm(self, x: str, name: str, c_in: int, c_out: int) -> str:
        weight = self.random.standard_normal((c_out, c_in)) * np.sqrt(1 / c_in)
        bias = self.random.standard_normal(c_out) * 0.1
        inputs = [
            x,
            self.constant(weight.astype(np.float32), f"{name}_weight"),
            self.constant(bias.astype(np.float32), f"{name}_bias"),
        ]
        return self.node("Gemm", inputs, name, transB=1)

    def model(self, x: list[object], y: str, y_shape: list[object], opset: int = 17) -> onnx.ModelProto:
        """The finished model with one float input `x` of shape `x` and one output `y`."""
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [y], ["y"], name="result")],
            "test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, y_shape)],
            self.initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def residual_network(batch: int | str = "N", seed: int = 0) -> onnx.ModelProto:
    """Conv+Relu, depthwise Conv+ReLU6, Conv+Add+Relu, downsampling block, GlobalAveragePool, Gemm; 3 x 16 x 16 in."""
    g = GraphBuilder(seed)
    zero, six = g.constant(np.float32(0), "zero"), g.constant(np.float32(6), "six")
    stem = g.node("Relu", [g.conv("x", "stem", 3, 8)], "stem_relu")
    wide = g.node("Clip", [g.conv(stem, "depthwise", 8, 8, groups=8), zero, six], "depthwise_clip")
    project = g.conv(wide, "project", 8, 8, kernel=1)
    block = g.node("Relu", [g.node("Add", [project, stem], "add1")], "add1_relu")
    main = g.node("Relu", [g.conv(block, "main1", 8, 16, strides=[2, 2])], "main1_relu")
    main = g.conv(main, "main2", 16, 16)
    skip = g.conv(block, "downsample", 8, 16, kernel=1, strides=[2, 2])
    block = g.node("Relu", [g.node("Add", [main, skip], "add2")], "add2_relu")
    pooled = g.node("Flatten", [g.node("GlobalAveragePool", [block], "pool")], "flatten")
    return g.model([batch, 3, 16, 16], g.gemm(pooled, "fc", 16, 10), [batch, 10])


def save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
