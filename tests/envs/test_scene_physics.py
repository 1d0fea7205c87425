"""Discs that move, bounce and collide: conservation laws, and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from envs.scene_physics import between, coast, collide, fold


def drawn(seed: int, *, scenes: int = 64, discs: int = 4, reach: float = 0.12) -> dict[str, torch.Tensor]:
    """Discs on a grid, so that none overlap, with all sizes, masses and velocities; float64."""
    generator = Generator().manual_seed(seed)
    uniform = torch.rand(scenes, discs, 6, generator=generator, dtype=torch.float64)
    corners = torch.tensor([(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)], dtype=torch.float64)
    return {
        "position": corners[:discs] + 0.2 * (uniform[..., :2] - 0.5),
        "velocity": 2 * uniform[..., 2:4] - 1,
        "radius": (0.4 + 0.6 * uniform[..., 4]) * reach,
        "mass": 0.2 + uniform[..., 5],
        "is_solid": torch.ones(scenes, discs, dtype=torch.bool),
    }


def energy(velocity: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    return (mass[:, None] * velocity.square().sum(-1) / 2).sum(-1)  # [B, T]


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), has_walls=st.booleans(), steps=st.integers(1, 3))
def test_collisions_keep_energy_and_momentum(seed, has_walls, steps):
    discs = drawn(seed)
    motion = collide(**discs, num_frames=20, frame_time=0.1, has_walls=has_walls, steps=steps)
    assert motion.has_collided[:, -1].double().mean() > 0.8  # or there is nothing to see
    torch.testing.assert_close(motion.position[:, 0], discs["position"])
    kept = energy(motion.velocity, discs["mass"])
    torch.testing.assert_close(kept, kept[:, :1].expand_as(kept))
    if not has_walls:
        momentum = (discs["mass"][:, None, :, None] * motion.velocity).sum(2)
        torch.testing.assert_close(momentum, momentum[:, :1].expand_as(momentum))
    if has_walls:
        edge = discs["radius"][:, None, :, None]
        assert ((motion.position >= edge - 1e-9) & (motion.position <= 1 - edge + 1e-9)).all()


@pytest.mark.parametrize("has_walls", [False, True])
def test_two_discs_bounce_where_they_touch(has_walls):
    """Never nearer than they reach; the flag rises in the frame in which velocities change, and in no other."""
    discs = drawn(1, scenes=500, discs=2)
    motion = collide(**discs, num_frames=40, frame_time=0.05, has_walls=has_walls)
    gap = between(motion.position[:, :, 0], motion.position[:, :, 1], has_walls=has_walls).norm(dim=-1)
    short = (discs["radius"].sum(1)[:, None] - gap).clamp_min(0)
    # A contact that follows a bounce off a wall within a step is found a step late.
    assert short.max() < (0.06 if has_walls else 1e-9)
    assert (short > 1e-9).double().mean() < 0.01
    if not has_walls:
        does_change = (motion.velocity[:, 1:] - motion.velocity[:, :-1]).abs().amax((2, 3)) > 1e-12
        assert torch.equal(does_change.cumsum(1) > 0, motion.has_collided[:, 1:])
    assert 0.2 < motion.has_collided[:, -1].double().mean() < 0.95


def test_elastic_collisions_can_be_run_backwards():
    discs = drawn(2, scenes=200, discs=2)
    how = {"num_frames": 21, "frame_time": 0.05, "has_walls": False}
    there = collide(**discs, **how)
    turned = {**discs, "position": there.position[:, -1], "velocity": -there.velocity[:, -1]}
    back = collide(**turned, **how)
    missed = between(back.position[:, -1], discs["position"], has_walls=False).abs().amax((1, 2))
    assert (missed < 1e-6).double().mean() > 0.99  # grazing contacts amplify rounding


def test_a_head_on_collision_is_that_of_the_textbook():
    """Masses 1 and 3 with 0.5 and -0.3 sides a second, 0.4 apart, reach 0.2: contact after 0.25 s."""
    motion = collide(
        torch.tensor([[[0.3, 0.5], [0.7, 0.5]]]),
        torch.tensor([[[0.5, 0.0], [-0.3, 0.0]]]),
        radius=torch.tensor([[0.1, 0.1]]),
        mass=torch.tensor([[1.0, 3.0]]),
        is_solid=torch.tensor([[True, True]]),
        num_frames=3,
        frame_time=0.2,
        has_walls=True,
    )
    after = [(1 - 3) / 4 * 0.5 + 2 * 3 / 4 * -0.3, (3 - 1) / 4 * -0.3 + 2 * 1 / 4 * 0.5]  # -0.7, 0.1
    torch.testing.assert_close(motion.velocity[0, 2, :, 0], torch.tensor(after))
    contact = [0.3 + 0.25 * 0.5, 0.7 - 0.25 * 0.3]
    expected = [place + 0.15 * speed for place, speed in zip(contact, after, strict=True)]
    torch.testing.assert_close(motion.position[0, 2, :, 0], torch.tensor(expected))
    assert motion.has_collided.tolist() == [[False, False, True]]


def test_what_is_not_solid_goes_on():
    discs = drawn(3)
    free = collide(**{**discs, "is_solid": discs["is_solid"] & False}, num_frames=9, frame_time=0.1, has_walls=True)
    times = torch.arange(9, dtype=torch.float64) * 0.1
    straight = coast(discs["position"], discs["velocity"], discs["radius"], times, has_walls=True)
    torch.testing.assert_close(free.position, straight)
    assert not free.has_collided.any()
    # The first is let go, too: the others still collide, without it.
    partly = {**discs, "is_solid": discs["is_solid"].clone()}
    partly["is_solid"][:, 0] = False
    motion = collide(**partly, num_frames=9, frame_time=0.1, has_walls=True)
    torch.testing.assert_close(motion.position[:, :, 0], straight[:, :, 0])
    assert motion.has_collided[:, -1].any()


@pytest.mark.parametrize(("start", "velocity"), [(0.5, 1.7), (0.3, -0.9), (0.15, 0.4)])
def test_a_fold_at_walls_is_a_ball_that_bounces(start, velocity):
    place, speed, step = start, velocity, 1e-3
    for number in range(1, 3001):
        place += step * speed
        if not 0.1 <= place <= 0.9:
            speed, place = -speed, (0.2 if place < 0.1 else 1.8) - place
        if number % 500 == 7:
            there, sign = fold(torch.tensor([start + number * step * velocity, 0.5]), torch.tensor(0.1), has_walls=True)
            assert there.tolist() == pytest.approx([place, 0.5], abs=1e-4)
            assert sign.tolist() == [math.copysign(1, speed * velocity), 1]


def test_a_fold_on_the_torus_has_period_one():
    there, sign = fold(torch.tensor([[1.25, -0.25], [math.pi, 0.5]]), torch.zeros(2), has_walls=False)
    torch.testing.assert_close(there, torch.tensor([[0.25, 0.75], [math.pi - 3, 0.5]]))
    assert (sign == 1).all()
