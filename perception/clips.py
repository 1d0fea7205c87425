"""Clips for an encoder of clips: one crop for all frames, resized in one batched call on the device.

Recipe: V-JEPA (arXiv 2404.08471); sheet salt_video, section 1.5. Mirroring is off here: it exchanges left and right,
which labels of motion tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torchrl.data import Bounded, Composite, Unbounded

from perception.augment import draw_crops, picture_shape
from perception.resample import Bilinear, Kernel, fitted, resample, resize_weights
from worldmodels.keys import ACTION, ACTIONS, OBSERVATION, PIXELS, TRANSFORMATION

_PART = {
    "cpu": 1 << 20,
    "cuda": 1 << 27,
}  # numbers worked on at a time: what stays in a cache, what fits beside a model


class ClipViews:
    """A clip is one view: the frames of a window, cut out and resized alike; ``num`` is 1.

    What it returns has leaves [B, 1, ...]: of frames ("observation", "pixels") [B, 1, T, 3, S, S], of everything else
    the clip's first row (labels are the same in every row). "transformation" [5] is top, left, height and width of the
    crop in pixels of the source, and 1 where the clip is mirrored. "action" is zero: there is no next view. Where the
    source has actions, "actions" [B, 1, window, A] are those of all rows.

    Args:
        spec: one frame; needs ("observation", "pixels") uint8 [3, H, W].
        num_frames: T, rows of a window.
        size: side of the views, or [height, width]; None keeps that of the source.
        crop_scale: least and greatest share of the area. crop_ratio: of width to height.
        flip: chance that a clip is mirrored, left to right.
        is_still: the source has pictures; a clip is one of them, repeated.
        kernel: of the resizing; None is bilinear, as published. It is widened when a crop shrinks (antialiasing).

    Raises:
        ValueError: for data without pictures in colour, for settings that make no sense, by name, and for mirroring of
            data with actions.
    """

    num = 1

    def __init__(
        self,
        spec: Composite,
        *,
        num_frames: int,
        size: int | Sequence[int] | None = None,
        crop_scale: Sequence[int | float] = (0.3, 1.0),
        crop_ratio: Sequence[int | float] = (0.75, 1.35),
        flip: int | float = 0.0,
        is_still: bool = False,
        kernel: Kernel | None = None,
    ) -> None:
        self.source_shape = picture_shape(spec, "views of clips")
        height, width = (size, size) if isinstance(size, int) else size or self.source_shape
        self.size, self.kernel, self.flip = (int(height), int(width)), kernel or Bilinear(), float(flip)
        if num_frames < 1 or min(self.size) < 1:
            raise ValueError(f"views.num_frames={num_frames}, views.size={size}: at least one frame and one pixel")
        if not 0 <= flip <= 1:
            raise ValueError(f"views.flip={flip}: a chance lies within 0 and 1")
        for name, pair, most in (("crop_scale", crop_scale, 1.0), ("crop_ratio", crop_ratio, float("inf"))):
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
                raise ValueError(f"views.{name}={list(pair)}: the least and the greatest, above 0, at most {most:g}")
        self.scale, self.ratio = (
            (float(crop_scale[0]), float(crop_scale[1])),
            (float(crop_ratio[0]), float(crop_ratio[1])),
        )
        self.num_frames, self.window = num_frames, 1 if is_still else num_frames
        self.spec, device = spec.clone(), spec.device
        self.spec[OBSERVATION, PIXELS] = Bounded(0, 255, (num_frames, 3, *self.size), dtype=torch.uint8, device=device)
        self.spec[TRANSFORMATION] = Unbounded((5,), device=device)
        self._has_actions = ACTION in spec.keys()
        if self._has_actions:
            if flip:
                raise ValueError(f"views.flip={flip}: the data have actions, which mirroring would belie; set it to 0")
            taken = spec[ACTION]
            self.spec[ACTIONS] = Unbounded((self.window, *taken.shape), dtype=taken.dtype, device=device)
        self.spec[ACTION] = Unbounded((5,), device=device)

    def __call__(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Make clips of frames ("observation", "pixels") [B, T, 3, H, W]; leaves become [B, 1, ...]."""
        frames = batch[OBSERVATION, PIXELS]
        if frames.ndim != 5 or tuple(frames.shape[1:]) != (self.window, 3, *self.source_shape):
            raise ValueError(
                f"clips are made of windows [{self.window}, 3, {self.source_shape[0]}, {self.source_shape[1]}] of "
                f"frames; pixels are {list(frames.shape[1:])}"
            )
        num, like = len(frames), {"generator": generator, "device": generator.device}
        crop = draw_crops((num,), self.source_shape, scale=self.scale, ratio=self.ratio, generator=generator)
        is_flipped = torch.rand((num,), **like) < self.flip
        clips = self.render(frames, crop, is_flipped).expand(-1, self.num_frames, -1, -1, -1)
        rows = batch.apply(lambda leaf: leaf[:, :1])
        assert rows is not None  # it is where all leaves are left out
        obs = rows[OBSERVATION].copy().set(PIXELS, clips[:, None])
        transformation = torch.cat([crop, is_flipped[:, None]], 1)[:, None]  # [B, 1, 5]
        if self._has_actions:
            rows[ACTIONS] = batch[ACTION][:, None]  # [B, 1, T, A]
        return rows.update({OBSERVATION: obs, TRANSFORMATION: transformation, ACTION: torch.zeros_like(transformation)})

    def fitted(self, obs: TensorDict) -> TensorDict:
        """Clips [B, T, 3, H, W], or pictures [B, 3, H, W], with their middle at the size of views; views as they are.

        Raises:
            ValueError: for clips of another number of frames; a picture is repeated.
        """
        pixels = fitted(obs[PIXELS], self.size)
        if pixels.ndim == 4:
            pixels = pixels[:, None].expand(-1, self.num_frames, -1, -1, -1)
        if pixels.shape[1] != self.num_frames:
            raise ValueError(f"clips have views.num_frames={self.num_frames} frames; these have {pixels.shape[1]}")
        return obs.copy().set(PIXELS, pixels)

    def render(self, frames: Tensor, crop: Tensor, is_flipped: Tensor) -> Tensor:
        """Clips uint8 [B, T, 3, S, S] of frames uint8 [B, T, 3, H, W], cut out by ``crop`` [B, 4] and mirrored."""
        (height, width), (rows, columns) = self.source_shape, self.size
        num, steps = frames.shape[:2]
        part = max(1, _PART.get(frames.device.type, 1 << 27) // (steps * 3 * max(height * width, rows * columns)))
        clips = frames.new_empty((num, steps, 3, rows, columns))
        for start in range(0, num, part):
            chosen = slice(start, start + part)
            top, left, tall, wide = crop[chosen, None].unbind(-1)  # [B, 1]
            mirrored = is_flipped[chosen, None]
            made = resample(
                frames[chosen].flatten(1, 2).float(),  # frames are channels: they share the crop
                resize_weights(top, tall, num=height, size=rows, kernel=self.kernel),
                resize_weights(left, wide, num=width, size=columns, kernel=self.kernel, is_flipped=mirrored),
            )  # [B, T 3, S, S]
            clips[chosen] = made.round_().clamp_(0, 255).unflatten(1, (steps, 3))
        return clips
