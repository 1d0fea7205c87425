"""Encoder of clips: a vision transformer on small cuboids of a clip, some frames long and a patch high and wide.

Sizes of clips are those of the spec: any number of frames, rows and columns that cuboids tile.

Sources: Bardes et al. 2024 (V-JEPA, arXiv 2404.08471) and V-JEPA 2 (arXiv 2506.09985) for rotary positions; sheet
salt_video, sections 1.1 and 1.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchrl.data import Composite

from perception.patches import MEAN, STD, PatchTransformer
from worldmodels.keys import OBSERVATION, PIXELS


class VideoTransformer(PatchTransformer):
    """Cuboids of a clip through a pre-norm transformer.

    Args:
        spec: one clip; needs ("observation", "pixels") uint8 [T, C, H, W].
        patch: side of a cuboid in pixels; must divide height and width.
        tubelet: its frames; must divide T.
        mean, std: of each channel, of values from 0 to 1.
        options: see ``PatchTransformer``.

    Raises:
        ValueError: if the spec has no clips or other channels than ``mean``, or if cuboids do not tile the clip.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        patch: int,
        tubelet: int = 2,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        **options: Any,
    ) -> None:
        frames, channels, height, width = clip_shape(spec, mean, std)
        if frames % tubelet or height % patch or width % patch:
            raise ValueError(
                f"cuboids of {tubelet} x {patch} x {patch} do not tile clips of {frames} frames of {height} x {width}: "
                "set encoder.tubelet, encoder.patch, or the views' num_frames and size to fit"
            )
        grid = (frames // tubelet, height // patch, width // patch)
        super().__init__(grid=grid, num_entries=tubelet * patch * patch, mean=mean, std=std, **options)
        self.patch, self.tubelet, self.clip = patch, tubelet, (frames, channels, height, width)

    def cut(self, pixels: Tensor) -> Tensor:
        """Cuboids [B, N, C U P P] of clips [B, T, C, H, W], by time, row, column.

        Entries of a cuboid lie as those of a three-dimensional convolution's weight: by channel, frame, row, column.
        """
        if tuple(pixels.shape[1:]) != self.clip:
            raise ValueError(
                f"this encoder takes clips [T, C, H, W] = {list(self.clip)}, not {list(pixels.shape[1:])}: `fitted` of "
                "the views brings them to its size; a still picture is a clip of equal frames"
            )
        cells = pixels.unflatten(4, (-1, self.patch)).unflatten(3, (-1, self.patch)).unflatten(1, (-1, self.tubelet))
        return cells.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4).flatten(1, 3)  # of [B, T', U, C, H', P, W', P]


def clip_shape(spec: Composite, mean: Sequence[float], std: Sequence[float]) -> tuple[int, int, int, int]:
    """Frames, channels, height and width of the clips of ``spec``.

    Raises:
        ValueError: if there are none, or ``mean`` and ``std`` are of other channels.
    """
    have = sorted(map(str, spec[OBSERVATION].keys())) if OBSERVATION in spec.keys() else []
    if PIXELS not in have:
        raise ValueError(f"encoder=video_... needs observation/pixels in the data; it has {have}. Use encoder=state.")
    shape = spec[OBSERVATION, PIXELS].shape
    if len(shape) != 4:
        raise ValueError(
            f"encoder=video_... needs clips, observation/pixels [T, C, H, W]; these are {list(shape)}. Use "
            "encoder=vit_small for pictures, or views=clips, which makes clips of frames and of pictures."
        )
    frames, channels, height, width = shape
    for key, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(f"encoder.{key} has {len(values)} numbers; clips have {channels} channels")
    return frames, channels, height, width
