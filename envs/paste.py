"""Ground-truth sampling: labelled objects of other frames pasted into a batch of scans.

Source: Yan et al., SECOND, Sensors 2018; sheet ad_l_jepa, section 2.4. Differs: objects of a scene are drawn afresh and
without repetition instead of by walking through a shuffled database, so that a batch depends on its generator only; no
shift of z, as there are no road planes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torchrl.data import Bounded, Composite, Unbounded

from envs.point_store import PointStore
from envs.relabel import Wrapper
from worldmodels.geometry.boxes import points_in_boxes
from worldmodels.geometry.overlap import bev_intersection
from worldmodels.keys import BOX_CLASS, BOXES, NUM_POINTS, OBSERVATION, POINTS

_CHUNK = 2**22  # entries of the points-by-boxes test held at once
_TOUCH = 1e-3  # m^2 of ground that two objects may share: rounding leaves traces of boxes that only come close


class PastedObjects(Wrapper):
    """Fills every scan of a batch up to a number of objects a class.

    For each class in turn as many candidates are drawn as the scan has too few. A candidate whose footprint touches
    that of an object already there, or of another candidate, is dropped. Scene points inside a pasted box are removed;
    the object's own come first in the cloud.

    Args:
        source: scans with ``objects()`` and ``classes``, such as ``envs.kitti.Kitti``.
        counts: objects of each class a scan is filled up to, its own included.
        min_points: objects with fewer points are not pasted, nor those of difficulty -1.
        max_added: points a scan may gain; what comes beyond is cut from the end of the scene. The same for all scans,
            so that shapes are fixed.

    Raises:
        ValueError: a class that the source does not have; no object to paste at all.
    """

    def __init__(self, source: Any, *, counts: Mapping[str, int], min_points: int = 5, max_added: int = 4096) -> None:
        if not hasattr(source, "objects"):
            raise ValueError(f"pasting needs labelled scans; {type(source).__name__} has none. Use env=kitti")
        if unknown := [name for name in counts if name not in source.classes]:
            raise ValueError(f"relabel.counts: there is no class {', '.join(unknown)}; the data have {source.classes}")
        if max_added < 1:
            raise ValueError(f"relabel.max_added={max_added}: a scan must be able to gain a point")
        super().__init__(source)
        bank = source.objects()
        is_good = (bank.num_points >= min_points) & (bank.difficulty >= 0)
        self._pools: list[tuple[int, int, Tensor]] = []  # class, count, its objects in the bank [K]
        for name, count in counts.items():
            kind = source.classes.index(name)
            pool = (is_good & (bank.box_class == kind)).nonzero().flatten()
            if len(pool) and count > 0:
                self._pools.append((kind, count, pool))
        if not self._pools:
            raise ValueError(
                f"nothing to paste: of {len(is_good)} objects in {source.where} none of {', '.join(counts)} has "
                f"{min_points} points and a difficulty"
            )
        self._bank, self.max_added = bank, max_added
        width = max(int(bank.num_points[pool].max()) for _, _, pool in self._pools)
        self._clouds = PointStore(
            bank.store.points, bank.store.counts, device=bank.store.device, width=min(width, max_added)
        )
        self.num_added = sum(min(count, len(pool)) for _, count, pool in self._pools)
        """Boxes that a row has more than the source's."""
        self.spec = self._spec(source.spec)

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Draw frames as the source does, then paste: batch size [B], leaves [B, 1, ...], as ``spec`` says."""
        batch = self.source.sample(batch_size, window, generator)
        boxes, kinds = batch[BOXES][:, 0], batch[BOX_CLASS][:, 0]  # [B, M, 7], [B, M]
        chosen, is_pasted = [], []
        for kind, count, pool in self._pools:
            index = self._draw(pool, min(count, len(pool)), batch_size, generator)  # [B, K]
            missing = count - (kinds == kind).sum(1, keepdim=True)
            wanted = torch.arange(index.shape[1], device=index.device) < missing
            new = self._bank.boxes[index]  # [B, K, 7]
            is_free = wanted & ~self._touches(new, wanted, boxes, kinds >= 0)
            chosen.append(index)
            is_pasted.append(is_free)
            boxes = torch.cat([boxes, torch.where(is_free[..., None], new, 0.0)], 1)
            kinds = torch.cat([kinds, torch.where(is_free, kind, -1)], 1)
        seen = self._paste(batch[OBSERVATION], torch.cat(chosen, 1), torch.cat(is_pasted, 1))
        return batch.clone(recurse=False).update({OBSERVATION: seen, BOXES: boxes[:, None], BOX_CLASS: kinds[:, None]})

    def _draw(self, pool: Tensor, count: int, batch_size: int, generator: Generator) -> Tensor:
        """Bank rows [B, K], each scan's without repetition."""
        keys = torch.rand(batch_size, len(pool), generator=generator, device=generator.device).to(pool.device)
        return pool[keys.topk(count, dim=1).indices]

    def _touches(self, new: Tensor, wanted: Tensor, boxes: Tensor, is_box: Tensor) -> Tensor:
        """Which candidates [B, K] share ground with a box [B, M] or another wanted candidate."""
        there = ((bev_intersection(new, boxes) > _TOUCH) & is_box[:, None]).any(2)
        same = torch.eye(new.shape[1], dtype=torch.bool, device=new.device)
        return there | ((bev_intersection(new, new) > _TOUCH) & wanted[:, None] & ~same).any(2)

    def _paste(self, obs: TensorDict, chosen: Tensor, is_pasted: Tensor) -> TensorDict:
        """New points [B, 1, P + max_added, C] and counts [B, 1]."""
        scene, count = obs[POINTS][:, 0], obs[NUM_POINTS][:, 0]  # [B, P, C], [B]
        boxes = torch.where(is_pasted[..., None], self._bank.boxes[chosen], 0.0)  # [B, K, 7]
        clouds, sizes = self._clouds.rows(chosen)  # [B, K, Q, C], [B, K]
        clouds = torch.cat([clouds[..., :3] + boxes[:, :, None, :3], clouds[..., 3:]], -1)
        slot = torch.arange(clouds.shape[2], device=scene.device)
        is_new = (slot < sizes[..., None]) & is_pasted[..., None]  # [B, K, Q]
        is_old = torch.arange(scene.shape[1], device=scene.device) < count[:, None]
        is_old = is_old & ~self._covered(scene, boxes)
        points = torch.cat([clouds.flatten(1, 2), scene], 1)
        return _compact(points, torch.cat([is_new.flatten(1), is_old], 1), scene.shape[1] + self.max_added)

    def _covered(self, points: Tensor, boxes: Tensor) -> Tensor:
        """Which points [B, P] lie in one of the boxes [B, K, 7], a bounded part of the boxes at a time."""
        step = max(1, _CHUNK // max(1, points.shape[0] * points.shape[1]))
        parts = [points_in_boxes(points, part).any(2) for part in boxes.split(step, dim=1)]
        return torch.stack(parts).any(0)

    def _spec(self, spec: Composite) -> Composite:
        old, at = spec[OBSERVATION][POINTS].shape, {"device": spec.device}
        width, most = old[-2] + self.max_added, spec[BOXES].shape[-2] + self.num_added
        whole = {"dtype": torch.int64, **at}
        seen = {POINTS: Unbounded((width, old[-1]), **at), NUM_POINTS: Bounded(0, width, (), **whole)}
        new = spec.clone()
        new[OBSERVATION] = Composite(seen, **at)
        new[BOXES] = Unbounded((most, 7), **at)
        new[BOX_CLASS] = Bounded(-1, len(self.source.classes) - 1, (most,), **whole)
        return new


def _compact(points: Tensor, is_kept: Tensor, width: int) -> TensorDict:
    """The kept points [B, N, C] moved to the front, in order, cut or padded with zeros to ``width``."""
    place = is_kept.cumsum(1) - 1  # [B, N]
    place = torch.where(is_kept & (place < width), place, width)  # the last column takes what is dropped
    out = points.new_zeros(len(points), width + 1, points.shape[-1])
    out.scatter_(1, place[..., None].expand_as(points), points)
    seen = {POINTS: out[:, None, :width], NUM_POINTS: is_kept.sum(1).clamp(max=width)[:, None]}
    return TensorDict(seen, [len(points), 1])
