"""One run from configuration to report: its folder, its resume, its summary. The loop itself is in trainer.py."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict

from worldmodels import build, checkpoint, distributed
from worldmodels.core import Costed, Objective, Policy
from worldmodels.environment import device_name, git_commit, keep_freed_memory, peak_memory_bytes, versions
from worldmodels.files import LOCK, atomic_write, atomic_write_json, sole_writer
from worldmodels.flops import spent
from worldmodels.logging import Logger, Progress
from worldmodels.report import save_evaluation, write_report
from worldmodels.trainer import Trainer

# What may differ between a run and its resumption: where and how long, never what is computed.
FREE_KEYS = set(
    "steps run_dir resume device threads log_every eval_every checkpoint_every logger eval diagnostics".split()
)


def claim_run_dir(cfg: DictConfig) -> Path:
    """Choose the run's folder and refuse one that holds something else.

    Raises:
        ValueError: if the folder holds another run, or this one without resume=true, or other files.
    """
    if cfg.run_dir is None:
        methods = [node._target_.split(".")[-2] for node in (cfg.agent, cfg.objective) if node is not None]
        what = "-".join([*methods, *filter(None, [cfg.env.get("dataset") or cfg.env.get("domain")])])
        cfg.run_dir = distributed.share(f"runs/{what}-{time.strftime('%Y%m%d-%H%M%S')}")
    run_dir = Path(cfg.run_dir)
    if (run_dir / "config.yaml").is_file():
        saved = build.load_config(run_dir)
        different = [n for n in build.differences(resolved(cfg), resolved(saved)) if n.split(".")[0] not in FREE_KEYS]
        if different:
            raise ValueError(
                f"run_dir={run_dir} holds another experiment: {', '.join(different[:5])} differ; choose another run_dir"
            )
        if not cfg.resume:
            raise ValueError(
                f"run_dir={run_dir} already holds this run; go on with resume=true or choose another run_dir"
            )
    elif run_dir.exists() and any(path.name != LOCK for path in run_dir.iterdir()):
        raise ValueError(f"run_dir={run_dir} is not empty and holds no run; choose another run_dir")
    return run_dir


def finished_steps(run_dir: Path) -> int | None:
    """Steps of the finished run in ``run_dir``; None if there is none."""
    path = run_dir / "summary.json"
    summary = json.loads(path.read_text()) if path.is_file() else {}
    return summary["steps"] if summary.get("is_finished") else None


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as a plain dictionary, interpolations resolved."""
    return build.to_dict(cfg)


def run(cfg: DictConfig, *, command: str, choices: Mapping[str, str] | None = None) -> int:
    """Train, evaluate and report as ``cfg`` says; returns the exit code. A finished run is left as it is.

    Args:
        cfg: composed. command: that gives this run again. choices: option of each configuration group, for the summary.
    """
    if cfg.agent is None and cfg.objective is None:
        raise ValueError("nothing to train: give agent=..., objective=..., or both; see --help for the options")
    device = distributed.start(build.choose_device(cfg.device))
    try:
        return _run(cfg, device, command, choices or {})
    finally:
        distributed.stop()


def _run(cfg: DictConfig, device: torch.device, command: str, choices: Mapping[str, str]) -> int:
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    if cfg.batch_size < 1 or cfg.batch_size % distributed.world_size():
        raise ValueError(
            f"batch_size={cfg.batch_size}: at least one sample, equally many for {distributed.world_size()} processes"
        )
    build.use_fast_matmul(device)
    run_dir = claim_run_dir(cfg)
    if (done := finished_steps(run_dir)) is not None and done >= cfg.steps:
        print(f"nothing to do: {run_dir} is finished, step {done}")
        return 0
    source = build.build_source(cfg, device)
    if device.type == "cpu":
        keep_freed_memory()  # only now: what reading or collecting data took goes back
    objective = build.build_objective(cfg, source, device)
    learner = build.build_learner(cfg, objective, device)
    saved = checkpoint.steps(run_dir / "checkpoints")
    start, best, judged = 0, None, None
    source.attach(objective if isinstance(objective, Policy) else None)
    if saved:
        path = checkpoint.path_of(run_dir / "checkpoints", saved[-1])
        checkpoint.load_model(path, objective)
        learner.load_optimizer_tensors(checkpoint.load_optimizer(path))
        if hasattr(source, "restore"):
            source.restore(checkpoint.load_source(path))
        state = checkpoint.read_state(path)
        start, best = saved[-1], tuple(state["best"]) if state["best"] else None
        judged = state.get("judged")

    distributed.barrier()  # every process has looked at the folder before the first one writes to it
    with sole_writer(run_dir) if distributed.is_main() else nullcontext():
        if distributed.is_main():
            atomic_write(run_dir / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
            if hasattr(source, "describe"):
                atomic_write_json(run_dir / build.SOURCE_FILE, source.describe())
        record = Record(
            cfg,
            run_dir,
            command=command,
            choices=choices,
            device=device,
            start=start,
            objective=objective,
        )
        trainer = Trainer(
            source=source,
            objective=objective,
            learner=learner,
            transforms=build.build_transforms(cfg, objective),
            evaluators=build.build_evaluators(cfg, source),
            run_dir=run_dir,
            steps=cfg.steps,
            batch_size=cfg.batch_size,
            seed=cfg.seed,
            device=device,
            log_every=cfg.log_every,
            checkpoint_every=cfg.checkpoint_every,
            log=record.log,
            on_evaluation=record.evaluation,
            state={"config": resolved(cfg), "spec": str(source.spec), "versions": versions(), "commit": git_commit()},
            keep_best=cfg.keep_best,
            start_step=start,
            judged=judged,
            best=best,
        )
        code = trainer.fit()
        record.finish(trainer, code)
        return code


class Record:
    """What a run leaves behind: metrics, summary.json and report.html. Does nothing on any but the main process."""

    def __init__(
        self,
        cfg: DictConfig,
        run_dir: Path,
        *,
        command: str,
        choices: Mapping[str, str],
        device: torch.device,
        start: int,
        objective: Objective,
    ) -> None:
        self.run_dir, self.device, self.is_main = run_dir, device, distributed.is_main()
        self.phases, self.batch_size = objective.phases(), cfg.batch_size
        self.costs = objective.costs(cfg.batch_size) if isinstance(objective, Costed) else None
        self.started = time.time()
        self.summary: dict[str, Any] = {
            "command": command,
            "choices": dict(choices),
            "seeds": {"seed": cfg.seed},
            "versions": versions(),
            "commit": git_commit(),
            "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
            "hardware": device_name(device),
            "processes": distributed.world_size(),
            "threads": torch.get_num_threads(),
            "precision": cfg.precision,
            "matmul": torch.get_float32_matmul_precision(),
            "parameters": build.num_parameters(objective),
            "phases": {p.name: [0, cfg.steps] if p.span is None else [*p.span[:2]] for p in self.phases},
            "evaluations": {},
            "updates_per_second": 0.0,
        }
        path = run_dir / "summary.json"
        if start and path.is_file():  # a resumed run keeps its earlier evaluations; later ones will be made again
            earlier = json.loads(path.read_text()).get("evaluations", {})
            kept = {name: [block for block in blocks if block["step"] <= start] for name, blocks in earlier.items()}
            self.summary["evaluations"] = {name: blocks for name, blocks in kept.items() if blocks}
        if self.is_main:
            self.logger = Logger(run_dir, start_step=start, **build.to_dict(cfg.logger))
            self.progress = Progress(cfg.steps, start)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write metrics and move the progress bar."""
        if self.is_main:
            self.logger.log(step, {**values, **self.operations(step)})
            self.progress.update(step, values)

    def operations(self, step: int) -> dict[str, float]:
        """Floating-point operations spent up to ``step``, where the objective knows them."""
        if self.costs is None:
            return {}
        return {"operations": spent(self.phases, self.costs, batch_size=self.batch_size, step=step)}

    def evaluation(self, name: str, step: int, result: TensorDict) -> None:
        """Keep an evaluation's numbers in the summary, where a run that breaks leaves them, and its pictures."""
        block = save_evaluation(self.run_dir, name, step, result)
        self.summary["evaluations"].setdefault(name, []).append({**block, **self.operations(step)})
        self._write(steps=step, is_finished=False)

    def finish(self, trainer: Trainer, code: int) -> None:
        """Write summary.json and report.html."""
        if not self.is_main:
            return
        done = checkpoint.steps(trainer.checkpoints)
        self.summary["updates_per_second"] = trainer.stopwatch.per_second
        self._write(steps=done[-1] if done else 0, is_finished=code == 0)
        self.progress.close()
        self.logger.close()
        report = write_report(self.run_dir)
        where = f"step {self.summary['steps']} of {trainer.steps}; report: {report}"
        again = f"; go on with the same command, run_dir={self.run_dir} and resume=true"
        print(f"done: {where}" if code == 0 else f"stopped: {where}{again}")

    def _write(self, *, steps: int, is_finished: bool) -> None:
        self.summary |= {
            "steps": steps,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            **self.operations(steps),
            "seconds": time.time() - self.started,
            "is_finished": is_finished,
        }
        atomic_write(self.run_dir / "summary.json", json.dumps(self.summary, indent=1))
