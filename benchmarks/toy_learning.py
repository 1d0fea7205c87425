"""Does every zero-shot method learn? Each reaches five places of the toy that it was never told about, in seconds.

The floors are a random policy and the agent before its first update: a loss that falls would prove nothing. Tests run
this for TD-JEPA.

    python -m benchmarks.toy_learning --seeds 0 1 2 --jobs 2
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Generator

from agents.actors import GaussianActor
from agents.byol import BYOL
from agents.byol_gamma import BYOLGamma
from agents.c_td_jepa import ContrastiveTDJEPA
from agents.fb import FB
from agents.hilp import HILP
from agents.icvf import ICVF, IntentMap
from agents.laplacian import Laplacian
from agents.rldp import RLDP
from agents.sf import SuccessorFeatures
from agents.td_jepa import TDJEPA, SymmetricTDJEPA
from benchmarks.runs import command, mean_and_error, run_all, save_table
from envs.relabel import Futures
from envs.toy import Toy
from perception.state import StateEncoder
from worldmodels.evals.floors import FloorEvaluator
from worldmodels.evals.zero_shot import ZeroShotEvaluator
from worldmodels.learner import Learner
from worldmodels.nn.mlp import LatentMLP
from worldmodels.predictors.dynamics import LatentDynamics
from worldmodels.predictors.successor import SuccessorPredictor
from worldmodels.schedules import WarmupCosine
from worldmodels.targets import EMA
from worldmodels.trainer import batch_seed

STEPS, BATCH_SIZE, DISCOUNT, WIDTH, EPISODES = 400, 256, 0.9, 64, 20
LONGER = {"ContrastiveTDJEPA": 800}  # after 400 it is above the margin or below it, by rounding; after 800 at 0.9
MARGIN = 0.25  # by which success beats the floors in tests
PREDICTOR = partial(SuccessorPredictor, width=WIDTH, depth=1, num_members=2)
DYNAMICS = {"dynamics": partial(LatentDynamics, width=WIDTH, depth=1, num_members=2)}
# Method: width of the latents, loss weights, what else its constructor takes.
METHODS: dict[type, tuple[int, dict[str, float], dict[str, Any]]] = {
    TDJEPA: (
        16,
        {"td_state": 1.0, "td_task": 1.0, "orthonormality_state": 1.0, "orthonormality_task": 1.0},
        {"task_predictor": PREDICTOR},
    ),
    SymmetricTDJEPA: (8, {"td_state": 1.0, "orthonormality_state": 1.0}, {"state_net": None}),
    ContrastiveTDJEPA: (
        16,
        {"measure": 1.0, "orthonormality_state": 3.0},
        {"state_net": None, "is_goal_whitened": False},
    ),
    FB: (16, {"measure": 1.0, "orthonormality_task": 1.0}, {"is_goal_whitened": False}),
    RLDP: (
        16,
        {"measure": 1.0, "latent": 1.0, "orthonormality_task": 1.0},
        {"is_goal_whitened": False, "horizon": 3, **DYNAMICS},
    ),
    Laplacian: (16, {"successor": 1.0, "smoothness": 1.0, "orthonormality_task": 1.0}, {}),
    BYOL: (8, {"successor": 1.0, "latent": 1.0, "orthonormality_task": 1.0}, DYNAMICS),
    BYOLGamma: (8, {"successor": 1.0, "latent": 1.0, "orthonormality_task": 1.0}, DYNAMICS),
    HILP: (8, {"successor": 1.0, "hilbert": 1.0}, {}),
    ICVF: (
        8,
        {"successor": 1.0, "intention": 1.0},
        {"intent_map": partial(IntentMap, width=WIDTH, depth=1, num_members=2)},
    ),
    SuccessorFeatures: (8, {"successor": 1.0}, {}),  # two coordinates are easy for random features, too
}
FUTURES = {HILP: ("future",), BYOLGamma: ("future",), ICVF: ("future", "intent")}


def build(kind: type, source: Toy, seed: int, steps: int) -> tuple[Any, Learner]:
    dim, weights, options = METHODS[kind]
    net = partial(LatentMLP, dim=dim, width=WIDTH, depth=2)
    torch.manual_seed(seed)
    agent = kind(
        source.spec,
        encoder=StateEncoder,
        task_encoder=None,
        task_net=partial(net, is_normalized=kind is not HILP),
        predictor=PREDICTOR,
        actor=partial(GaussianActor, width=WIDTH, depth=1),
        target=partial(EMA, tau=0.05),
        discount=DISCOUNT,
        **{"state_net": net, **options},
    )
    optimizer = partial(torch.optim.Adam, lr=5e-3, fused=True)
    return agent, Learner(agent, optimizer=optimizer, weights={"value": 1.0, **weights}, schedule=WarmupCosine(steps))


def learn(kind: type, seed: int) -> dict[str, float]:
    """Train a method on the toy.

    Returns:
        share of episodes that reach their goal, "trained", "untrained" and of a "random" policy.
    """
    toy = Toy(seed=0)
    source = Futures(toy, discount=DISCOUNT, names=FUTURES[kind]) if kind in FUTURES else toy
    steps = LONGER.get(kind.__name__, STEPS)
    agent, learner = build(kind, toy, seed, steps)
    judge = ZeroShotEvaluator(source=toy, every=0, episodes=EPISODES, num_labelled=2000)
    untrained = judge(agent, 0)["success"].item()
    random = FloorEvaluator(source=toy, policy="random", episodes=EPISODES)(agent, 0)["success"].item()
    for step in range(steps):
        generator = Generator().manual_seed(batch_seed(seed, step, 0))
        batch = source.sample(BATCH_SIZE, agent.window, generator)
        learner.update(agent.draw_noise(batch, generator), step)
    return {"trained": judge(agent, steps)["success"].item(), "untrained": untrained, "random": random}


def _cell(name: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(1)
    return learn(next(kind for kind in METHODS if kind.__name__ == name), seed)


def main() -> None:
    """Train every method with every seed, print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, with one thread each")
    parser.add_argument("--out", type=Path, default=None, help="folder of the table, instead of benchmarks/results")
    options = parser.parse_args()
    cells = [(kind.__name__, seed) for kind in METHODS for seed in options.seeds]
    found = run_all(_cell, cells, options, jobs=options.jobs)
    rows = ["| method | updates | trained | untrained | random | smallest gain |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(name for name, _ in cells):
        results = [result for (other, _), result in found.items() if other == name]
        shares = [
            mean_and_error([result[key] for result in results], digits=2) for key in ("trained", "untrained", "random")
        ]
        gain = min(result["trained"] - max(result["untrained"], result["random"]) for result in results)
        rows.append(f"| {name} | {LONGER.get(name, STEPS)} | {' | '.join(shares)} | {gain:.2f} |")
    about = (
        f"Share of {5 * EPISODES} episodes that reach their goal, mean (standard error) over {len(options.seeds)} seeds"
    )
    average = mean(result["trained"] for result in found.values())
    table = "\n".join(["# Zero-shot methods on the toy", "", f"{about}; all methods {average:.2f}.", "", *rows, ""])
    save_table("toy-learning", f"{table}\n{command('toy_learning')}\n", out=options.out)


if __name__ == "__main__":
    main()
