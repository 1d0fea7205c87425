"""Random subsets of tokens that have no neighbours, such as the columns of a table."""

from __future__ import annotations

import torch
from torch import Generator

from worldmodels.masking.padding import Subsets, first


class RandomSubsets:
    """Draws for each row a context and several targets that share no token with it.

    The sizes K and K' are one draw for the whole batch: least + round((most - least) u), u uniform on (0, 1), of those
    pairs that fit together into a row. The targets of a row are drawn independently from what its context leaves.

    Args:
        num_tokens: N.
        context, target: least and greatest size.
        num_targets: M.
        is_one_target: whether all targets of a row are the same one.

    Raises:
        ValueError: if not even the least sizes fit.

    Source: T-JEPA (arXiv 2410.05016), masks. In its released code ``is_one_target`` holds, by accident.
    """

    def __init__(
        self,
        num_tokens: int,
        *,
        context: tuple[int, int],
        target: tuple[int, int],
        num_targets: int,
        is_one_target: bool = False,
    ) -> None:
        if context[0] + target[0] > num_tokens:
            raise ValueError(
                f"{num_tokens} columns cannot leave {context[0]} for the context and {target[0]} for a target: "
                "lower the least shares"
            )
        self.num_tokens, self.num_targets, self.is_one_target = num_tokens, num_targets, is_one_target
        chances = {
            (k, asked): p * q
            for k, p in rounded_uniform(*context).items()
            for asked, q in rounded_uniform(*target).items()
            if k + asked <= num_tokens
        }
        self.most = tuple(max(sizes) for sizes in zip(*chances, strict=True))
        self._pairs = torch.tensor(list(chances))  # [P, 2]
        self._chances = torch.tensor(list(chances.values()), dtype=torch.float64).cumsum(0)  # [P]

    def __call__(self, batch_size: int, generator: Generator) -> Subsets:
        """Draw for ``batch_size`` rows, on the device of ``generator``."""
        device, num, repeats = generator.device, self.num_tokens, 1 if self.is_one_target else self.num_targets
        self._pairs, self._chances = self._pairs.to(device), self._chances.to(device)
        uniform = torch.rand((1,), generator=generator, device=device, dtype=torch.float64) * self._chances[-1]
        size, asked_size = self._pairs[torch.searchsorted(self._chances, uniform)[0]].unbind()

        order = torch.rand((batch_size, num), generator=generator, device=device).argsort(1)  # [B, N]
        is_shown = torch.arange(num, device=device) < size
        # Independent orders of what is left: tokens of the context are sorted behind all others.
        rank = torch.rand((batch_size, repeats, num), generator=generator, device=device)
        behind = torch.zeros_like(rank[:, 0]).scatter_(1, order, is_shown.expand(batch_size, -1).to(rank.dtype))
        asked = (rank + behind[:, None]).argsort(2).expand(-1, self.num_targets, -1)  # [B, M, N]
        return Subsets(first(order, size, self.most[0]), first(asked, asked_size, self.most[1]))


def rounded_uniform(least: int, most: int) -> dict[int, float]:
    """Chance of each value of least + round((most - least) u), u uniform on (0, 1): half as great at both ends."""
    if least == most:
        return {least: 1.0}
    inner = 1 / (most - least)
    return {k: inner / 2 if k in (least, most) else inner for k in range(least, most + 1)}
