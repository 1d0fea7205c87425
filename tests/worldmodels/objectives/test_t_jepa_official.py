"""``experiment=t_jepa/official_compat`` against a second implementation of what the released T-JEPA code computes.

Facts from reading github.com/jose-melo/t-jepa, commit e07ea70 (MIT); none of its code is here, and none was run. The
networks below are put together from torch's own layers, the update is written out.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hydra.utils import instantiate
from torch import Generator, Tensor, nn
from torchrl.data import Categorical, Composite, MultiCategorical, Unbounded

from tests.systems import composed
from worldmodels import build

CPU = torch.device("cpu")


def spec(numbers: int, cards: tuple[int, ...] = ()) -> Composite:
    missing = Categorical(2, shape=(numbers,), dtype=torch.bool)
    columns = {"numerical": Unbounded((numbers,)), "missing": missing}
    if cards:
        columns["categorical"] = MultiCategorical(cards)
    return Composite({"observation": Composite(columns)})


def parts(spec: Composite, *settings: str):
    cfg = composed("experiment=t_jepa/official_compat", *settings)
    torch.manual_seed(cfg.seed)
    return cfg, instantiate(cfg.objective)(spec, encoder=instantiate(cfg.encoder))


class Stack(nn.Module):
    """Post-norm layers, then LayerNorm, Linear, LayerNorm."""

    def __init__(self, dim: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(dim, heads, hidden, dropout=0.0, batch_first=True, dtype=torch.float64)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(depth))
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.LayerNorm(dim)).double()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def take(self, blocks: nn.Module, head: nn.Module) -> None:
        for mine, theirs in zip(self.layers, blocks, strict=True):
            pairs = {
                "self_attn.in_proj_": theirs.attention.qkv,
                "self_attn.out_proj.": theirs.attention.out,
                "linear1.": theirs.feed_forward[0],
                "linear2.": theirs.feed_forward[2],
                "norm1.": theirs.norm_attention,
                "norm2.": theirs.norm_feed_forward,
            }
            mine.load_state_dict({f"{k}{n}": p for k, module in pairs.items() for n, p in module.named_parameters()})
        self.head.load_state_dict(head.state_dict())


class Released(nn.Module):
    """Encoder: the register is a number that is always 1, without a bias; a row's tokens are 1 + columns."""

    def __init__(self, theirs, *, numbers: int, cards: tuple[int, ...], depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        dim = theirs.dim
        self.weight = nn.Parameter(torch.cat([theirs.registers, theirs.columns.weight]).detach().clone())
        self.bias = nn.Parameter(theirs.columns.bias.detach().clone())
        self.tables = nn.ModuleList()
        for rows in theirs.columns.table.weight.detach().split(cards):
            self.tables.append(nn.Embedding.from_pretrained(rows.clone(), freeze=False))
        self.stack = Stack(dim, depth, heads, hidden)
        self.stack.take(theirs.blocks.blocks, theirs.head)
        self.codes = torch.zeros(1 + numbers + len(cards), dim)
        for place in range(len(self.codes)):
            for k in range(0, dim, 2):
                angle = place * math.exp(-k * math.log(100.0) / dim)
                self.codes[place, k : k + 2] = torch.tensor([math.sin(angle), math.cos(angle)])

    def forward(self, numbers: Tensor, categories: Tensor, index: Tensor | None = None) -> Tensor:
        ones = torch.ones(len(numbers), 1, dtype=numbers.dtype)
        tokens = torch.cat([ones, numbers], 1)[:, :, None] * self.weight
        named = [table(codes) for table, codes in zip(self.tables, categories.unbind(1), strict=True)]
        tokens = torch.cat([tokens, torch.stack(named, 1)], 1)
        tokens = tokens + torch.cat([torch.zeros_like(self.bias[:1]), self.bias]) + self.codes.to(tokens)
        return self.stack(tokens if index is None else pick(tokens, index))


class ReleasedPredictor(nn.Module):
    """As many position codes as columns; a context for every target, targets one behind the other in the batch."""

    def __init__(self, theirs, *, columns: int, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.inward, self.outward, self.norm = (copy.deepcopy(m) for m in (theirs.inward, theirs.outward, theirs.norm))
        self.query = nn.Parameter(theirs.query.detach().clone())
        self.stack = Stack(width, depth, heads, hidden)
        self.stack.take(theirs.blocks.blocks, theirs.head)
        angles = torch.arange(columns)[:, None] / 10_000.0 ** (torch.arange(width // 2) / (width / 2))
        self.codes = torch.cat([angles.sin(), angles.cos()], 1)

    def forward(self, context: Tensor, shown: Tensor, targets: list[Tensor]) -> Tensor:
        codes = self.codes.to(context).expand(len(context), -1, -1)
        context = self.inward(context) + pick(codes, shown)
        queries = torch.cat([self.query + pick(codes, target) for target in targets])
        x = torch.cat([context.repeat(len(targets), 1, 1), queries], 1)
        return self.outward(self.norm(self.stack(x))[:, context.shape[1] :])


def pick(tokens: Tensor, index: Tensor) -> Tensor:
    return torch.stack([row[at] for row, at in zip(tokens, index, strict=True)])


def test_ten_updates_give_the_losses_of_the_released_code():
    """Networks, masks, loss, gradients, AdamW, learning rate and moving average at once, without dropout."""
    numbers, cards, total, warmup, rate = 5, (4, 3), 12, 4, 3.658682841e-4
    sizes = {"depth": 2, "heads": 2, "hidden": 16}
    settings = ["encoder.dim=8", "encoder.depth=2", "encoder.hidden=16", f"steps={total}", f"schedule.warmup={warmup}"]
    settings += [f"objective.predictor.{k}={v}" for k, v in {"width": 4, "depth": 2, "num_heads": 2}.items()]
    settings += ["objective.predictor.hidden=16", "objective.context_share=[.2,.5]"]
    cfg, objective = parts(spec(numbers, cards), *settings)
    with torch.no_grad():  # released weights of 0.02 leave the attention blind; the comparison is to see it
        for parameter in objective.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=Generator().manual_seed(parameter.numel())))
        objective.target.module.load_state_dict(objective.encoder.state_dict())
    objective = objective.double()
    encoder = Released(objective.encoder, numbers=numbers, cards=cards, **sizes)
    target = copy.deepcopy(encoder)
    predictor = ReleasedPredictor(objective.predictor, columns=numbers + len(cards), width=4, **sizes)
    learner = build.build_learner(cfg, objective, CPU)
    theirs = [*encoder.parameters(), *predictor.parameters()]
    optimizer = torch.optim.AdamW(theirs, weight_decay=0.0)  # at its own rate of 1e-3 until a schedule sets another

    for step in range(10):
        generator = Generator().manual_seed(step)
        batch = spec(numbers, cards).expand(16, 1).zero()
        batch.batch_size = [16]
        obs = batch["observation"]
        obs["numerical"] = torch.rand(16, 1, numbers, generator=generator, dtype=torch.float64)
        codes = [torch.randint(n, (16, 1), generator=generator) for n in cards]
        obs["categorical"] = torch.stack(codes, -1)
        batch = objective.draw_masks(batch, generator)
        found = objective.loss(batch)["loss", "prediction"]
        learner.update(batch, step)

        row = (obs["numerical"][:, 0], obs["categorical"][:, 0])
        shown, asked = batch["context"], list(batch["targets"].unbind(1))
        with torch.no_grad():
            whole = target(*row)
            goal = torch.cat([pick(whole, index) for index in asked])
        loss = nn.MSELoss()(predictor(encoder(*row, shown), shown, asked), goal)
        torch.testing.assert_close(found.double(), loss.detach(), rtol=1e-5, atol=0)
        optimizer.zero_grad()
        loss.backward()
        for parameter in encoder.parameters():
            assert float(parameter.grad.abs().max()) < 1  # where the released code clamps each entry
        optimizer.step()
        momentum = 0.996 + step * (1 - 0.996) / total
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), encoder.parameters(), strict=True):
                slow.mul_(momentum).add_((1 - momentum) * fast)
        done = step + 1  # the rate of the next update
        share = done / warmup if done < warmup else 0.5 * (1 + math.cos(math.pi * (done - warmup) / (total - warmup)))
        optimizer.param_groups[0]["lr"] = rate * share
    torch.testing.assert_close(
        objective.target(batch["observation"][:, 0])["tokens"], target(*row), rtol=1e-4, atol=1e-5
    )


def test_sizes_rate_and_momentum_of_the_jannis_setting():
    cfg, objective = parts(spec(54))
    layer = build.num_parameters(objective.encoder.blocks.blocks[0])
    unused = layer  # the released encoder keeps the layer that its sixteen are copies of
    missing = 54 * 64  # vectors of missing numbers, which it has not
    assert build.num_parameters(objective.encoder) - missing + unused == 440_064
    unused = build.num_parameters(objective.predictor.blocks.blocks[0]) + 2 * 16  # and a LayerNorm
    assert build.num_parameters(objective.predictor) + unused == 166_016

    total = math.ceil(83_733 / 512) * 300
    assert cfg.steps == total
    schedule, tau = instantiate(cfg.schedule), instantiate(cfg.objective.target.tau)
    rates = [cfg.optim.lr * schedule(step) for step in (0, 1, 820, 1640, 25_420, total)]
    top = 0.0003658682841082736
    assert rates == pytest.approx([1e-3, top / 1640, top / 2, top, top / 2, 0], rel=1e-8, abs=1e-12)
    assert [1 - tau(step) for step in (0, 24_600, total)] == pytest.approx([0.996, 0.998, 1.0], abs=1e-12)


@pytest.mark.parametrize(
    ("columns", "shares", "context", "target"),
    [(54, [], (7, 20), (8, 34)), (10, [0.2, 0.8], (2, 8), (2, 8))],  # Jannis, where all pairs fit; where many do not
)
def test_numbers_of_columns_are_drawn_as_in_the_released_code(columns, shares, context, target):
    """It seeds a generator with the number of the batch and draws both numbers until they fit together."""
    _, objective = parts(spec(columns), *(f"objective.{k}_share={shares}" for k in ("context", "target") if shares))
    drawn = []
    for number in range(3000):
        generator = Generator().manual_seed(number)
        while True:
            draws = torch.rand(2, generator=generator).tolist()
            pair = [low + round(u * (high - low)) for u, (low, high) in zip(draws, (context, target), strict=True)]
            if sum(pair) <= columns:
                break
        drawn.append(pair)
    theirs = torch.tensor(drawn, dtype=torch.float64)
    generator = Generator().manual_seed(0)
    masks = [objective.subsets(1, generator) for _ in range(3000)]
    mine = torch.tensor([(m.context.shape[1], m.targets.shape[2]) for m in masks], dtype=torch.float64)
    assert torch.equal(mine.min(0).values, theirs.min(0).values)
    assert torch.equal(mine.max(0).values, theirs.max(0).values)
    error = ((mine.var(0) + theirs.var(0)) / 3000).sqrt()
    assert bool(((mine.mean(0) - theirs.mean(0)).abs() < 4 * error).all())
