"""The quantized graph in torch, computing what its Q/DQ model computes, with gradients for everything that is learned.

    weight       w' = s clip(round(w / s), low, high)              s per output channel
    bias         b' = s_b clip(round(b / s_b), int32),  s_b = s s_x      s_x the step of the layer's input grid
    activation   x' = s_x clip(round(x / s_x), -z, 255 - z)        z the zero-point

round is to the even code and passes its gradient straight through (Bengio et al., 2013). With that, the gradient of
x' in s_x is that of LSQ (Esser et al., ICLR 2020, Eq. 3) without its scaling by 1 / sqrt(N 255), which is left to the
optimizer's step size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from ompq_deploy.artifacts import Float32, Grid, Layer, PreparedGraph, QuantizedGraph, QuantizedLayer
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.graph.placement import layer_grid
from ompq_deploy.numerics import along_axis, signed_range
from ompq_deploy.torch_graph.graph import TorchGraph

INSIDE = 0.49
"""How far from a code's centre, in steps, the weight that stands for it may lie."""
SMALLEST_STEP = float(np.finfo(np.float32).tiny)


class FakeQuantGraph(nn.Module):
    """A quantized graph with its weights, scales, biases and activation steps as parameters.

    Parameters are lists: `weights` (the layer's shape) and `scales` (C,), one per layer in the graph's order;
    `biases` (C_out,), one per layer node in `bias_nodes`; `steps` (), one per tensor in `graph.activations`.
    """

    def __init__(self, quantized: QuantizedGraph) -> None:
        super().__init__()
        graph = quantized.graph
        index = GraphIndex(graph.model)
        self.origin = quantized
        self.network = TorchGraph(_with_biases(quantized))
        self.bits = [q.bits for q in quantized.layers]
        self.activations = list(graph.activations)
        self.bias_nodes = [node for q in quantized.layers for node in q.layer.nodes if node in q.biases]
        self._bias_layer = [i for i, q in enumerate(quantized.layers) for node in q.layer.nodes if node in q.biases]
        position = {name: i for i, name in enumerate(self.activations)}
        self._bias_step = [
            position[layer_grid(index, graph.activations, index.nodes[name].input[0])] for name in self.bias_nodes
        ]
        floats = graph.layer_weights()
        self.weights = _parameters(nearest_inside(q, floats[q.layer.name]) for q in quantized.layers)
        self.scales = _parameters(q.scale for q in quantized.layers)
        self.biases = _parameters(
            q.biases[node] for q in quantized.layers for node in q.layer.nodes if node in q.biases
        )
        self.steps = _parameters(np.float32(quantized.grids[name].scale) for name in self.activations)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FakeQuantGraph:
        """What `to` calls: the constants of the graph move with the parameters."""
        super()._apply(fn, recurse)
        self.network.to(self.steps[0].device)
        return self

    def forward(
        self,
        feeds: Mapping[str, Tensor],
        outputs: Sequence[str] | None = None,
        *,
        weights: Mapping[str, Tensor] | None = None,
        hooks: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """The tensors named in `outputs` (default: the graph's), as `TorchGraph` does.

        `weights`, by layer name, stand for the fake-quantized ones; `hooks`, by tensor name, for `activation`.
        """
        own = {q.layer.name: i for i, q in enumerate(self.origin.layers)}
        given = weights or {}
        used = {name: given[name] if name in given else self.weight(i) for name, i in own.items()}
        biases = {bias_name(node): self.bias(i) for i, node in enumerate(self.bias_nodes)}
        quantizers = {name: self.quantizer(i) for i, name in enumerate(self.activations)}
        return self.network({**biases, **feeds}, used, {**quantizers, **(hooks or {})}, outputs)

    def weight(self, i: int) -> Tensor:
        """The fake-quantized weight of layer `i`."""
        weight, layer = self.weights[i], self.origin.layers[i].layer
        low, high = signed_range(self.bits[i])
        return fake_quantize(weight, along(self.scale(i), weight, layer), low, high)

    def scale(self, i: int) -> Tensor:
        """The weight scales of layer `i`, kept positive."""
        return self.scales[i].clamp_min(SMALLEST_STEP)

    def bias(self, i: int) -> Tensor:
        """The bias of `bias_nodes[i]` on its int32 grid; that of a MatMul stays as it is."""
        layer = self.origin.layers[self._bias_layer[i]].layer
        if layer.op == "MatMul":
            return self.biases[i]
        scale = self.step(self._bias_step[i]) * self.scale(self._bias_layer[i])
        limits = np.iinfo(np.int32)
        return fake_quantize(self.biases[i], scale.repeat(layer.groups if layer.op == "ConvTranspose" else 1),
                             limits.min, limits.max)  # fmt: skip

    def step(self, i: int) -> Tensor:
        """The step of the grid of `activations[i]`, kept positive."""
        return self.steps[i].clamp_min(SMALLEST_STEP)

    def grid(self, i: int) -> Grid:
        """The grid of `activations[i]` as it is now."""
        return replace(self.origin.grids[self.activations[i]], scale=float(self.step(i).detach()))

    def quantizer(self, i: int) -> Callable[[Tensor], Tensor]:
        """What puts `activations[i]` on its grid."""
        grid = self.origin.grids[self.activations[i]]
        return lambda x: fake_quantize(x, self.step(i), grid.low, grid.high)

    @torch.no_grad()
    def quantized(self) -> QuantizedGraph:
        """The integers that the parameters stand for now; symmetric grids grow and shrink with the others."""
        biases = {node: _array(self.biases[i]) for i, node in enumerate(self.bias_nodes)}
        layers = []
        for i, q in enumerate(self.origin.layers):
            low, high = signed_range(q.bits)
            codes = torch.clamp(
                torch.round(self.weights[i] / along(self.scale(i), self.weights[i], q.layer)), low, high
            )
            kept = {node: biases[node] for node in q.biases}
            layers.append(replace(q, codes=_array(codes).astype(np.int8), scale=_array(self.scale(i)), biases=kept))
        before, grids = self.origin.grids, {name: self.grid(i) for i, name in enumerate(self.activations)}
        symmetric = {
            name: replace(grid, scale=float(np.float32(grid.scale * grids[name].scale / before[name].scale)))
            for name, grid in self.origin.calibrated_symmetric.items()
        }
        return replace(self.origin, layers=tuple(layers), grids=grids, calibrated_symmetric=symmetric)


class _Round(torch.autograd.Function):
    """Rounding to the nearest integer, ties to even, whose gradient is 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _OneStep(torch.autograd.Function):
    """`fake_quantize` with one step for the whole tensor, in few passes over memory and with little saved.

    With y the output, g its gradient and I the elements whose codes are inside the range, I g is the gradient of x and
    sum g (y - I x) / scale that of the scale. Computed in float32 and returned in the type of x, for autocast.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        y = torch.div(x.float(), scale).round_().clamp_(low, high).mul_(scale).to(x.dtype)
        ctx.save_for_backward(x, y, scale)
        ctx.range = low, high
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, y, scale = ctx.saved_tensors
        low, high = ctx.range
        inside = torch.ops.aten.hardtanh_backward  # one pass, where a mask of bools takes three
        steps = x / scale
        error = inside(steps, steps, low - 0.5, high + 0.5).mul_(-scale).add_(y)
        of_scale = error.mul_(gradient).sum(dtype=torch.float32) / scale
        return inside(gradient, steps, low - 0.5, high + 0.5), of_scale, None, None


def fake_quantize(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """scale * clip(round(x / scale), low, high); `scale` broadcasts."""
    if scale.ndim == 0:
        return _OneStep.apply(x, scale, low, high)
    return torch.clamp(_Round.apply(x / scale), low, high) * scale


def nearest_inside(q: QuantizedLayer, weight: Float32) -> Float32:
    """The weight nearest to `weight` that rounds to the codes of `q`."""
    scale = along_axis(q.scale, q.codes.ndim, q.layer.channel_axis)
    return (scale * np.clip(weight / scale, q.codes - INSIDE, q.codes + INSIDE)).astype(np.float32)


def bias_name(node: str) -> str:
    """The name of the tensor that holds a layer node's bias."""
    return f"{node}:bias"


def _with_biases(quantized: QuantizedGraph) -> PreparedGraph:
    """The graph with every bias of the quantized layers an input of its node; MatMul has none and gets an Add."""
    model = onnx.ModelProto()
    model.CopyFrom(quantized.graph.model)
    biases = {node: bias for q in quantized.layers for node, bias in q.biases.items()}
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        model.graph.node.append(node)
        bias = biases.get(node.name)
        if bias is None:
            continue
        name = bias_name(node.name)
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(bias, np.float32), name))
        if node.op_type == "MatMul":
            (output,) = node.output
            model.graph.node[-1].output[0] = f"{output}:unbiased"
            model.graph.node.append(helper.make_node("Add", [f"{output}:unbiased", name], [output], name))
        else:
            del model.graph.node[-1].input[2:]
            model.graph.node[-1].input.append(name)
    return replace(quantized.graph, model=model)


def _parameters(values: Any) -> nn.ParameterList:
    return nn.ParameterList([torch.tensor(np.asarray(value, np.float32)) for value in values])


def along(vector: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    """A value per channel, shaped to broadcast with the layer's weight."""
    shape = [1] * weight.ndim
    shape[layer.channel_axis] = -1
    return vector.reshape(shape)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    result: NDArray[np.float32] = tensor.detach().cpu().numpy().copy()
    return result
