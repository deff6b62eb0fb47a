"""Train the demo network: a ResNet-20-shaped CIFAR-10 classifier, exported to ONNX.

The committed `examples/demo/cifar10_resnet20w.onnx` is what this script wrote. Rerun it with

    pip install -e ".[torch]" pillow
    python examples/train_demo_model.py --train TRAIN.zip --extra TRAIN.npz --test A.npz B.npz --out model.onnx

`TRAIN.zip` holds JPEG training images in class folders, the npz files hold `images` (uint8 N x 32 x 32 x 3)
and `labels` (int N). Architecture: He et al., "Deep Residual Learning for Image Recognition", section 4.2,
with widths 16-64-64 and projection shortcuts. Input: N x 3 x 32 x 32, ImageNet mean and standard deviation.
"""

from __future__ import annotations

import argparse
import io
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
WIDTHS = (16, 64, 64)
BLOCKS_PER_STAGE = 3


class ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DemoNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        blocks, channels = [], WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for index in range(BLOCKS_PER_STAGE):
                blocks.append(ResidualBlock(channels, width, 2 if stage > 0 and index == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.pool(y), 1))


def read_zip(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (uint8 N x 32 x 32 x 3) and labels (int64 N) from class folders inside a zip."""
    images, labels = [], []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            folder = Path(name).parent.name
            if name.lower().endswith((".jpg", ".jpeg", ".png")) and folder in CLASSES:
                with Image.open(io.BytesIO(archive.read(name))) as image:
                    images.append(np.asarray(image.convert("RGB")))
                labels.append(CLASSES.index(folder))
    return np.stack(images), np.asarray(labels, np.int64)


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as data:
        return data["images"], data["labels"].astype(np.int64)


def normalize(images: Tensor) -> Tensor:
    return ((images.float() / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, generator: torch.Generator, hole: int = 8) -> Tensor:
    """Random 4-pixel shift, horizontal flip and an 8 x 8 cut-out, drawn per image."""
    n, _, height, width = images.shape
    padded = F.pad(images, (4, 4, 4, 4), mode="reflect")
    top = torch.randint(0, 9, (n, 1), generator=generator) + torch.arange(height)
    left = torch.randint(0, 9, (n, 1), generator=generator) + torch.arange(width)
    flipped = torch.rand(n, generator=generator) < 0.5
    left[flipped] = left[flipped].flip(1)
    rows = torch.arange(n).view(n, 1, 1)
    out = padded.permute(0, 2, 3, 1)[rows, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2)
    y = torch.randint(0, height, (n, 1), generator=generator)
    x = torch.randint(0, width, (n, 1), generator=generator)
    in_rows = (torch.arange(height) - y).abs() < hole // 2
    in_columns = (torch.arange(width) - x).abs() < hole // 2
    return out.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


@torch.no_grad()
def accuracy(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    model.eval()
    hits = 0
    for start in range(0, len(images), 500):
        batch = normalize(torch.from_numpy(images[start : start + 500]).permute(0, 3, 1, 2))
        hits += int((model(batch).argmax(1).numpy() == labels[start : start + 500]).sum())
    return 100 * hits / len(images)


def train(args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images, labels = read_zip(args.train)
    if args.extra:
        extra_images, extra_labels = read_npz(args.extra)
        images = np.concatenate([images] + [extra_images] * args.extra_repeats)
        labels = np.concatenate([labels] + [extra_labels] * args.extra_repeats)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(labels)
    tests = [(path.stem, *read_npz(path)) for path in args.test]

    model = DemoNet()
    if args.init:
        model.load_state_dict(torch.load(args.init, weights_only=True))
    model.to(memory_format=torch.channels_last)
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(targets) // args.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=steps * args.epochs, pct_start=args.warmup
    )
    for epoch in range(args.epochs):
        model.train()
        started, total = time.time(), 0.0
        order = torch.randperm(len(targets), generator=generator)
        for step in range(steps):
            chosen = order[step * args.batch : (step + 1) * args.batch]
            batch = augment(normalize(pixels[chosen]), generator)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch)
            loss = F.cross_entropy(logits.float(), targets[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            averaged.update_parameters(model)
            total += loss.item()
        scores = "  ".join(f"{name} {accuracy(averaged, x, y):.2f}" for name, x, y in tests)
        print(
            f"epoch {epoch + 1}/{args.epochs}  loss {total / steps:.3f}  {scores}  {time.time() - started:.0f} s",
            flush=True,
        )
        torch.save(averaged.module.state_dict(), args.out.with_suffix(".pt"))
    return averaged.module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--extra", type=Path, help="npz with further training images")
    parser.add_argument("--extra-repeats", type=int, default=2)
    parser.add_argument("--test", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--warmup", type=float, default=0.2, help="share of the steps over which the rate rises")
    parser.add_argument("--init", type=Path, help="checkpoint to go on from (a .pt this script wrote)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = train(args).eval().to(memory_format=torch.contiguous_format)
    torch.onnx.export(
        model,
        (torch.zeros(1, 3, 32, 32),),
        str(args.out),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        opset_version=17,
        dynamo=False,
    )


if __name__ == "__main__":
    main()
