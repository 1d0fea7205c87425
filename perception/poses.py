"""Views that a source has rendered: what leads from one pose of an object to the next is the action.

Source: seq-JEPA (arXiv 2505.03176) on 3DIEBench; sheet seq_jepa, section 1.3. Differs: quaternions have w >= 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torchrl.data import Composite

from perception.augment import check_num, picture_shape, to_next, view_spec
from worldmodels.geometry.rotations import between, from_euler_xyz
from worldmodels.keys import ACTION, OBSERVATION, PIXELS, TRANSFORMATION

COLUMNS = {"hue": (3, 6), "spot": (4, 5)}  # of a transformation: floor and spot hue; direction of the spot light
_WIDTH = 7


class PoseViews:
    """Views of an object as they come, [B, V, ...], with "action": the rotation to the next view, and more if wanted.

    "transformation" [V, 7] stays as the source gives it: angles about x, y, z in radians, floor hue, spot theta, spot
    phi, spot hue. The action's rotation is the quaternion x, y, z, w of R_i^-1 R_(i+1), w >= 0; hues and directions are
    plain differences, not circular, as published. The last row's action is zero.

    Args:
        spec: one view; needs ("observation", "pixels") uint8 [3, H, W] and "transformation" [7].
        num_views: V, rows of a window.
        action: its parts, in this order: "rotation" (4), "hue" (2), "spot" (2).

    Raises:
        ValueError: if the source renders no poses, or a part has no such name.
    """

    def __init__(self, spec: Composite, *, num_views: int, action: Sequence[str] = ("rotation",)) -> None:
        size = picture_shape(spec, "views of poses")
        if TRANSFORMATION not in spec.keys() or spec[TRANSFORMATION].shape != (_WIDTH,):
            raise ValueError(f"views=poses needs a transformation [{_WIDTH}] in the data. Use env=rendered_objects.")
        if not action or set(action) - {"rotation", *COLUMNS}:
            raise ValueError(f"views.action={list(action)}: its parts are rotation, {', '.join(COLUMNS)}")
        self.num = self.window = check_num(num_views)
        self.has_rotation = "rotation" in action
        self.columns = [column for name, columns in COLUMNS.items() if name in action for column in columns]
        num_actions = 4 * self.has_rotation + len(self.columns)
        self.spec = view_spec(spec, size, num_parameters=_WIDTH, num_actions=num_actions)

    def __call__(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Add "action" [B, V, A]; nothing is drawn."""
        if batch[OBSERVATION, PIXELS].shape[1] != self.num:
            raise ValueError(f"views.num_views={self.num}, but windows of {batch[OBSERVATION, PIXELS].shape[1]} rows")
        return batch.copy().set(ACTION, to_next(batch[TRANSFORMATION], self.action_between))

    def fitted(self, obs: TensorDict) -> TensorDict:
        """Pictures are views."""
        return obs

    def action_between(self, transformation_a: Tensor, transformation_b: Tensor) -> Tensor:
        """Action [..., A] that leads from one pose [..., 7] to another; from zeros, the pose's own orientation."""
        parts = [(transformation_b - transformation_a)[..., self.columns]]
        if self.has_rotation:
            start, end = (from_euler_xyz(pose[..., :3]) for pose in (transformation_a, transformation_b))
            parts.insert(0, between(start, end))
        return torch.cat(parts, -1)
