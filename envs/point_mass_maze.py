"""The point-mass maze: a ball in a box with a cross of walls in its middle. Geometry, and the model as MJCF.

::

      +0.3 +-----------------------+      The ball starts in the top left room. Rooms are joined by gaps between the
           | start     |           |      cross and the outer walls, 0.12 m wide. Two motors push along x and y; at
           |   o       |           |      full force the ball drifts at 0.1 m/s, so a side of the box takes 6 s, 300 of
           |     ------+------     |      an episode's 1000 steps.
           |           |           |
           |           |           |
      -0.3 +-----------------------+

Source: sheet td_jepa, section 3.1: box, cross, starts and targets. Mass, damping and motors are those of dm_control's
point_mass; that the cross has no friction is our choice. dm_control's shared looks are included by name.
"""

from __future__ import annotations

import numpy as np

BOX = 0.3  # half side, metres
ARM, THICKNESS = 0.18, 0.02  # half length and half width of the cross's walls
RADIUS = 0.01  # of the ball
REACH = BOX - RADIUS  # largest |x| and |y| of its centre
START_X, START_Y = (-0.29, -0.15), (0.15, 0.29)
TARGETS = {
    "reach_top_left": (-0.15, 0.15),
    "reach_top_right": (0.15, 0.15),
    "reach_bottom_left": (-0.15, -0.15),
    "reach_bottom_right": (0.15, -0.15),
}

MODEL = f"""
<mujoco model="point mass maze">
  <include file="./common/skybox.xml"/>
  <include file="./common/visual.xml"/>
  <include file="./common/materials.xml"/>
  <option timestep="0.02"/>
  <default>
    <joint type="slide" limited="true" range="{-REACH} {REACH}" damping="1"/>
    <motor gear="0.1" ctrllimited="true" ctrlrange="-1 1"/>
    <geom contype="0" conaffinity="0"/>
    <default class="wall">
      <geom type="box" material="decoration"/>
    </default>
    <default class="solid">
      <geom contype="1" conaffinity="1" condim="1"/>
    </default>
  </default>
  <worldbody>
    <light name="light" pos="0 0 1"/>
    <camera name="above" pos="0 0 0.75"/>
    <geom name="floor" type="plane" size="{BOX} {BOX} 0.1" material="grid"/>
    <geom name="east" class="wall" pos="{BOX + 0.01} 0 0.02" size="0.01 {BOX} 0.02"/>
    <geom name="west" class="wall" pos="{-BOX - 0.01} 0 0.02" size="0.01 {BOX} 0.02"/>
    <geom name="north" class="wall" pos="0 {BOX + 0.01} 0.02" size="{BOX} 0.01 0.02"/>
    <geom name="south" class="wall" pos="0 {-BOX - 0.01} 0.02" size="{BOX} 0.01 0.02"/>
    <geom name="cross_x" class="solid" type="box" material="decoration" pos="0 0 0.02" size="{ARM} {THICKNESS} 0.02"/>
    <geom name="cross_y" class="solid" type="box" material="decoration" pos="0 0 0.02" size="{THICKNESS} {ARM} 0.02"/>
    <body name="ball" pos="0 0 {RADIUS}">
      <joint name="x" axis="1 0 0"/>
      <joint name="y" axis="0 1 0"/>
      <geom name="ball" class="solid" type="sphere" size="{RADIUS}" mass="0.3" material="self"/>
    </body>
  </worldbody>
  <actuator>
    <motor name="x" joint="x"/>
    <motor name="y" joint="y"/>
  </actuator>
</mujoco>
"""


def squares() -> tuple[np.ndarray, float, tuple[float, float]]:
    """The maze on squares, with a border around the box: what ``envs.suite.Maze`` holds.

    Returns:
        walls bool [32, 32]; side of a square, 0.02 m; centre of square (0, 0).
    """
    unit = THICKNESS
    centre = (np.arange(round(2 * BOX / unit) + 2) + 0.5) * unit - BOX - unit  # of each row and column
    x, y = centre[None, :], centre[:, None]
    is_outside = (abs(x) > BOX) | (abs(y) > BOX)
    return is_outside | is_in_cross(x, y), unit, (float(centre[0]), float(centre[0]))


def is_in_cross(x: np.ndarray, y: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Whether points lie in the walls of the cross, widened by ``margin``; broadcasts."""
    is_along_x = (abs(x) < ARM + margin) & (abs(y) < THICKNESS + margin)
    return is_along_x | ((abs(y) < ARM + margin) & (abs(x) < THICKNESS + margin))
