"""Make examples/demo/calib.npz and eval.npz from lossless CIFAR-10 images.

    python examples/make_demo_data.py TRAIN.npz TEST.npz

Both files hold `images` (uint8, N x 32 x 32 x 3, RGB), eval.npz also `labels` (int64, N). Nothing is drawn at random.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent / "demo"
CALIBRATION, EVALUATION = 128, 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="calibration images are taken from here")
    parser.add_argument("test", type=Path, help="evaluation images are taken from here")
    paths = parser.parse_args()
    HERE.mkdir(parents=True, exist_ok=True)
    with np.load(paths.train, allow_pickle=False) as data:
        chosen = balanced(data["labels"], CALIBRATION)
        np.savez_compressed(HERE / "calib.npz", images=data["images"][chosen])
    with np.load(paths.test, allow_pickle=False) as data:
        chosen = balanced(data["labels"], EVALUATION)
        np.savez_compressed(HERE / "eval.npz", images=data["images"][chosen], labels=data["labels"][chosen])


def balanced(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Sorted indices of `count` samples: the first of each class in turn, until there are enough."""
    turn = np.empty_like(labels)
    for label in np.unique(labels):
        turn[labels == label] = np.arange(np.count_nonzero(labels == label))
    return np.sort(np.lexsort((labels, turn))[:count])


if __name__ == "__main__":
    main()
