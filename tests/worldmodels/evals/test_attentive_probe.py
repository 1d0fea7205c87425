"""Batched attentive probes: the plain probe's function, what they learn, who chooses, and that none knows of others."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from worldmodels.evals.attentive_probe import AttentiveProbe, Goals, Probes, normalized, rate_factor, respond
from worldmodels.evals.probes import fit_probe


class PlainProbe(nn.Module):
    """V-JEPA's probe of one label, written as in the paper: no folding, no batch of probes."""

    def __init__(self, dim: int, num_heads: int, num_outputs: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, dim))
        self.norm, self.norm_hidden = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.attention.out_proj.weight.data.copy_(torch.eye(dim))  # no output map
        self.hidden = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.head = nn.Linear(dim, num_outputs)
        for weight in self.parameters():
            if weight is not self.attention.out_proj.weight and weight is not self.attention.out_proj.bias:
                weight.data.copy_(0.3 * torch.randn_like(weight))

    def forward(self, tokens: Tensor) -> Tensor:
        seen, query = self.norm(tokens), self.query.expand(len(tokens), -1, -1)
        x = query + self.attention(query, seen, seen, need_weights=False)[0]
        x = x + self.hidden(self.norm_hidden(x))
        return self.head(x[:, 0])

    def folded(self) -> Probes:
        """The same function as weights of one probe of a batch."""
        dim, heads = self.query.shape[-1], self.attention.num_heads
        maps, shifts = self.attention.in_proj_weight.chunk(3), self.attention.in_proj_bias.chunk(3)
        query = (maps[0] @ self.query[0, 0] + shifts[0]).unflatten(0, (heads, -1))  # [H, d]
        keys, values = (weight.unflatten(0, (heads, -1)) for weight in maps[1:])  # [H, d, D]
        asked = torch.einsum("hd,hdi->hi", query, keys) / math.sqrt(dim // heads)
        weights = Probes(
            query=self.query[0, 0],
            asked=asked * self.norm.weight,
            value=(values * self.norm.weight).mT,
            value_shift=maps[2] @ self.norm.bias + shifts[2],
            norm_scale=self.norm_hidden.weight,
            norm_shift=self.norm_hidden.bias,
            inward=self.hidden[0].weight.T,
            inward_shift=self.hidden[0].bias,
            outward=self.hidden[2].weight.T,
            outward_shift=self.hidden[2].bias,
            head=self.head.weight.T,
            head_shift=self.head.bias,
        )
        return Probes(*(weight.detach() for weight in weights))


def test_a_batch_of_probes_is_the_plain_probe_with_each_ones_weights():
    plain = [PlainProbe(12, 3, 5) for _ in range(4)]
    tokens = 2 * torch.randn(7, 10, 12) + 1
    probes = Probes(*(torch.stack(weights) for weights in zip(*(probe.folded() for probe in plain), strict=True)))
    found = respond(probes, normalized(tokens))
    expected = torch.stack([probe(tokens) for probe in plain])
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-5)


def planted(num: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Tokens [N, 12, 16] of which one has a mark; beside it stand a class and a number, which another token undoes.

    The mean token says nothing of either.
    """
    generator = Generator().manual_seed(seed)
    tokens = 0.2 * torch.randn(num, 12, 16, generator=generator)
    label = torch.randint(0, 3, (num,), generator=generator)
    number = torch.randn(num, generator=generator)
    place = torch.rand(num, 12, generator=generator).argsort(1)[:, :2]
    rows, said = torch.arange(num), torch.cat([2 * F.one_hot(label, 3) - 1.0, number[:, None]], 1)
    tokens[rows, place[:, 0], 0] += 4
    tokens[rows, place[:, 0], 1:5] += said
    tokens[rows, place[:, 1], 1:5] -= said
    return tokens, {"number": 5 + 3 * number, "kind": label}


CLASSES = {"kind": 3, "number": 0}


def test_they_learn_what_the_mean_token_hides_and_validation_chooses_what_learns():
    parts = [planted(num, seed) for seed, num in enumerate((600, 200, 300))]
    tokens, labels = [normalized(part[0]).half() for part in parts], [part[1] for part in parts]
    probe = AttentiveProbe(lr=(1e-6, 2e-2), weight_decay=(0.01,), epochs=20, batch_size=50)
    fitted = probe(tokens[:2], labels[:2], CLASSES)
    found = fitted.predict(tokens[2])
    accuracy = (found["kind"] == labels[2]["kind"]).double().mean()
    residual = (found["number"] - labels[2]["number"]).var() / labels[2]["number"].var()
    assert accuracy > 0.9
    assert residual < 0.5
    assert fitted.lr == {"kind": 2e-2, "number": 2e-2}
    assert fitted.score["kind"] == pytest.approx(float(accuracy), abs=0.1)
    means = [part[0].mean(1) for part in parts]
    linear = fit_probe(means[:2], [part["kind"] for part in labels[:2]], num_classes=3, penalties=(1e-4, 1e-2, 1.0))
    assert (linear(means[2]).argmax(1) == labels[2]["kind"]).double().mean() < 0.5


def test_a_probe_is_the_same_whoever_trains_beside_it(float64):
    tokens, labels = planted(60, 0)
    tokens = normalized(tokens)

    def answers(lr: tuple[float, ...], *names: str) -> Tensor:
        """Of the last probe: the last label with the last rate."""
        goals = Goals(labels, {name: CLASSES[name] for name in names}, tokens.device)
        probe = AttentiveProbe(lr=lr, weight_decay=(0.1,), epochs=2, batch_size=16, num_heads=4)
        return respond(probe.train(tokens, goals.of(labels), goals), tokens)[-1, :, 0]

    alone = answers((1e-3,), "number")
    torch.testing.assert_close(answers((1e-3,), "kind", "number"), alone)
    torch.testing.assert_close(answers((1e-9, 1e-3), "kind", "number"), alone)
    assert alone.std() > 1e-3


def test_training_is_deterministic_and_touches_no_global_randomness():
    tokens, labels = planted(40, 0)
    before, found = torch.get_rng_state(), []
    for _ in range(2):
        fitted = AttentiveProbe(epochs=1, batch_size=16)((tokens, tokens), (labels, labels), CLASSES)
        found.append(fitted.predict(tokens)["number"])
        torch.rand(3)
    assert torch.equal(*found)
    torch.set_rng_state(before)


def test_losses_are_of_rows_that_have_the_label():
    labels = {"kind": torch.tensor([0, -1, 1]), "number": torch.tensor([math.nan, 1.0, 3.0])}
    goals = Goals(labels, {"kind": 2, "number": 0}, torch.device("cpu"))
    outputs = torch.randn(1, 2, 3, 2)  # [S, L, B, C]
    target = goals.of(labels)
    wrong = F.cross_entropy(outputs[0, 0][[0, 2]], torch.tensor([0, 1]))
    off = (outputs[0, 1, 1:, 0] - torch.tensor([-1.0, 1.0])).square().mean()  # mean 2, deviation 1
    torch.testing.assert_close(goals.loss(outputs, target), wrong + off)
    values = goals.values(outputs.flatten(0, 1))
    assert values[0].tolist() == outputs[0, 0].argmax(1).tolist()
    scores = goals.scores(torch.tensor([[[0.0, 5.0, 0.0], [9.0, -1.0, 1.0]]]), target)
    assert scores.tolist() == [[0.5, 1.0]]
    assert goals.in_unit(torch.tensor([-1.0, 1.0]), 1).tolist() == [1.0, 3.0]


def test_the_rate_rises_and_falls():
    factors = [rate_factor(i, 100) for i in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[10] == 1
    assert factors[-1] < 0.001
    assert all(0 < factor <= 1 for factor in factors)


def test_bad_settings_and_tokens_are_named():
    with pytest.raises(ValueError, match="epochs=0"):
        AttentiveProbe(epochs=0)
    with pytest.raises(ValueError, match=r"lr=\[\]"):
        AttentiveProbe(lr=())
    tokens, labels = planted(20, 0)
    with pytest.raises(ValueError, match="diverged"):
        AttentiveProbe(epochs=1)((tokens * math.nan, tokens * math.nan), (labels, labels), CLASSES)
