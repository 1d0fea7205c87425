"""Encoder of LiDAR scans: voxels, twelve sparse 3D convolutions, a bird's-eye view at an eighth of the resolution.

Notable: cells that are hidden lose their voxels before the convolutions; norms look at active sites of the batch
only; a cell that holds a voxel is always active, and its neighbours may become so.

Source: VoxelBackBone8x (sheet ad_l_jepa, section 1.2; SECOND, Yan et al. 2018), weights of OpenPCDet can be loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torchrl.data import Composite

from perception.lidar.encode import EPSILON, LAYERS, STRIDE, Encoded, Inputs, encode, encode_opaque, final_shape
from perception.lidar.sparse_conv import SparseConv3d, SubmanifoldConv3d, backend_for
from perception.lidar.voxelize import bev_cells, constant, grid_size, voxelize
from worldmodels.core import Encoder
from worldmodels.keys import COORDS, FEATURES, NUM_POINTS, OBSERVATION, POINTS, POOLED, TOKENS, VOXELS

MOMENTUM = 0.01  # of running statistics, as published
PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")  # of a batch norm


class VoxelBackbone(Encoder):
    """Scans to cells of a bird's-eye view; ``grid`` is (Y, X), ``dim`` the last width times the heights that are left.

    Args:
        spec: one step; needs ("observation", "points") [P, C] and ("observation", "num_points").
        low, high: range in metres, x, y, z.
        voxel_size: in metres, x, y, z.
        widths: channels of conv_input, conv1 ... conv4, conv_out.
        max_voxels: of a scan; one number, or one each for "train" and "test". More are dropped.
        max_points: of a voxel; more are left out of its mean.

    Raises:
        ValueError: if the data have no points, or the range does not suit the layers.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        low: Sequence[int | float],
        high: Sequence[int | float],
        voxel_size: Sequence[int | float],
        widths: Sequence[int] = (16, 16, 32, 64, 64, 128),
        max_voxels: Mapping[str, int] | int = 40000,
        max_points: int = 5,
    ) -> None:
        super().__init__()
        if (OBSERVATION, POINTS) not in spec.keys(True):
            have = sorted(map(str, spec[OBSERVATION].keys())) if OBSERVATION in spec.keys() else []
            raise ValueError(
                f"encoder=lidar_voxels needs observation/points in the data; it has {have}. "
                "Use encoder=state, =pixels or =tabular."
            )
        if len(widths) != LAYERS[-1].stage + 1:
            raise ValueError(f"widths={list(widths)}: {LAYERS[-1].stage + 1} of them, conv_input to conv_out")
        caps = {"train": max_voxels, "test": max_voxels} if isinstance(max_voxels, int) else dict(max_voxels)
        if sorted(caps) != ["test", "train"]:
            raise ValueError(f"max_voxels={caps}: one number, or one each for train and test")
        self.low, self.high, self.voxel_size = tuple(low), tuple(high), tuple(voxel_size)
        self.max_voxels, self.max_points = caps, max_points
        x, y, z = grid_size(low, high, voxel_size)
        self.shape = (z + 1, y, x)  # one more along z, as published
        depth, height, width = final_shape(self.shape)
        self.grid, self.dim = (height, width), widths[-1] * depth
        channels = spec[OBSERVATION, POINTS].shape[-1]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for layer in LAYERS:
            kernel, stride, padding, is_submanifold = layer.geometry
            if is_submanifold:
                conv = SubmanifoldConv3d(channels, widths[layer.stage], kernel=kernel)
            else:
                conv = SparseConv3d(channels, widths[layer.stage], kernel=kernel, stride=stride, padding=padding)
            channels = widths[layer.stage]
            self.convs.append(conv)
            self.norms.append(nn.BatchNorm1d(channels, eps=EPSILON, momentum=MOMENTUM))

    @property
    def backend(self) -> str:
        """Which sparse convolution runs, "torch" or "spconv": a matter of the device."""
        return backend_for(self.norms[0].weight.device)

    def voxelize(self, obs: TensorDict, generator: Generator | None = None) -> TensorDict:
        """Add "voxels": do it once for a batch that is encoded more than once.

        Args:
            obs: batch size [B]; "points" [B, P, C], "num_points" [B].
            generator: for training; random voxels beyond the cap are dropped instead of the last ones.

        Returns:
            a new observation; "voxels" as `voxelize.Voxels`, of V = max_voxels["train" or "test"].
        """
        voxels = voxelize(
            obs[POINTS],
            obs[NUM_POINTS],
            low=self.low,
            high=self.high,
            voxel_size=self.voxel_size,
            max_voxels=self.max_voxels["train" if self.training else "test"],
            max_points=self.max_points,
            generator=generator,
        )
        return obs.copy().set(VOXELS, TensorDict(voxels._asdict(), batch_size=obs.batch_size))

    def add_voxels(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """A Transform: "voxels" of a batch of single scans, leaves [B, 1, ...], once for all that encode it."""
        voxels = self.voxelize(batch[OBSERVATION][:, 0], generator)[VOXELS]
        return batch.copy().set(OBSERVATION, batch[OBSERVATION].copy().set(VOXELS, voxels[:, None]))

    def cells(self, obs: TensorDict) -> Tensor:
        """Cell of each voxel, int64 [B, V], -1 for padding; ``obs`` as `voxelize` returns it."""
        return bev_cells(obs[VOXELS, COORDS], self.grid, STRIDE)

    def occupied(self, obs: TensorDict) -> Tensor:
        """Cells that hold a voxel, bool [B, Y X]."""
        return self._mask(self.cells(self._with_voxels(obs)))

    def keeping(self, obs: TensorDict, is_kept: Tensor) -> TensorDict:
        """A new observation, the others of whose voxels are hidden.

        Args:
            obs: as `voxelize` returns it.
            is_kept: bool [B, V].
        """
        voxels = obs[VOXELS].copy()
        voxels[COORDS] = torch.where(is_kept[..., None], voxels[COORDS], -1)
        return obs.copy().set(VOXELS, voxels)

    def showing(self, obs: TensorDict, shown: Tensor) -> TensorDict:
        """A new observation with the voxels of the cells ``shown``, bool [B, Y X], only; ``obs`` as in `keeping`."""
        return self.keeping(obs, shown.gather(1, self.cells(obs).clamp_min(0)))

    def centres(self, obs: TensorDict) -> Tensor:
        """Centres of voxels in metres, [B, V, 3], x, y, z; of no meaning for padding. ``obs`` as in `keeping`."""
        coords = obs[VOXELS, COORDS].flip(-1) + 0.5  # x, y, z
        return coords * constant(self.voxel_size, coords) + constant(self.low, coords)

    def bev(self, obs: TensorDict) -> Tensor:
        """Bird's-eye view [B, D, Y, X], zero where nothing is active; ``obs`` with or without "voxels"."""
        return self._encode(self._with_voxels(obs)).bev

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Encode scans.

        Args:
            obs: batch size [B], with or without "voxels".
            keep: int64 [B, K] cells y X + x whose voxels are looked at, -1 for padding; None looks at all of them.

        Returns:
            "tokens" [B, Y X or K, D] of cells (zero where nothing is active, and of padding) and "pooled" [B, D], the
            mean over active cells.
        """
        obs = self._with_voxels(obs)
        out = self._encode(obs if keep is None else self.showing(obs, self._mask(keep)))
        tokens = out.bev.flatten(2).mT  # [B, Y X, D]
        pooled = tokens.sum(1) / out.is_active.sum((1, 2)).clamp_min(1)[:, None]
        if keep is not None:
            tokens = tokens.take_along_dim(keep.clamp_min(0)[..., None], 1) * (keep >= 0)[..., None]
        return TensorDict({TOKENS: tokens, POOLED: pooled}, batch_size=obs.batch_size)

    def load_openpcdet(self, state: Mapping[str, Tensor]) -> int:
        """Take the weights and statistics of OpenPCDet's VoxelBackBone8x, as detectors and AD-L-JEPA save them.

        Args:
            state: keys "backbone_3d.encoder.…" (of pre-training) or "backbone_3d.…"; others are ignored.

        Returns:
            how many tensors were loaded: all of this encoder, 72.

        Raises:
            ValueError: if one is missing or has another shape, by name.
        """
        start = "backbone_3d."
        if any(key.startswith(f"{start}encoder.") for key in state):
            start += "encoder."
        names = {}
        for index, layer in enumerate(LAYERS):
            names[f"{start}{layer.name}.0.weight"] = f"convs.{index}.weight"
            names |= {f"{start}{layer.name}.1.{part}": f"norms.{index}.{part}" for part in PARTS}
        missing = [name for name in names if name not in state]
        if missing:
            raise ValueError(f"{len(missing)} of {len(names)} tensors of the encoder are missing: {', '.join(missing)}")
        own = self.state_dict()
        wrong = [
            f"{theirs} {list(state[theirs].shape)} instead of {list(own[mine].shape)}"
            for theirs, mine in names.items()
            if state[theirs].shape != own[mine].shape
        ]
        if wrong:
            raise ValueError(f"{len(wrong)} of {len(names)} tensors have another shape: {', '.join(wrong)}")
        self.load_state_dict({mine: state[theirs] for theirs, mine in names.items()})
        return len(names)

    # --- helpers ----------------------------------------------------------------------------------------------------
    def _with_voxels(self, obs: TensorDict) -> TensorDict:
        return obs if VOXELS in obs.keys() else self.voxelize(obs)

    def _mask(self, cells: Tensor) -> Tensor:
        """Bool [B, Y X] of cell indices [B, K], -1 for padding."""
        num = self.grid[0] * self.grid[1]
        mask = torch.zeros(len(cells), num + 1, dtype=torch.bool, device=cells.device)
        return mask.scatter(1, cells.remainder(num + 1), True)[:, :num]  # padding marks one too many

    def _encode(self, obs: TensorDict) -> Encoded:
        layers = zip(self.convs, self.norms, strict=True)
        weights = [weight for conv, norm in layers for weight in (conv.weight, norm.weight, norm.bias)]
        means = torch.cat([norm.running_mean for norm in self.norms])  # copies: the originals move before backward
        variances = torch.cat([norm.running_var for norm in self.norms])
        features, coords = obs[VOXELS, FEATURES], obs[VOXELS, COORDS]
        inputs = Inputs(features, coords, weights, means, variances, list(self.shape), self.training)
        out = Encoded(*encode_opaque(*inputs)) if torch.compiler.is_compiling() else encode(inputs)
        if self.training:
            self._follow(out)
        return out

    @torch.no_grad()
    def _follow(self, out: Encoded) -> None:
        """Move the running statistics towards those of the batch."""
        widths = [norm.num_features for norm in self.norms]
        for norm, mean, variance in zip(self.norms, out.means.split(widths), out.variances.split(widths), strict=True):
            norm.running_mean.lerp_(mean, MOMENTUM)
            norm.running_var.lerp_(variance, MOMENTUM)
            norm.num_batches_tracked += 1
