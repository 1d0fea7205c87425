"""Every TensorDict key that crosses a boundary, with its shape, dtype and unit.

B is the batch, T the window, N tokens, D a latent dimension. A *row* at time t holds the observation at t, the action
taken from it, and the reward and ``terminated`` flag that this action led to; a window of two rows replaces stored
next-observations.
"""

from __future__ import annotations

# --- a row of experience, leaves [B, T, ...] ---------------------------------------------------------------------
OBSERVATION = "observation"  # nested TensorDict, one entry a modality
STATE = "state"  # float32 [..., S], physical units of the simulator; where there is "environment_state": the body's own
ENVIRONMENT_STATE = "environment_state"  # float32 [..., E], what else a policy sees of the scene: objects, a goal
TASK_INDEX = "task_index"  # int64 [...], which of a source's tasks this is, counted from 0
PIXELS = "pixels"  # uint8 [..., C, H, W], 0..255, frames stacked along C
NUMERICAL = "numerical"  # float32 [..., Dn], columns of a table, scaled; 0 where missing
MISSING = "missing"  # bool [..., Dn]
CATEGORICAL = "categorical"  # int64 [..., Dc]; 0 a category unseen in training, 1 missing
POINTS = "points"  # float32 [..., P, C], a LiDAR scan: x forward, y left, z up in metres, then intensity 0..1, ...
NUM_POINTS = "num_points"  # int64 [...], points of the scan; what comes after them is padding
VOXELS = "voxels"  # nested TensorDict, a scan on a grid, padded: see the next five
FEATURES = "features"  # float [..., V, C], mean of a voxel's points; 0 is padding
COORDS = "coords"  # int64 [..., V, 3], z, y, x on the grid; -1 is padding
NUM_VOXELS = "num_voxels"  # int64 [...]
NUM_DROPPED = "num_dropped"  # int64 [...], voxels beyond the cap
NUM_BROKEN = "num_broken"  # int64 [...], points left out because an entry is no finite number
MOMENTS = "moments"  # float64 [..., P, 3, d, d], E[x x^T], E[y x^T], E[y y^T] of two views, P data sets
ACTION = "action"  # float32 [..., A], within [-1, 1]; of views: what leads from this one to the next, in its own units
ACTIONS = "actions"  # float32 [..., T, A], those taken during a clip; the last one leads out of it
REWARD = "reward"  # float32 [...]
TERMINATED = "terminated"  # bool [...]; the task really ended (never set by a trajectory's end)
IS_PADDED = "is_padded"  # bool [..., T]; this row lies beyond the trajectory's end and repeats its last one
HAS_ACTION = "has_action"  # bool [...]; whether "action" may be learned from; absent: it may, everywhere

LABEL = (
    "label"  # int64 [...] a class, or float32 [...] a number in the label's unit; only supervised objectives read it
)

BOXES = (
    "boxes"  # float32 [..., M, 7], labelled objects: centre x, y, z, length dx, width dy, height dz, heading about z
)
BOX_CLASS = "box_class"  # int64 [..., M], index into the source's class names; -1 is padding
FRAME = "frame"  # int64 [...], which frame of the source this is

TRANSFORMATION = (
    "transformation"  # float32 [..., P], how a view was made: crop, colours, pose ...; units are told by what made it
)

FUTURE = "future"  # nested TensorDict: a later row of the same trajectory, added by envs.relabel
INTENT = "intent"  # the same, drawn independently: where behaviour is thought to lead (ICVF)

# --- simulator state, for relabelling with any reward; never an input of a network ----------------------------------
PHYSICS = "physics"  # nested TensorDict: "qpos", "qvel", "act" float64 [..., n]; "button_states" int64 [..., n]

# --- what encoders return ---------------------------------------------------------------------------------------
TOKENS = "tokens"  # float [B, N, D]
POOLED = "pooled"  # float [B, D]
REGISTERS = "registers"  # float [B, R, D], tokens that stand for no part of the input

# --- tasks and randomness, added by transforms ------------------------------------------------------------------
TASK = "z"  # float [B, d]; norm sqrt(d); the only thing that is ever called z
NEXT_FEATURES = "next_features"  # float [B, X], what the task encoder sees in the next row; one encoding an update
NOISE = "noise"  # nested TensorDict: every random number one update needs, drawn by a transform

CONTEXT = "context"  # int64 [B, K], tokens an encoder may see; -1 is padding
TARGETS = "targets"  # int64 [B, M, K'], tokens to be predicted, M sets of them
FAMILIES = "families"  # nested TensorDict, one entry a kind of masks: "context" and "targets", M = 1
TEACHER = "teacher"  # float16 [B, T, N, D], a frozen teacher's tokens of a clip, computed beforehand
ASKED = "asked"  # int64 [B, T], every token of "targets" once; -1 is padding

# --- masks of a scan and of its bird's-eye view ---------------------------------------------------------------------
CELLS_OCCUPIED = "cells_occupied"  # bool [B, Y X], cells of the encoder's grid that hold points
CELLS_SHOWN = "cells_shown"  # bool [B, Y X], cells the encoder may see; maps, as about half of all cells are in each
KEPT = "voxels_kept"  # bool [B, V], voxels the encoder may see

# --- what an objective says of its two views (core.TwoViews) ----------------------------------------------------------
SHOWN = "shown"  # nested TensorDict like "observation": bool, which entries a view shows
LATENT = "latent"  # nested TensorDict: float [B, ...], representations of a view

# --- what a phase's loss returns --------------------------------------------------------------------------------
LOSS = "loss"  # nested TensorDict of scalars, each with a weight in the config
STAT = "stat"  # nested TensorDict of scalars, logged only
MEDIA = "media"  # what an evaluator adds for the report: pictures, tables
