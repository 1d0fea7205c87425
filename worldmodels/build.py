"""From a resolved configuration to the parts of a run. The only file that instantiates configuration nodes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from worldmodels import checkpoint
from worldmodels.core import Evaluator, Objective, Source, StudiesData, Target, Transform
from worldmodels.environment import device_name
from worldmodels.learner import Learner

SOURCE_FILE = "source.json"  # in a run's folder: what the data say of themselves, such as a table's scales


def choose_device(name: str) -> torch.device:
    """The torch device for "auto", "cpu", "cuda" or "cuda:1"."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name} was asked for, but torch {torch.__version__} sees no GPU; use device=cpu")
    return device


def use_fast_matmul(device: torch.device) -> bool:
    """Let fp32 products run on the fastest engine that keeps fp32 accuracy; returns whether one was found.

    On a GPU that is TF32, as the published code uses. On a CPU, PyTorch's "medium" precision hands fp32 products to
    oneDNN, which on some machines (AMD with AVX-512: 2.2x) is much faster than MKL at the same accuracy, and on others
    rounds to bfloat16. So it is tried on a small product, and kept only when the error stays that of fp32. On Intel's
    own processors MKL stays: there an update of TD-JEPA took 1.2 times as long with oneDNN. Speed is not tried: by
    chance a resumed run could choose otherwise, and end in other bits.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        return True
    if "Intel" in device_name(device):
        torch.set_float32_matmul_precision("highest")
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    torch.set_float32_matmul_precision("medium")
    error = ((a @ b).double() - exact).norm() / exact.norm()
    if error < 1e-6:
        return True
    torch.set_float32_matmul_precision("highest")
    return False


def build_source(cfg: DictConfig, device: torch.device) -> Source:
    """The source of ``cfg.env``, wrapped by ``cfg.relabel``; a Mixture for an agent and an objective together."""
    source = instantiate(cfg.env.source, device=device)
    if cfg.relabel is not None:
        source = instantiate(cfg.relabel)(source)
    if cfg.agent is not None and cfg.objective is not None:
        from envs.mixture import Mixture

        return Mixture({"agent": source, "objective": source})
    return source


def build_objective(cfg: DictConfig, source: Source, device: torch.device) -> Objective:
    """The agent, the self-supervised objective, or both on one encoder."""
    factories: dict[str, Callable[..., Objective]] = {
        name: instantiate(cfg[name]) for name in ("agent", "objective") if cfg[name] is not None
    }
    encoder = instantiate(cfg.encoder) if cfg.encoder is not None else None
    torch.manual_seed(cfg.seed)  # the initial weights: the only use of the global generator
    if len(factories) == 2:
        from worldmodels.objectives.joint import Joint

        objective: Objective = Joint(source.spec, encoder=encoder, objectives=factories)
    else:
        ((_, factory),) = factories.items()
        objective = factory(source.spec, encoder=encoder)
    if cfg.get("init"):  # runs of earlier versions have no such key
        start_from(Path(cfg.init), objective)
    objective = objective.to(device)
    if isinstance(objective, StudiesData):
        objective.study(source)
    return objective


def start_from(run_dir: Path, objective: Objective) -> None:
    """Give ``objective``'s encoder the weights and statistics that the run in ``run_dir`` ended with.

    Raises:
        FileNotFoundError: if there is no run or no checkpoint.
        ValueError: if the objective has no encoder of its own, or a tensor is missing, extra or of another shape.
    """
    load_config(run_dir)
    saved = checkpoint.steps(run_dir / "checkpoints")
    if not saved:
        raise FileNotFoundError(f"init={run_dir}: the run has no checkpoint yet")
    encoder = getattr(objective, "encoder", None)
    if encoder is None:
        raise ValueError(f"init={run_dir}: {type(objective).__name__} has no encoder to start from")
    checkpoint.load_part(checkpoint.path_of(run_dir / "checkpoints", saved[-1]), encoder, "encoder")
    for module in objective.modules():
        if isinstance(module, Target):
            module.restart()


def build_learner(cfg: DictConfig, objective: Objective, device: torch.device) -> Learner:
    """The learner with its optimizer and schedule; compiled and captured on a GPU unless told otherwise."""
    is_gpu = device.type == "cuda"
    is_captured = cfg.cuda_graph if cfg.cuda_graph is not None else is_gpu
    if is_captured and not is_gpu:
        raise ValueError(f"cuda_graph=true needs a GPU; this run is on {device}")
    optimizer = instantiate(cfg.optim)
    if is_captured:
        optimizer = functools.partial(capturable, optimizer, cfg.optim.lr, device)
    return Learner(
        objective,
        optimizer=optimizer,
        weights=to_dict(cfg.weights),
        groups=to_dict(cfg.param_groups),
        schedule=instantiate(cfg.schedule),
        # Runs of earlier versions have neither of these two
        weight_decay_schedule=instantiate(cfg.get("weight_decay_schedule")),
        momentum=instantiate(cfg.get("momentum")),
        max_grad_norm=cfg.max_grad_norm,
        accumulate=cfg.accumulate,
        precision=cfg.precision,
        is_compiled=cfg.compile if cfg.compile is not None else is_gpu,
        is_captured=is_captured,
    )


def capturable(optimizer: Callable[..., Any], lr: float, device: torch.device, groups: list[dict[str, Any]]) -> Any:
    """Build an optimizer whose step fits in a CUDA graph: learning rates are tensors, for numbers would be frozen."""
    groups = [{**g, "lr": torch.tensor(float(g.get("lr", lr)), device=device)} for g in groups]
    return optimizer(groups, capturable=True)


def build_transforms(cfg: DictConfig, objective: Objective) -> list[Transform]:
    """Configured transforms, then those the objective itself needs."""
    return [*(instantiate(node) for node in cfg.transforms.values()), *objective.transforms()]


def build_evaluators(cfg: DictConfig, source: Source) -> list[Evaluator]:
    """Every evaluator of ``cfg.eval`` that ``cfg.diagnostics`` does not switch off, on the source's data.

    Raises:
        ValueError: if something is switched on that is no evaluator.
    """
    switches = cfg.get("diagnostics") or {}
    if unknown := sorted(name for name, is_on in switches.items() if is_on and name not in cfg.eval):
        raise ValueError(f"diagnostics.{unknown[0]}=true: eval has no such evaluator; it has {', '.join(cfg.eval)}")
    nodes = [node for name, node in cfg.eval.items() if node is not None and switches.get(name, True)]
    return [instantiate(node)(source=source) for node in nodes]


def to_dict(node: DictConfig) -> dict[str, Any]:
    """A plain dictionary of a configuration node."""
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def differences(mine: Mapping[str, Any], saved: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the entries in which two configurations differ."""
    names: list[str] = []
    for key in sorted(set(mine) | set(saved)):
        a, b = mine.get(key), saved.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}")
    return names


def load_config(run_dir: Path) -> DictConfig:
    """The resolved configuration of the run in ``run_dir``.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} holds no run: there is no {path}")
    cfg = OmegaConf.load(path)
    assert isinstance(cfg, DictConfig)
    return cfg


def num_parameters(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
