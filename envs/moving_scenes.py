"""Moving scenes: clips of textured discs with digits on them, generated on the training device, with exact labels.

Discs move over a photograph, turn, hide one another, collide; the camera pans, the light changes. The scenes are drawn
by ``envs.scene_draws``, which tells who is who, moved by ``envs.scene_physics``, painted by ``envs.scene_rendering``
with the pictures of ``envs.scene_pictures``. A batch is a function of its generator only, and never twice the same.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torchrl.data import Bounded, Composite, Unbounded

from envs.images import JUDGED
from envs.scene_draws import MISSING, Chance, Drawn, Rules, draw
from envs.scene_pictures import scene_pictures
from envs.scene_rendering import Scene, paint
from envs.scene_surprises import Pairs, draw_twins
from worldmodels.core import Policy
from worldmodels.keys import LABEL, OBSERVATION, PIXELS


class Part(NamedTuple):
    """Labelled clips."""

    obs: TensorDict  # [N], "pixels" uint8 [N, T, 3, S, S]
    target: TensorDict  # [N], the labels


class MovingScenes:
    """Clips of moving discs; a window is one clip, its rows are the frames. Lengths are in sides of the frame.

    The largest disc, in front of all others, is the main object. Labels, the same in all rows of a clip:

    * "direction": of the main object against the background in the first frame, eight classes; against, because a pan
      of the camera moves all. Without walls it keeps it for the whole clip.
    * "speed": of the main object against the background, float32, sides a second.
    * "identity": the digit on the main object.
    * "event_order": whether the main object flashes before or after another one, the farthest.
    * "collision": whether the two objects with white rims bounce off each other.
    * "num_objects": how many there are; the number of the class, not of the objects.

    A label that a clip has not is -1, of floats NaN: events need 6 frames, two flashes two objects, a collision three
    objects, motion two frames. What happens may be hidden by the main object or by a bar; that is part of the task.

    Args:
        device: of the clips, and where they are made.
        size: side of the frames in pixels.
        num_frames: of the clips of ``part`` and ``pairs``; batches have as many as they are asked for.
        background_contrast: of the photograph behind all, 0..1; 0 is flat grey.
        val_share, test_share: of digits and photographs.
        split_seed: of the parts' pictures.
        seed: of the clips of ``part`` and ``pairs``.
        rules: of the scenes, see ``envs.scene_draws.Rules``: frame_rate, num_objects, radius, main_radius, speed,
            max_spin, has_walls, has_equal_mass, collision_chance, camera_speed, light, occluder_chance.

    Raises:
        ValueError: for settings that cannot be, by key.
        ImportError: without scikit-learn and scikit-image.
    """

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        size: int = 64,
        num_frames: int = 16,
        background_contrast: int | float = 0.6,
        val_share: int | float = 0.1,
        test_share: int | float = 0.1,
        split_seed: int = 42,
        seed: int = 0,
        **rules: Any,
    ) -> None:
        self.device, self.num_frames, self.seed, self.part_name = torch.device(device), num_frames, seed, "train"
        if size < 16:
            raise ValueError(f"env.size={size}: at least 16 pixels, or digits cannot be seen")
        if num_frames < 1:
            raise ValueError(f"env.num_frames={num_frames}: at least one")
        if not 0 <= background_contrast <= 1:
            raise ValueError(f"env.background_contrast={background_contrast}: from 0, flat grey, to 1")
        if min(val_share, test_share) <= 0 or val_share + test_share >= 1:
            raise ValueError(
                f"env.val_share={val_share}, env.test_share={test_share}: each above 0, and a rest for training"
            )
        self.rules = Rules(**rules)
        self.size, self.contrast, self.label_classes = size, float(background_contrast), self.rules.label_classes
        detail = max(12, min(48, round(2 * self.rules.main_radius * size)))  # as the main object is shown
        self._shares = {"val_share": float(val_share), "test_share": float(test_share), "seed": split_seed}
        found = scene_pictures(size, detail, **self._shares)
        self._pictures = {name: pictures.to(self.device) for name, pictures in found.items()}
        at = {"device": self.device}
        labels: dict[str, Any] = {
            name: Bounded(MISSING, len(classes) - 1, (), dtype=torch.int64, **at)
            for name, classes in self.label_classes.items()
        }
        pixels = Bounded(0, 255, (3, size, size), dtype=torch.uint8, **at)
        self.spec = Composite(
            {
                OBSERVATION: Composite({PIXELS: pixels}, **at),
                LABEL: Composite({**labels, "speed": Unbounded((), **at)}, **at),
            },
            **at,
        )

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Draw clips of ``window`` frames and paint them.

        Returns:
            batch size [B]: pixels uint8 [B, T, 3, S, S]; "label", of the names above, int64 or float32 [B, T] each.

        Raises:
            ValueError: if ``window`` is no frame.
        """
        if window < 1:
            raise ValueError(f"window={window}: a clip has at least one frame")
        drawn = self.draw(batch_size, window, generator)
        labels = {name: label[:, None].repeat(1, window) for name, label in drawn.labels.items()}
        return TensorDict({OBSERVATION: {PIXELS: self.paint(drawn.scene)}, LABEL: labels}, [batch_size])

    def attach(self, policy: Policy | None) -> None:
        """Nobody acts in these scenes."""

    def split(self, name: str) -> MovingScenes:
        """The same source with the digits and photographs of "train", "val" or "test"."""
        if name not in JUDGED:
            raise ValueError(f"there is no part {name}; parts are {', '.join(JUDGED)}")
        other = copy.copy(self)
        other.part_name = name
        return other

    def part(self, name: str, num: int, window: int | None = None) -> Part:
        """``num`` labelled clips of "train", "val" or "test", always the same ones.

        Args:
            name: of the part. num: N. window: frames of each; None takes ``num_frames``.
        """
        source = self.split(name)
        drawn = source.draw(num, _frames(window, self.num_frames), self._generator(name))
        return Part(TensorDict({PIXELS: source.paint(drawn.scene)}, [num]), TensorDict(drawn.labels, [num]))

    def pairs(self, num: int, kind: str, window: int | None = None) -> Pairs:
        """Clips of this part and their impossible twins, always the same ones: see ``envs.scene_surprises``.

        In short clips the main object must be faster than ``speed`` says to come out of the bar again: at 64 pixels it
        crosses 0.43 sides in half a clip. With 16 frames and 8 a second that is 0.43 sides a second.

        Args:
            num: N. kind: "vanish", "appear", "teleport", "identity" or "pass_through". window: as of ``part``.

        Raises:
            ValueError: for an unknown kind, or settings with which it cannot happen.
        """
        frames = _frames(window, self.num_frames)
        chance = Chance(self._generator(f"{self.part_name}/{kind}"), self.device)
        twins = draw_twins(self.rules, self._pictures[self.part_name], num, frames, kind, chance)
        possible, impossible = (
            self.paint(scene, extents=twins.extents, has_bars=True) for scene in (twins.possible, twins.impossible)
        )
        does_differ = torch.stack([(a != b).flatten(1).any(1) for a, b in zip(possible, impossible, strict=True)])
        first = does_differ.to(torch.uint8).argmax(1)
        return Pairs(TensorDict({PIXELS: possible}, [num]), TensorDict({PIXELS: impossible}, [num]), first)

    def draw(self, num: int, window: int, generator: Generator) -> Drawn:
        """Clips of this part that are not painted yet: where everything is, and the labels."""
        chance = Chance(generator, self.device)
        return draw(self.rules, self._pictures[self.part_name], num, window, chance)

    def paint(self, scene: Scene, *, extents: Sequence[float] | None = None, has_bars: bool | None = None) -> Tensor:
        """Frames uint8 [B, T, 3, S, S] of a scene of this part; None: as the settings are."""
        return paint(
            scene,
            self._pictures[self.part_name],
            extents=self.rules.extents if extents is None else extents,
            has_walls=self.rules.has_walls,
            contrast=self.contrast,
            has_bars=self.rules.occluder_chance > 0 if has_bars is None else has_bars,
        )

    def describe(self) -> dict[str, Any]:
        """What a run keeps of its data, for JSON."""
        counts = {
            name: {"digits": len(pictures.ink), "photograph_patches": len(pictures.texture)}
            for name, pictures in self._pictures.items()
        }
        chosen = {"size": self.size, "background_contrast": self.contrast, "num_frames": self.num_frames}
        classes = {name: list(names) for name, names in self.label_classes.items()}
        return {**chosen, "rules": asdict(self.rules), "split": self._shares, "pictures": counts, "labels": classes}

    def _generator(self, what: str) -> Generator:
        """Of clips that are always the same; on the CPU, so that they are so on every device."""
        return Generator().manual_seed(zlib.crc32(f"{self.seed}/{what}".encode()))


def _frames(window: int | None, usual: int) -> int:
    if window is not None and window < 1:
        raise ValueError(f"window={window}: a clip has at least one frame")
    return usual if window is None else window
