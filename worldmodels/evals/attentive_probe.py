"""Attentive probes of frozen tokens, many at a time: every label with every setting is one of a batch of probes.

A probe's query is a parameter, so its product with the keys' map is one vector a head: scores are one product of tokens
with these vectors, and values are projected after the tokens were averaged. Attention over N tokens then costs N D a
head instead of 2 N D^2, and all probes read the tokens together.

Source: the probe is that of V-JEPA (Bardes et al., arXiv 2404.08471; sheet salt_video, section 2): a learned query,
cross-attention with a LayerNorm on the tokens and without an output map, a feed-forward net, both with residuals, a
linear map. Differs: the query's and the keys' maps are learned as the one vector a head that they amount to, and the
LayerNorm's own scale and shift are part of the maps that follow it. The functions are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from worldmodels.evals.regression import r2_scores

EPSILON = 1e-5  # of LayerNorms


class Probes(NamedTuple):
    """Weights of P probes with H heads for tokens of width D, hidden width E and C outputs."""

    query: Tensor  # [P, D], to which the answer is added
    asked: Tensor  # [P, H, D], what a head looks for: its query through the keys' map, over the root of D / H
    value: Tensor  # [P, H, D, D / H]
    value_shift: Tensor  # [P, D]
    norm_scale: Tensor  # [P, D]
    norm_shift: Tensor  # [P, D]
    inward: Tensor  # [P, D, E]
    inward_shift: Tensor  # [P, E]
    outward: Tensor  # [P, E, D]
    outward_shift: Tensor  # [P, D]
    head: Tensor  # [P, D, C]
    head_shift: Tensor  # [P, C]


DECAYED = {"asked", "value", "inward", "outward", "head"}


class Fitted(NamedTuple):
    """The probes that validation chose, one a label."""

    predict: Callable[[Tensor], dict[str, Tensor]]  # normalised tokens [M, N, D] -> a class or a number [M], by label
    score: dict[str, float]  # on validation: accuracy or R2
    lr: dict[str, float]
    weight_decay: dict[str, float]


class AttentiveProbe:
    """Trains all labels with all settings at once by AdamW; validation chooses a setting for each label.

    Every probe starts from the same weights and sees the same batches; none knows of the others.

    Args:
        num_heads: of attention, or the greatest lower number that divides the width of the tokens.
        mlp_ratio: hidden width over the tokens' width.
        lr, weight_decay: to be tried, every pair of them. Decay is of matrices only.
        epochs: passes over the training clips; the learning rate rises for a tenth of them and falls as a cosine to 0.
        batch_size: clips a step.
        seed: of weights and batches.

    Raises:
        ValueError: for sizes below 1, or nothing to try.
    """

    def __init__(
        self,
        *,
        num_heads: int = 4,
        mlp_ratio: int | float = 4,
        lr: Sequence[int | float] = (3e-3, 1e-2),
        weight_decay: Sequence[int | float] = (0.01, 0.1),
        epochs: int = 10,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        if min(num_heads, mlp_ratio, epochs, batch_size) < 1 or not lr or not weight_decay:
            raise ValueError(
                f"an attentive probe needs num_heads={num_heads}, mlp_ratio={mlp_ratio}, epochs={epochs} and "
                f"batch_size={batch_size} of at least 1, and something to try: lr={list(lr)}, "
                f"weight_decay={list(weight_decay)}"
            )
        self.settings = [(float(rate), float(decay)) for rate in lr for decay in weight_decay]
        self.num_heads, self.mlp_ratio, self.epochs = num_heads, mlp_ratio, epochs
        self.batch_size, self.seed = batch_size, seed

    def __call__(
        self, tokens: Sequence[Tensor], labels: Sequence[Mapping[str, Tensor]], num_classes: Mapping[str, int]
    ) -> Fitted:
        """Fit on the first part, choose on the second; there is no third.

        Args:
            tokens: of both parts, ``normalized`` [M, N, D], any floating type.
            labels: of both parts, by name: int64 [M], -1 where a clip has no such label; float32 [M], NaN likewise.
            num_classes: of every label to be probed; 0 for numbers.

        Raises:
            ValueError: if no probe's outputs are finite: the representation has diverged.
        """
        goals = Goals(labels[0], num_classes, tokens[0].device)
        train, val = (goals.of(part) for part in labels)
        weights = self.train(tokens[0], train, goals)
        values = torch.cat([goals.values(out) for out in self.outputs(weights, tokens[1])], 1)  # [S L, M]
        score = goals.scores(values.unflatten(0, (len(self.settings), -1)), val)  # [S, L]
        if not bool(values.isfinite().any()):
            raise ValueError("attentive probes of tokens that are not finite: the representation has diverged")
        chosen = score.nan_to_num(-torch.inf).argmax(0)  # the first of equal ones
        best = score.gather(0, chosen[None])[0]  # NaN for a number that does not vary
        settings = [self.settings[i] for i in chosen.tolist()]
        place = chosen * len(goals.names) + torch.arange(len(goals.names), device=chosen.device)
        kept = Probes(*(weight[place] for weight in weights))

        def predict(rows: Tensor) -> dict[str, Tensor]:
            found = torch.cat([goals.values(out) for out in self.outputs(kept, rows)], 1)  # [L, M]
            return {name: goals.in_unit(found[i], i) for i, name in enumerate(goals.names)}

        return Fitted(
            predict,
            dict(zip(goals.names, best.tolist(), strict=True)),
            {name: lr for name, (lr, _) in zip(goals.names, settings, strict=True)},
            {name: decay for name, (_, decay) in zip(goals.names, settings, strict=True)},
        )

    def train(self, tokens: Tensor, target: tuple[Tensor, Tensor], goals: Goals) -> Probes:
        """Trained weights of S L probes, those of a setting next to each other."""
        generator = Generator(tokens.device).manual_seed(self.seed)
        shape = (len(self.settings), len(goals.names))
        leaves = Probes(
            *(
                weight.expand(*shape, *weight.shape).contiguous().requires_grad_(True)
                for weight in self.start(tokens.shape[-1], goals.width, generator)
            )
        )
        # The optimizer knows each setting by views of the leaves, so that each has rates of its own.
        parts = {(s, name): leaf.detach()[s] for name, leaf in leaves._asdict().items() for s in range(shape[0])}
        groups = [
            {"params": [parts[s, name] for name in chosen], "lr": lr, "weight_decay": decay * is_decayed, "peak": lr}
            for s, (lr, decay) in enumerate(self.settings)
            for is_decayed, chosen in ((1, sorted(DECAYED)), (0, sorted({*Probes._fields} - DECAYED)))
        ]
        optimizer = torch.optim.AdamW(groups, fused=True)
        size = min(self.batch_size, len(tokens))
        total, done = self.epochs * (len(tokens) // size), 0
        for _ in range(self.epochs):
            order = torch.randperm(len(tokens), generator=generator, device=tokens.device)
            for rows in order[: len(order) // size * size].split(size):
                with torch.enable_grad():
                    outputs = respond(flat(leaves), tokens[rows].float())
                    loss = goals.loss(outputs.unflatten(0, shape), [part[rows] for part in target])
                    gradients = torch.autograd.grad(loss, list(leaves))
                for name, gradient in zip(Probes._fields, gradients, strict=True):
                    for s in range(shape[0]):
                        parts[s, name].grad = gradient[s]
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * rate_factor(done, total)
                optimizer.step()
                done += 1
        return Probes(*(leaf.detach() for leaf in flat(leaves)))

    def start(self, dim: int, width: int, generator: Generator) -> Probes:
        """Initial weights of one probe of tokens [N, D] with ``width`` outputs: attention is nearly even."""
        heads = next(num for num in range(min(self.num_heads, dim), 0, -1) if dim % num == 0)
        hidden, device = round(self.mlp_ratio * dim), generator.device

        def normal(*shape: int, std: float) -> Tensor:
            return torch.empty(shape, device=device).normal_(std=std, generator=generator).clamp_(-2 * std, 2 * std)

        return Probes(
            query=normal(dim, std=0.02),
            asked=normal(heads, dim, std=0.02),
            value=normal(heads, dim, dim // heads, std=dim**-0.5),
            value_shift=torch.zeros(dim, device=device),
            norm_scale=torch.ones(dim, device=device),
            norm_shift=torch.zeros(dim, device=device),
            inward=normal(dim, hidden, std=dim**-0.5),
            inward_shift=torch.zeros(hidden, device=device),
            outward=normal(hidden, dim, std=hidden**-0.5),
            outward_shift=torch.zeros(dim, device=device),
            head=torch.zeros(dim, width, device=device),
            head_shift=torch.zeros(width, device=device),
        )

    @torch.no_grad()
    def outputs(self, weights: Probes, tokens: Tensor) -> list[Tensor]:
        """Outputs [P, m, C] for tokens [M, N, D], a batch at a time."""
        return [respond(weights, rows.float()) for rows in tokens.split(self.batch_size)]


class Goals:
    """What probes are to give: of classes a distribution, of numbers the number over the training part's moments.

    Args:
        labels: of the training part, by name [M]; num_classes: see ``AttentiveProbe``; device: of the tokens.
    """

    def __init__(self, labels: Mapping[str, Tensor], num_classes: Mapping[str, int], device: torch.device) -> None:
        self.names = sorted(num_classes)
        counts = torch.tensor([num_classes[name] for name in self.names], device=device)
        self.is_class, self.width = counts > 0, max(1, *num_classes.values())
        self.exists = torch.arange(self.width, device=device) < counts[:, None]  # [L, C]
        self.mean, self.std = torch.zeros(2, len(self.names), device=device)
        for i, name in enumerate(self.names):
            if num_classes[name] == 0:
                known = labels[name][labels[name].isfinite()].to(device).float()
                self.mean[i], self.std[i] = known.mean(), known.std(correction=0)

    def of(self, labels: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Classes int64 [M, L], -1 where there is none, and numbers float32 [M, L], NaN where there is none."""
        columns = [labels[name].to(self.mean.device) for name in self.names]
        classes = [torch.full_like(c, -1, dtype=torch.int64) if c.is_floating_point() else c for c in columns]
        numbers = [c if c.is_floating_point() else torch.full_like(c, math.nan, dtype=torch.float32) for c in columns]
        scaled = (torch.stack(numbers, 1).float() - self.mean) / torch.where(self.std > 0, self.std, 1.0)
        return torch.stack(classes, 1), scaled

    def loss(self, outputs: Tensor, target: Sequence[Tensor]) -> Tensor:
        """Sum over probes of the mean cross-entropy or squared error of rows that have the label.

        Args:
            outputs: [S, L, B, C]; target: see ``of``, [B, L] each.
        """
        classes, numbers = (part.T for part in target)  # [L, B]
        # Every probe has both losses; the rows of one of them are all without a label, and count nothing.
        logits = outputs.masked_fill(~(self.exists | ~self.is_class[:, None])[:, None], -torch.inf)
        likelihood = logits.log_softmax(-1)
        chosen = classes.clamp_min(0)[None, ..., None].expand(len(outputs), -1, -1, 1)
        wrong = -likelihood.gather(-1, chosen)[..., 0] * (classes >= 0)
        off = (outputs[..., 0] - numbers.nan_to_num(0.0)).square() * numbers.isfinite()
        num = ((classes >= 0) | numbers.isfinite()).sum(1).clamp_min(1)  # [L]
        return ((wrong + off).sum(2) / num).sum()

    def values(self, outputs: Tensor) -> Tensor:
        """Classes or scaled numbers, float32 [P, M], of outputs [P, M, C]; P is some number of times L."""
        outputs = outputs.unflatten(0, (-1, len(self.names)))
        logits = outputs.masked_fill(~self.exists[:, None], -torch.inf)
        classes = torch.where(outputs.isfinite().all(-1), logits.argmax(-1).float(), torch.nan)
        return torch.where(self.is_class[:, None], classes, outputs[..., 0]).flatten(0, 1)

    def scores(self, values: Tensor, target: Sequence[Tensor]) -> Tensor:
        """Accuracy or R2, float64 [S, L], of ``values`` [S, L, M]; NaN where they or the target are not finite."""
        found = []
        for i, (classes, numbers) in enumerate(zip(*(part.T for part in target), strict=True)):
            is_known = (classes >= 0) | numbers.isfinite()
            mine = values[:, i, is_known]
            if self.is_class[i]:
                share = (mine == classes[is_known]).double().mean(1)
                found.append(torch.where(mine.isfinite().all(1), share, torch.nan))
            else:
                found.append(r2_scores(mine.T, numbers[is_known, None].expand(-1, len(mine))))
        return torch.stack(found, 1)

    def in_unit(self, values: Tensor, index: int) -> Tensor:
        """Classes int64 [M], or numbers in the label's unit, of the ``values`` [M] of label ``index``."""
        return values.long() if self.is_class[index] else values * self.std[index] + self.mean[index]


def respond(probes: Probes, tokens: Tensor) -> Tensor:
    """Outputs [P, B, C] of P probes for ``normalized`` tokens [B, N, D], float32."""
    num, heads, _ = probes.asked.shape
    scores = (tokens @ probes.asked.flatten(0, 1).T).mT  # [B, P H, N]
    pooled = (scores.contiguous().softmax(-1) @ tokens).unflatten(1, (num, heads))  # [B, P, H, D]
    answer = pooled.permute(1, 2, 0, 3) @ probes.value  # [P, H, B, D / H]
    x = answer.transpose(1, 2).flatten(2) + (probes.query + probes.value_shift)[:, None]  # [P, B, D]
    hidden = F.layer_norm(x, x.shape[-1:], eps=EPSILON) * probes.norm_scale[:, None] + probes.norm_shift[:, None]
    hidden = F.gelu(torch.baddbmm(probes.inward_shift[:, None], hidden, probes.inward))
    x = x + torch.baddbmm(probes.outward_shift[:, None], hidden, probes.outward)
    return torch.baddbmm(probes.head_shift[:, None], x, probes.head)


def normalized(tokens: Tensor) -> Tensor:
    """Every token [..., D] with mean 0 and variance 1: the LayerNorm of all probes; scale and shift are their own."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:], eps=EPSILON)


def flat(weights: Probes) -> Probes:
    """Weights [S, L, ...] as those of S L probes."""
    return Probes(*(weight.flatten(0, 1) for weight in weights))


def rate_factor(done: int, total: int) -> float:
    """Share of the learning rate at a step: a tenth of all steps rises, the others fall as a cosine to 0."""
    warmup = max(1, total // 10)
    if done < warmup:
        return (done + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(1, total - warmup)))
