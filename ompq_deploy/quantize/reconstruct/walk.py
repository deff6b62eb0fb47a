"""Through the blocks of a graph, one after the other, with a checkpoint after each.

What was learned of a block is kept where it brings the network's outputs closer to the float ones, the blocks behind as
they were, on the samples held out from learning and by more than CERTAIN standard errors over these: a block that errs
less need not make the network err less.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ompq_deploy.artifacts import Float64, PreparedGraph, QuantizedGraph, Samples
from ompq_deploy.augment import copies_for, with_copies
from ompq_deploy.errors import BadInput
from ompq_deploy.evaluate.head_search import find_heads
from ompq_deploy.evaluate.heads import SOFTENED, Heads, Reference
from ompq_deploy.files import checkpoint as files
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.quantize.reconstruct import FISHER, ReconstructSettings
from ompq_deploy.quantize.reconstruct.block import BlockData, BlockNetwork
from ompq_deploy.quantize.reconstruct.blocks import Block, find_blocks
from ompq_deploy.quantize.reconstruct.fisher import fisher_weights
from ompq_deploy.quantize.reconstruct.learn import copied, held_out, learn, restore
from ompq_deploy.quantize.reconstruct.prefix import Prefix, Tensors, in_chunks, take
from ompq_deploy.runtime.threads import resolved
from ompq_deploy.runtime.timing import Listener
from ompq_deploy.torch_graph.fake_quant import FakeQuantGraph
from ompq_deploy.torch_graph.graph import best_device

BAR = 20
"""Characters of the progress bar."""
SEED_STRIDE = 1_000_003
FRESH = 1
"""Keeps the copies apart from those that made the integers at the start."""
CERTAIN = 2.0
"""With one standard error a sixth of the blocks that change nothing would pass."""
MOST_NUMBERS = 2**28
"""Numbers in front of a block, over all rows, that copies may lead to."""

log = logging.getLogger(__name__)


def walk(
    start: QuantizedGraph, samples: Samples, settings: ReconstructSettings, checkpoint: Path | None, tell: Listener
) -> QuantizedGraph:
    """`reconstruct`, with torch there."""
    device = best_device()
    network = FakeQuantGraph(start).requires_grad_(False).to(device)
    blocks = find_blocks(start.graph)
    parts = [BlockNetwork(network, block) for block in blocks]
    run = identity(start, samples, settings)
    done = _resume(network, checkpoint, run) if checkpoint else 0
    progress = _Progress(len(blocks), done, tell)
    heads = find_heads(start.graph, samples, settings.threads)
    with _threads(settings.threads):
        copies = copies_for(len(samples), _largest(start.graph, blocks), settings.rows, MOST_NUMBERS)
        rows = with_copies(samples, copies, (settings.seed, FRESH), settings.augment)
        prefix = Prefix(network, rows, blocks, device)
        judge = _Judge(heads, parts, prefix, len(rows), len(samples))
        for number, part in enumerate(parts):
            block = part.block
            exact, inputs = prefix.inputs(block)
            data = BlockData(exact=exact, inputs=inputs, targets=prefix.targets(block), samples=len(samples))
            if number >= done:
                seed = settings.seed * SEED_STRIDE + number
                if settings.loss == FISHER:
                    data = replace(data, weights=_fisher(prefix, heads, block, data.targets, start.graph.batch, seed))
                original = copied(part.parameters())
                learned = learn(part, data, settings, seed)
                kept = learned.after < learned.before and judge.gains(number)
                if not kept:
                    restore(part.parameters(), original)
                log.info("%s: %.4g -> %.4g in %d steps, %s", block.name, learned.before, learned.after, learned.steps,
                         "kept" if kept else "left as it was")  # fmt: skip
                if checkpoint:
                    files.save(checkpoint, run, {"done": number + 1, "network": network.state_dict()})
                progress.passed(number + 1)
            prefix.advance(number, data.targets, part.outputs(inputs))
    return network.quantized()


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


def _fisher(prefix: Prefix, heads: Heads, block: Block, targets: Tensors, fixed: int | None, seed: int) -> Tensors:
    device = next(iter(targets.values())).device
    generator = torch.Generator(device).manual_seed(seed)
    behind = {**prefix.alive(exact=True), **targets}
    return fisher_weights(prefix.exact_network, heads, behind, block.outputs, fixed, generator)


def _resume(network: FakeQuantGraph, path: Path, run: dict[str, Any]) -> int:
    """How many blocks an earlier run of the same kind has done, whose state `network` gets."""
    if not path.exists():
        return 0
    try:
        state = files.load(path, run)
    except BadInput as e:
        log.info("%s is not used, and will be overwritten: %s", path, e.what)
        return 0
    network.load_state_dict(state["network"])
    return int(state["done"])


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch on `count` threads, 0 for as many as it likes of the cores granted."""
    before = torch.get_num_threads()
    torch.set_num_threads(resolved(count) or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Judge:
    """How far the outputs of the network, its first blocks learned, are from those of the float one on held-out rows:
    a distance for each of their samples, the mean over its copies."""

    def __init__(self, heads: Heads, parts: Sequence[BlockNetwork], prefix: Prefix, rows: int, samples: int) -> None:
        self._heads, self._parts, self._prefix = heads, parts, prefix
        self._rows = held_out(rows, samples)
        self._copies = rows // samples
        feed = take(prefix.alive(exact=True), self._rows)
        fixed = parts[0].network.origin.graph.batch
        exact = in_chunks(lambda x: prefix.exact_network(x, outputs=heads.tensors), feed, fixed)
        self._reference = Reference(heads=heads, outputs=[exact[name].cpu().numpy() for name in heads.tensors])
        self._distances = self._measured(0)

    def gains(self, number: int) -> bool:
        """Whether the parameters that block `number` has now, after all before it were passed, lower the distances by
        more than chance; then they are what the next block is compared with."""
        found = self._measured(number)
        gained = self._distances - found
        if gained.mean() <= CERTAIN * gained.std() / math.sqrt(len(gained)):
            return False
        self._distances = found
        return True

    def _measured(self, number: int) -> Float64:
        values = take(self._prefix.alive(exact=False), self._rows)
        for part in self._parts[number:]:
            values.update(part.outputs({name: values[name] for name in part.block.inputs}))
        outputs = [values[name].cpu().numpy() for name in self._heads.tensors]
        return self._reference.per_sample(outputs, SOFTENED).reshape(self._copies, -1).mean(axis=0)


class _Progress:
    """Tells how many blocks are done and how long the rest will take, at the pace so far."""

    def __init__(self, total: int, done: int, tell: Listener) -> None:
        self._total, self._first, self._tell = total, done, tell
        self._started = time.perf_counter()

    def passed(self, done: int) -> None:
        """`done` blocks are done."""
        pace = (time.perf_counter() - self._started) / (done - self._first)
        minutes, seconds = divmod(round(pace * (self._total - done)), 60)
        bar = ("#" * (BAR * done // self._total)).ljust(BAR, ".")
        self._tell(f"block {done}/{self._total} [{bar}] {minutes}:{seconds:02} left", None)
