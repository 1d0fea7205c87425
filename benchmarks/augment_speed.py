"""Views of pictures: our batched augmentation, the same recipe by Pillow view by view, and the encoder that sees them.

    python -m benchmarks.augment_speed
    python -m benchmarks.augment_speed --path ../shared/data/cifar10/cifar10_images.tar.gz

Processor time, which other processes disturb less than wall time; the smallest of several rounds in turns. Pillow and
the encoder take a share of the views, as their time is proportional to them.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Generator, Tensor

from benchmarks.runs import command, save_table, today, version_list
from benchmarks.update_speed import hardware
from perception.augment import Augmentation, AugmentedViews
from worldmodels import build
from worldmodels.keys import OBSERVATION, PIXELS

PUBLISHED = 876  # views a second of processor time of the official Pillow pipeline, as measured for sheet seq_jepa, 4.1


def pillow_views(pictures: Tensor, how: Augmentation, size: int) -> np.ndarray:
    """The views that ``how`` tells, one after the other, uint8 [B, V, S, S, 3]."""
    made = []
    for index, picture in enumerate(pictures.permute(0, 2, 3, 1).numpy()):
        image = Image.fromarray(picture)
        rows = [entry[index] for entry in how]
        made += [_pillow_view(image, [entry[view] for entry in rows], size) for view in range(len(rows[0]))]
    return np.stack(made).reshape(*how.is_grey.shape, size, size, 3)


def _pillow_view(image: Image.Image, row: list[Tensor], size: int) -> np.ndarray:
    how = Augmentation(*row)
    top, left, height, width = map(int, how.crop.tolist())
    view = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)
    if how.is_flipped:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    factors = how.factors.tolist()
    if factors[0] != 1:
        enhance: list[Any] = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
        for which in how.order.tolist():
            if which < 3:
                view = enhance[which](view).enhance(factors[which])
            else:
                hue, saturation, value = view.convert("HSV").split()
                turned = np.asarray(hue).astype(np.int16) + round(factors[3] * 255)
                turned = Image.fromarray((turned % 256).astype(np.uint8))
                view = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
    if how.is_grey:
        view = view.convert("L").convert("RGB")
    if (sigma := float(how.sigma)) > 0:
        view = view.filter(ImageFilter.GaussianBlur(sigma))
    return np.asarray(ImageOps.solarize(view, 128) if how.is_solarised else view)


def processor_seconds(function: Callable[[], object]) -> float:
    """Of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(views: AugmentedViews, batch: Any, *, share: int, rounds: int) -> dict[str, float]:
    """Milliseconds of processor time a view: "ours", "pillow", "encoder" (a ResNet-18's forward pass)."""
    from perception.image import ResNet18

    generator, made = Generator().manual_seed(0), views(batch, Generator().manual_seed(0))
    few = batch[:share]
    how = views.draw(share, generator)
    torch.manual_seed(0)
    encoder = ResNet18(views.spec, has_small_stem=True)
    shown = made[OBSERVATION][:share].flatten(0, 1)  # [share V]
    contenders: dict[str, tuple[Callable[[], object], int]] = {
        "ours": (lambda: views(batch, generator), len(batch) * views.num),
        "pillow": (lambda: pillow_views(few[OBSERVATION, PIXELS][:, 0], how, views.size[0]), share * views.num),
        "encoder": (lambda: encoder(shown), share * views.num),
    }
    best = dict.fromkeys(contenders, float("inf"))
    with torch.no_grad():
        for _ in range(rounds):
            for name, (function, num) in contenders.items():
                best[name] = min(best[name], 1e3 * processor_seconds(function) / num)
    return best


def main() -> None:
    """Time all three, print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default=None, help="pictures; the packaged photographs if not given")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--share", type=int, default=64, help="pictures for Pillow and the encoder")
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    build.use_fast_matmul(torch.device("cpu"))
    settings = ["env=images", "views=augmented", f"views.num_views={args.views}", f"env.size={args.size}"]
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", [*settings, "objective=t_jepa"] + ([f"env.path={args.path}"] if args.path else []))
    source = instantiate(cfg.env.source, device="cpu")
    views = instantiate(cfg.views)(source.spec)
    batch = source.sample(args.batch_size, 1, Generator().manual_seed(0))
    found = measure(views, batch, share=args.share, rounds=args.rounds)
    where, load = hardware(torch.device("cpu")), os.getloadavg()[0]
    names = {
        "ours": "our augmentation, the batch at once",
        "pillow": "the same recipe by Pillow, view by view",
        "encoder": "ResNet-18 (small stem), forward pass of the views",
    }
    rows = [f"| {names[name]} | {ms:.3f} | {1e3 / ms:,.0f} | {ms / found['ours']:.1f} |" for name, ms in found.items()]
    text = [
        f"# Views of pictures on a CPU, {where}, {today()}",
        "",
        f"{command('augment_speed')}; {version_list('torch', 'numpy')}, pillow {Image.__version__}; one thread; load "
        f"average {load:.1f} on {os.cpu_count()} cores: above 1, other work slows all rows down.",
        "",
        f"{args.batch_size} pictures x {args.views} views of {args.size} pixels, seq-JEPA's recipe. The official "
        f"pipeline: {PUBLISHED} views a second of processor time (sheet seq_jepa, 4.1; another machine).",
        "",
        "| of | ms of processor time a view | views a second of it | times ours |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    save_table(f"augment-{where}", "\n".join(text))


if __name__ == "__main__":
    main()
