"""What limits a zero-shot agent in a point maze: its features, its critic or its actor?

For every task of a finished run, on states of the data:

* ``explained``: share of the reward's variance that the features explain linearly (R^2).
* ``planner``: whether exact value iteration on a grid of the maze, for the reward *as the features see it* and the
  agent's own discount, walks from the start to the goal. Yes means that features and inference are good enough.
* ``value``: rank correlation of the critic's value with the length of the way to the goal (-1 is perfect).
* ``critic``: mean cosine of the critic's best of 16 directions with the first step of the shortest way.
* ``actor``: the same for the agent's action.

Above the table stands the success between random places: 100 pairs of start and goal, 600 steps each. The benchmark's
five tasks are few and far; this number tells two settings apart that they do not.

    python -m benchmarks.maze_diagnosis runs/a
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from envs.suite import Maze
from worldmodels import build, checkpoint
from worldmodels.evals.results import judging
from worldmodels.keys import ACTION, NOISE, OBSERVATION, POOLED, STATE, TASK

CELL = 0.4  # metres, side of a grid cell
SPEED = 0.25  # metres a step of the environment, about what agents reach
RADIUS = 1.0  # metres, of a goal
NEIGHBORS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]


class Grid:
    """The free space of a maze as square cells."""

    def __init__(self, maze: Maze) -> None:
        per_square = round(maze.unit / CELL)
        self.free = np.kron(~maze.walls, np.ones((per_square, per_square), bool))
        self.low = np.array(maze.origin) - maze.unit / 2
        rows, columns = np.indices(self.free.shape)
        self.centers = np.stack([columns, rows], -1) * CELL + CELL / 2 + self.low  # [I, J, 2]

    def cell(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of each position [..., 2]."""
        index = ((xy - self.low) / CELL).astype(int)
        return index[..., 1], index[..., 0]

    def neighbors(self, values: np.ndarray, blocked: float) -> np.ndarray:
        """Values of the eight neighbours [8, I, J]; ``blocked`` where a wall is, or a corner would be cut."""
        found = []
        for i, j in NEIGHBORS:
            is_open = np.roll(self.free, (-i, -j), (0, 1))
            is_open &= np.roll(self.free, (-i, 0), (0, 1)) & np.roll(self.free, (0, -j), (0, 1))
            found.append(np.where(is_open, np.roll(values, (-i, -j), (0, 1)), blocked))
        return np.stack(found)

    def way(self, goal: np.ndarray) -> np.ndarray:
        """Length of the shortest way to within RADIUS of ``goal`` [I, J], metres; infinite in walls."""
        length = np.where(np.linalg.norm(self.centers - goal, axis=-1) <= RADIUS, 0.0, np.inf)
        length[~self.free] = np.inf
        step = np.array([math.hypot(i, j) for i, j in NEIGHBORS])[:, None, None] * CELL
        while True:
            shorter = np.where(self.free, np.minimum(length, (self.neighbors(length, np.inf) + step).min(0)), np.inf)
            if np.array_equal(shorter, length):
                return length
            length = shorter

    def reaches(self, reward: np.ndarray, discount: float, start: np.ndarray, goal: np.ndarray) -> bool:
        """Whether the optimal policy for ``reward`` [I, J] leads from ``start`` to ``goal``."""
        value, per_cell = np.zeros_like(reward), discount ** (CELL / SPEED)
        for _ in range(5000):
            here = reward + per_cell * value
            better = np.where(self.free, np.maximum(here, self.neighbors(here, -np.inf).max(0)), 0.0)
            if np.abs(better - value).max() < 1e-9:
                break
            value = better
        here = reward + per_cell * value
        around = self.neighbors(here, -np.inf)
        row, column = (int(x) for x in self.cell(start))
        for _ in range(self.free.size):
            if np.linalg.norm(self.centers[row, column] - goal) <= RADIUS:
                return True
            best = int(around[:, row, column].argmax())
            if around[best, row, column] <= here[row, column]:
                return False  # staying pays best: a side lobe of the reward
            row, column = row + NEIGHBORS[best][0], column + NEIGHBORS[best][1]
        return False


@torch.no_grad()
def diagnose(run_dir: Path, num: int = 1000) -> str:
    """The table of one run, in Markdown."""
    cfg = build.load_config(run_dir)
    source = build.build_source(cfg, torch.device("cpu"))
    agent = build.build_objective(cfg, source, torch.device("cpu"))
    steps = checkpoint.steps(run_dir / "checkpoints")
    checkpoint.load_model(checkpoint.path_of(run_dir / "checkpoints", steps[-1]), agent)
    grid = Grid(source.tasks.maze())
    labelled = source.labelled(10_000, torch.Generator().manual_seed(0))
    pairs = random_pairs(agent, source, labelled[OBSERVATION])
    lines = [
        f"Between random places: {pairs:.2f}",
        "",
        "| task | explained | planner | value | critic | actor |",
        "|---|---|---|---|---|---|",
    ]
    with judging(agent):
        rows = {task: examine(agent, source, grid, labelled, task, num) for task in source.tasks.names}
    lines += [f"| {task} | " + " | ".join(cells) + " |" for task, cells in rows.items()]
    return "\n".join(lines)


@torch.no_grad()
def random_pairs(agent, source, labelled: TensorDict, num: int = 100, max_steps: int = 600) -> float:
    """Share of ``num`` random goals reached from random starts; each goal is a disc of RADIUS around it."""
    import gymnasium

    envs = [gymnasium.make(source.facts.env_id).unwrapped for _ in range(num)]
    envs[0].reset()
    draw, noise, squares = (
        np.random.default_rng(0),
        torch.Generator().manual_seed(0),
        np.argwhere(envs[0].maze_map == 0),
    )
    # Within 1 m of the middle of free squares: the ball fits everywhere.
    places = [envs[0].ij_to_xy(squares[i]) + draw.uniform(-1, 1, 2) for i in draw.integers(len(squares), size=2 * num)]
    here, goals = np.array(places[:num]), np.array(places[num:])
    for env, start in zip(envs, here, strict=True):
        env.reset()
        env.set_xy(start)
    seen = labelled[STATE]
    near = [(seen - torch.as_tensor(goal, dtype=torch.float32)).norm(dim=-1) <= RADIUS for goal in goals]
    z = torch.stack([agent.infer_task(labelled, reward=inside.float()) for inside in near])
    action_dim, done = agent.action_dim, np.zeros(num, bool)
    with judging(agent):
        for step in range(max_steps):
            if step % source.action_chunk == 0:
                td = TensorDict({STATE: torch.as_tensor(here, dtype=torch.float32)}, batch_size=[num])
                random = TensorDict({ACTION: torch.randn(num, action_dim, generator=noise)}, batch_size=[num])
                td = TensorDict({OBSERVATION: td, TASK: z, NOISE: random}, batch_size=[num])
                plan = agent.act(td)[ACTION].unflatten(-1, (source.action_chunk, -1)).numpy()
            for i in np.flatnonzero(~done):
                here[i] = envs[i].step(plan[i, step % source.action_chunk])[0]
            done |= np.linalg.norm(here - goals, axis=-1) <= RADIUS
    return float(done.mean())


def examine(agent, source, grid: Grid, labelled: TensorDict, task: str, num: int) -> list[str]:
    """The cells of one task's row."""
    reward = source.tasks.reward(task, labelled) + 1
    z = agent.infer_task(labelled[OBSERVATION], reward=reward)
    goal = source.tasks.goal_of(task)[STATE].numpy()[:2]
    with source.tasks.make(task, num_envs=1, seed=0) as env:
        start = env.reset()[OBSERVATION, STATE][0].numpy()[:2]

    psi = features(agent, labelled[OBSERVATION])
    weight = torch.linalg.pinv(psi.T @ psi, hermitian=True) @ (psi.T @ reward.double())
    explained = 1 - (psi @ weight - reward).square().mean() / reward.double().var()
    cells = torch.as_tensor(grid.centers.reshape(-1, 2), dtype=torch.float32)
    seen = (features(agent, TensorDict({STATE: cells}, batch_size=[len(cells)])) @ weight).reshape(grid.free.shape)
    chunk = source.action_chunk
    planner = grid.reaches(seen.numpy(), agent.discount ** (1 / chunk), start, goal)

    obs = labelled[OBSERVATION][:num]
    row, column = grid.cell(obs[STATE].numpy())
    length = grid.way(goal)
    best = grid.neighbors(length, np.inf)[:, row, column].argmin(0)
    ahead = torch.tensor([[j, i] for i, j in NEIGHBORS], dtype=torch.float32)[best]
    is_far = torch.as_tensor(np.isfinite(length[row, column]) & (length[row, column] > 0))
    ahead = (ahead / ahead.norm(dim=-1, keepdim=True))[is_far]

    angle = torch.arange(16) * (2 * math.pi / 16)
    directions = torch.stack([angle.cos(), angle.sin()], -1)
    straight = directions.repeat(1, chunk)  # [16, A]
    latent = agent.state_net(agent.encoder(obs)[POOLED])
    q = torch.stack(
        [(agent.predictor(latent, z.expand(num, -1), d.expand(num, -1)) * z).sum(-1).mean(0) for d in straight]
    )
    critic = (directions[q.argmax(0)][is_far] * ahead).sum(-1).mean()
    noise = TensorDict({"action": torch.zeros(num, straight.shape[1])}, batch_size=[num])
    td = TensorDict({OBSERVATION: obs, TASK: z.expand(num, -1), NOISE: noise}, batch_size=[num])
    moved = agent.act(td)[ACTION].unflatten(-1, (chunk, 2)).sum(1)
    actor = torch.cosine_similarity(moved[is_far], ahead, dim=-1).mean()
    value = rank_correlation(q.max(0).values[is_far], torch.as_tensor(length[row, column])[is_far])
    return [f"{explained:.2f}", "yes" if planner else "no", f"{value:.2f}", f"{critic:.2f}", f"{actor:.2f}"]


def features(agent, obs: TensorDict) -> Tensor:
    """Task features psi [N, d] in float64."""
    return agent.task_features(agent.task_encoder(obs)[POOLED]).double()


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation of two vectors."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return torch.corrcoef(ranks)[0, 1]


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        print(f"{folder}\n\n{diagnose(Path(folder))}\n")
