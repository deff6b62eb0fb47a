"""Through the blocks of a graph, from the last towards the first, with a checkpoint after each.

What was learned of a block is kept where it brings the network's outputs closer to the float ones, on the samples held
out from learning and by more than CERTAIN standard errors over these: a block that errs less need not make the network
err less. Where several in a row were left as they were, the walk ends. The last blocks come first since they gain the
most: there few positions of few images decide very many weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ompq_deploy.artifacts import Float32, Float64, PreparedGraph, QuantizedGraph, Samples
from ompq_deploy.augment import copies_for, with_copies
from ompq_deploy.errors import BadInput
from ompq_deploy.evaluate.head_search import find_heads
from ompq_deploy.evaluate.heads import SOFTENED, Heads, Reference
from ompq_deploy.files import checkpoint as files
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.quantize.fisher import fisher_weights
from ompq_deploy.quantize.reconstruct import FISHER, ReconstructSettings
from ompq_deploy.quantize.reconstruct.block import BlockData, BlockNetwork
from ompq_deploy.quantize.reconstruct.blocks import Block, find_blocks
from ompq_deploy.quantize.reconstruct.fronts import Front, last_fronts
from ompq_deploy.quantize.reconstruct.learn import copied, held_out, learn, restore
from ompq_deploy.runtime.timing import Listener
from ompq_deploy.torch_graph.chunks import Tensors, take
from ompq_deploy.torch_graph.fake_quant import FakeQuantGraph
from ompq_deploy.torch_graph.graph import TorchGraph, best_device, on_device
from ompq_deploy.torch_graph.threads import torch_threads

BAR = 20
"""Characters of the progress bar."""
SEED_STRIDE = 1_000_003
FRESH = 1
"""Keeps the copies apart from those that made the integers at the start."""
CERTAIN = 2.0
"""With one standard error a sixth of the blocks that change nothing would pass."""
IN_VAIN = 4
"""Blocks left as they were, in a row, after which the others are not tried."""
MOST_NUMBERS = 2**28
"""Numbers in front of a block, over all rows, that copies may lead to; and in front of all blocks that are tried."""

log = logging.getLogger(__name__)


def walk(
    start: QuantizedGraph, samples: Samples, settings: ReconstructSettings, checkpoint: Path | None, tell: Listener
) -> QuantizedGraph:
    """`reconstruct`, with torch there."""
    device = best_device()
    network = FakeQuantGraph(start).requires_grad_(False).to(device)
    exact = TorchGraph(start.graph).to(device)
    blocks = find_blocks(start.graph)
    parts = [BlockNetwork(network, block) for block in blocks]
    run = identity(start, samples, settings)
    state = _resume(network, checkpoint, run) if checkpoint else _State()
    heads = find_heads(start.graph, samples, settings.threads)
    with torch_threads(settings.threads):
        copies = copies_for(len(samples), _largest(start.graph, blocks), settings.rows, MOST_NUMBERS)
        rows = with_copies(samples, copies, (settings.seed, FRESH), settings.augment)
        feeds = {name: on_device(x, device) for name, x in rows.inputs.items()}
        fronts = last_fronts(exact, parts, heads.tensors, feeds, MOST_NUMBERS)
        tried = parts[1 - len(fronts) :]
        judge = _Judge(heads, tried, fronts, len(samples))
        progress = _Progress(len(tried), state.done, tell)
        while state.done < len(tried) and state.in_vain < IN_VAIN:
            number = len(tried) - 1 - state.done
            part, seed = tried[number], settings.seed * SEED_STRIDE + len(parts) - 1 - state.done
            data = _data(part.block, fronts[number], fronts[number + 1], len(samples))
            if settings.loss == FISHER:
                data = replace(data, weights=_fisher(exact, heads, part, fronts[number], data.targets, seed))
            original = copied(part.parameters())
            learned = learn(part, data, settings, seed)
            kept = learned.after < learned.before and judge.gains(number)
            if not kept:
                restore(part.parameters(), original)
            log.info("%s: %.4g -> %.4g in %d steps, %s", part.block.name, learned.before, learned.after, learned.steps,
                     "kept" if kept else "left as it was")  # fmt: skip
            state = _State(done=state.done + 1, in_vain=0 if kept else state.in_vain + 1)
            if checkpoint:
                files.save(checkpoint, run, {**asdict(state), "network": network.state_dict()})
            progress.passed(state.done)
    return network.quantized()


@dataclass(frozen=True, kw_only=True)
class _State:
    """How many of the last blocks are done, and how many in a row were left as they were."""

    done: int = 0
    in_vain: int = 0


def identity(start: QuantizedGraph, samples: Samples, settings: ReconstructSettings) -> dict[str, Any]:
    """What a checkpoint is bound to: sha256 of model, samples and the integers to begin with, whether the samples are
    images, and the settings."""
    integers = hashlib.sha256()
    for q in start.layers:
        integers.update(json.dumps([q.layer.name, q.bits, sorted(q.biases)]).encode())
        for data in (q.codes.tobytes(), q.scale.tobytes(), *(q.biases[node].tobytes() for node in sorted(q.biases))):
            integers.update(data)
    integers.update(json.dumps({name: asdict(grid) for name, grid in sorted(start.grids.items())}).encode())
    model = hashlib.sha256(start.graph.model.SerializeToString(deterministic=True)).hexdigest()
    return {
        "model": model,
        "samples": samples.sha256,
        "layout": samples.layout,
        "integers": integers.hexdigest(),
        "settings": asdict(settings),
    }


def _largest(graph: PreparedGraph, blocks: Sequence[Block]) -> int:
    """Numbers per row in front of the block that reads most."""
    index = GraphIndex(graph.model)
    return max(sum(map(index.numbers, block.inputs)) for block in blocks)


def _data(block: Block, front: Front, behind: Front, samples: int) -> BlockData:
    return BlockData(
        exact={name: front.exact[name] for name in block.inputs},
        inputs={name: front.quantized[name] for name in block.inputs},
        targets={name: behind.exact[name] for name in block.outputs},
        samples=samples,
    )


def _fisher(exact: TorchGraph, heads: Heads, part: BlockNetwork, front: Front, targets: Tensors, seed: int) -> Tensors:
    device = next(iter(targets.values())).device
    generator = torch.Generator(device).manual_seed(seed)
    fixed = part.network.origin.graph.batch
    return fisher_weights(exact, heads, {**front.exact, **targets}, part.block.outputs, fixed, generator)


def _resume(network: FakeQuantGraph, path: Path, run: dict[str, Any]) -> _State:
    """How far an earlier run of the same kind has come, whose state `network` gets."""
    if not path.exists():
        return _State()
    try:
        state = files.load(path, run)
    except BadInput as e:
        log.info("%s is not used, and will be overwritten: %s", path, e.what)
        return _State()
    network.load_state_dict(state.pop("network"))
    return _State(**state)


class _Judge:
    """How far the outputs of the network as it is are from those of the float one on held-out rows: a distance for each
    of their samples, the mean over its copies. `fronts` are those of `parts`, the last blocks, and the one behind."""

    def __init__(self, heads: Heads, parts: Sequence[BlockNetwork], fronts: Sequence[Front], samples: int) -> None:
        self._heads, self._parts, self._fronts = heads, parts, fronts
        end = fronts[-1].exact
        rows = len(end[heads.tensors[0]])
        self._copies, self._held = rows // samples, held_out(rows, samples)
        self._reference = Reference(heads=heads, outputs=self._compared(take(end, self._held)))
        self._distances = self._measured(0)

    def gains(self, number: int) -> bool:
        """Whether the parameters block `number` has now lower the distances by more than chance; then they are what the
        next is compared with."""
        found = self._measured(number)
        gained = self._distances - found
        if gained.mean() <= CERTAIN * gained.std() / math.sqrt(len(gained)):
            return False
        self._distances = found
        return True

    def _measured(self, number: int) -> Float64:
        values = take(self._fronts[number].quantized, self._held)
        for part in self._parts[number:]:
            values.update(part.outputs(values))
        return self._reference.per_sample(self._compared(values), SOFTENED).reshape(self._copies, -1).mean(axis=0)

    def _compared(self, values: Tensors) -> list[Float32]:
        return [values[name].cpu().numpy() for name in self._heads.tensors]


class _Progress:
    """Tells how many blocks are done and how long the rest may take, at the pace so far."""

    def __init__(self, total: int, done: int, tell: Listener) -> None:
        self._total, self._first, self._tell = total, done, tell
        self._started = time.perf_counter()

    def passed(self, done: int) -> None:
        """`done` blocks are done."""
        pace = (time.perf_counter() - self._started) / (done - self._first)
        minutes, seconds = divmod(round(pace * (self._total - done)), 60)
        bar = ("#" * (BAR * done // self._total)).ljust(BAR, ".")
        self._tell(f"block {done}/{self._total} [{bar}] at most {minutes}:{seconds:02} left", None)
