from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from torch.nn import functional as F
from torchrl.data import Bounded, Composite, Unbounded

from perception.lidar import encode as encode_file
from perception.lidar.backbone import VoxelBackbone
from perception.lidar.encode import encode_opaque

SPEC = Composite({"observation": {"points": Unbounded((400, 4)), "num_points": Bounded(0, 401, (), dtype=torch.int64)}})
SMALL = {"low": (-4, -3, -1.2), "high": (4, 3, 1.2), "voxel_size": (0.25, 0.25, 0.1), "widths": (4, 4, 6, 6, 8, 5)}
KITTI = {"low": (0, -40, -3), "high": (70.4, 40, 1), "voxel_size": (0.05, 0.05, 0.1)}


def build(**choices) -> VoxelBackbone:
    torch.manual_seed(0)
    encoder = VoxelBackbone(SPEC, **(SMALL | choices))
    for norm in encoder.norms:  # as if trained
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
    return encoder


def scans(*counts: int, seed: int = 0) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(len(counts), 400, 4, generator=generator)
    return TensorDict({"points": points, "num_points": torch.tensor(counts)}, batch_size=[len(counts)])


def dense_backbone(encoder: VoxelBackbone, obs: TensorDict):
    """The same with dense convolutions and masks, from the sheet's table."""
    voxels = encoder.voxelize(obs)["voxels"]
    shape = (25, 24, 32)
    x = torch.zeros(len(obs), *shape, 4, dtype=torch.float64)
    mask = torch.zeros(len(obs), *shape, 1, dtype=torch.float64)
    sample, slot = (voxels["coords"][..., 0] >= 0).nonzero(as_tuple=True)
    place = (sample, *voxels["coords"][sample, slot].unbind(-1))
    x[place], mask[place] = voxels["features"][sample, slot].double(), 1.0
    x, mask = x.permute(0, 4, 1, 2, 3), mask.permute(0, 4, 1, 2, 3)
    strided = {2: (2, 1), 5: (2, 1), 8: (2, (0, 1, 1)), 11: ((2, 1, 1), 0)}
    for index, (conv, norm) in enumerate(zip(encoder.convs, encoder.norms, strict=True)):
        weight = conv.weight.permute(0, 4, 1, 2, 3)
        if index in strided:
            stride, padding = strided[index]
            x = F.conv3d(x, weight, stride=stride, padding=padding)
            mask = (F.conv3d(mask, torch.ones_like(weight[:1, :1]), stride=stride, padding=padding) > 0).double()
        else:
            x = F.conv3d(x, weight, padding=1)
        active = mask[:, 0].bool()
        y = x.permute(0, 2, 3, 4, 1)
        y = torch.zeros_like(y).index_put(active.nonzero(as_tuple=True), F.relu(norm(y[active])))
        x = y.permute(0, 4, 1, 2, 3)
    return x.flatten(1, 2), mask.amax((1, 2)).bool()


@pytest.mark.parametrize("is_training", [True, False])
def test_equals_dense_convolutions_with_all_gradients_and_statistics(is_training):
    encoder = build().double().train(is_training)
    twin = copy.deepcopy(encoder)
    obs = scans(400, 0, 250)
    voxels = encoder.voxelize(obs)
    voxels["voxels", "features"] = voxels["voxels", "features"].double()
    found, (expected, is_active) = encoder(voxels), dense_backbone(twin, obs)
    bev = found["tokens"].mT.unflatten(2, encoder.grid)
    assert bev.shape == (3, 5, 3, 4)
    torch.testing.assert_close(bev, expected)
    pooled = expected.sum((2, 3)) / is_active.sum((1, 2)).clamp_min(1)[:, None]
    torch.testing.assert_close(found["pooled"], pooled)
    pull = torch.randn_like(bev)
    mine = torch.autograd.grad((bev * pull).sum(), list(encoder.parameters()))
    theirs = torch.autograd.grad((expected * pull).sum(), list(twin.parameters()))
    for (name, _), a, b in zip(encoder.named_parameters(), mine, theirs, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
    for (name, a), b in zip(encoder.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_channels_of_the_view_are_channel_major_and_height_minor():
    encoder = build(low=(-4, -3, -2), high=(4, 3, 2)).eval()  # 40 voxels high, so two heights are left
    assert (encoder.dim, encoder.grid) == (10, (3, 4))
    obs = scans(400)
    obs["points"][..., 2] = -1.9  # all on the ground: nothing is active at the upper height
    bev = encoder.bev(obs)
    assert (bev[:, 0::2] != 0).any()
    assert (bev[:, 1::2] == 0).all()


def test_cells_that_are_not_kept_have_no_influence():
    encoder = build().eval()
    obs, keep = scans(400, 300), torch.tensor([[5, 0, 7, -1], [2, 1, -1, -1]])
    out = encoder(obs, keep)
    assert out["tokens"].shape == (2, 4, 5)
    x, y = ((obs["points"][..., i] - SMALL["low"][i]).div(2).floor().long() for i in (0, 1))
    cell = torch.where((x >= 0) & (x < 4) & (y >= 0) & (y < 3), y * 4 + x, -1)
    is_hidden = (cell[..., None] != keep[:, None]).all(-1)
    other = obs.clone()
    other["points"][..., 2:] += is_hidden[..., None] * 0.3  # up and brighter
    for name, value in encoder(other, keep).items():
        torch.testing.assert_close(value, out[name])
    other["points"][..., 2:] += ~is_hidden[..., None] * 0.3
    assert not torch.allclose(encoder(other, keep)["pooled"], out["pooled"])
    shown = torch.zeros(2, 13, dtype=torch.bool).scatter(1, keep % 13, True)[:, :12]
    view = encoder.bev(encoder.showing(encoder.voxelize(obs), shown)).flatten(2).mT
    torch.testing.assert_close(out["tokens"][0, :3], view[0, keep[0, :3]])
    assert (out["tokens"][0, 3:] == 0).all()


def test_keeping_every_cell_is_keeping_nothing_back():
    encoder, obs = build().eval(), scans(400, 123)
    torch.testing.assert_close(
        encoder(obs, torch.arange(12).expand(2, -1))["tokens"], encoder(obs)["tokens"], rtol=1e-5, atol=1e-6
    )


def test_a_cell_that_holds_a_voxel_is_active():
    encoder, obs = build(), scans(400, 60, 3)
    is_active = encoder._encode(encoder.voxelize(obs)).is_active.flatten(1)
    is_occupied = encoder.occupied(obs)
    assert is_occupied.any(1).all()
    assert is_active[is_occupied].all()


def test_voxels_are_made_once_and_the_observation_stays_as_it_was():
    encoder, obs = build(max_voxels={"train": 20, "test": 30}), scans(400, 300)
    before = obs.clone()
    generator = torch.Generator().manual_seed(0)
    voxels = encoder.voxelize(obs, generator)
    assert (obs == before).all()
    assert set(obs.keys()) == {"points", "num_points"}
    assert voxels["voxels", "features"].shape == (2, 20, 4)
    assert (voxels["voxels", "num_dropped"] > 0).all()
    assert not torch.equal(encoder.bev(voxels), encoder.bev(obs))  # which would drop the last ones instead
    assert encoder.eval().voxelize(obs)["voxels", "features"].shape == (2, 30, 4)


def test_batches_without_voxels_leave_statistics_alone_and_gradients_zero():
    encoder = build()
    before = encoder.norms[3].running_mean.clone()
    out = encoder(scans(0, 0))
    assert (out["tokens"] == 0).all()
    assert (out["pooled"] == 0).all()
    out["pooled"].sum().backward()
    assert all((p.grad == 0).all() for p in encoder.parameters())
    assert torch.equal(encoder.norms[3].running_mean, before)
    one = TensorDict({"points": torch.zeros(1, 1, 4), "num_points": torch.ones(1, dtype=torch.long)}, batch_size=[1])
    assert encoder(one)["tokens"].isfinite().all()
    assert all(b.isfinite().all() for b in encoder.buffers())


@pytest.mark.slow
def test_compiles_whole_with_the_same_gradients(unchecked):
    plain, compiled, obs, keep = build(), build(), scans(400, 0, 250), torch.tensor([[5, 6, -1]] * 3)

    def loss(encoder, obs):
        return encoder(obs)["tokens"].square().mean() + encoder(obs, keep)["pooled"].sin().sum()

    torch._dynamo.reset()
    expected = loss(plain, obs)
    found = torch.compile(lambda obs: loss(compiled, obs), fullgraph=True, backend="aot_eager")(obs)
    torch.testing.assert_close(found, expected)
    mine = torch.autograd.grad(found, list(compiled.parameters()))
    theirs = torch.autograd.grad(expected, list(plain.parameters()))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(compiled.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_operator_for_the_compiler_is_sound():
    encoder, obs = build(), scans(50, 20)
    seen = []

    def spy(inputs):
        seen.append(inputs)
        return encode_file.encode(inputs)

    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr("perception.lidar.backbone.encode", spy)
        encoder.bev(obs)
    torch.library.opcheck(
        encode_opaque, tuple(seen[0]), test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
    )


def official(encoder: VoxelBackbone, start: str) -> dict[str, torch.Tensor]:
    """Random weights under OpenPCDet's names."""
    state = {f"{start}vfe.something": torch.ones(1), "global_step": torch.ones(1)}
    shapes = encoder.state_dict()
    names = ["conv_input.", "conv1.0.", *(f"conv{i}.{j}." for i in (2, 3, 4) for j in range(3)), "conv_out."]
    for index, name in enumerate(names):
        state[f"{start}{name}0.weight"] = torch.randn_like(shapes[f"convs.{index}.weight"])
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            state[f"{start}{name}1.{part}"] = torch.rand(shapes[f"norms.{index}.{part}"].shape).to(
                shapes[f"norms.{index}.{part}"].dtype
            )
    return state


@pytest.mark.parametrize("start", ["backbone_3d.", "backbone_3d.encoder."])
def test_loads_published_weights(start):
    encoder = build()
    state = official(encoder, start)
    assert encoder.load_openpcdet(state) == 72
    assert torch.equal(encoder.convs[5].weight, state[f"{start}conv3.0.0.weight"])
    assert torch.equal(encoder.norms[11].running_var, state[f"{start}conv_out.1.running_var"])


def test_published_weights_that_do_not_fit_are_refused():
    encoder = build()
    before = copy.deepcopy(encoder.state_dict())
    state = official(encoder, "backbone_3d.")
    del state["backbone_3d.conv3.1.1.running_var"]
    with pytest.raises(ValueError, match=r"1 of 72 .* are missing: backbone_3d.conv3.1.1.running_var"):
        encoder.load_openpcdet(state)
    state = official(encoder, "backbone_3d.")
    state["backbone_3d.conv_input.0.weight"] = torch.zeros(4, 3, 3, 3, 5)
    with pytest.raises(ValueError, match=r"conv_input.0.weight \[4, 3, 3, 3, 5\] instead of \[4, 3, 3, 3, 4\]"):
        encoder.load_openpcdet(state)
    with pytest.raises(ValueError, match=r"72 of 72 .* are missing"):
        encoder.load_openpcdet({"global_step": torch.ones(1)})
    assert all(torch.equal(a, b) for a, b in zip(before.values(), encoder.state_dict().values(), strict=True))


def test_settings_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match="Use encoder=state"):
        VoxelBackbone(Composite({"observation": {"state": Unbounded((3,))}}), **SMALL)
    with pytest.raises(ValueError, match=r"30 voxels along z do not pass .* 24, 40, 56"):
        build(low=(-4, -3, -1.5), high=(4, 3, 1.5))
    with pytest.raises(ValueError, match="6 of them"):
        build(widths=(4, 4))
    with pytest.raises(ValueError, match="one each for train and test"):
        build(max_voxels={"train": 5})


@pytest.mark.data
def test_sites_of_a_real_scan(kitti_scan, monkeypatch):
    """The sheet's counts (section 1.2), measured with spconv: 13,092 voxels in 1,467 cells, 2,402 cells active."""
    encoder = VoxelBackbone(SPEC, **KITTI).eval()
    assert (encoder.dim, encoder.grid, encoder.shape) == (256, (200, 176), (41, 1600, 1408))
    counts, convolve = [], encode_file.convolve

    def count(*args):
        counts.append(convolve(*args))
        return counts[-1]

    monkeypatch.setattr(encode_file, "convolve", count)
    obs = TensorDict({"points": kitti_scan[None], "num_points": torch.tensor([len(kitti_scan)])}, batch_size=[1])
    with torch.no_grad():
        out = encoder._encode(encoder.voxelize(obs))
    assert int(encoder.occupied(obs).sum()) == 1467
    sizes = [len(x.indices) for x in counts]
    assert sizes == [13092] * 2 + [20309] * 3 + [12361] * 3 + [5298] * 3 + [4236]
    assert int(out.is_active.sum()) == 2402
