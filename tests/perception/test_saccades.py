"""Fixations and patches around them."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import Generator
from torchrl.data import Bounded, Composite

from perception.saccades import Saccades, saliency


def spec_of(size: int = 48) -> Composite:
    return Composite({"observation": Composite({"pixels": Bounded(0, 255, (3, size, size), dtype=torch.uint8)})})


def batch_of(num: int, size: int = 48) -> TensorDict:
    pixels = torch.randint(0, 256, (num, 1, 3, size, size), dtype=torch.uint8)
    return TensorDict({"observation": {"pixels": pixels}}).auto_batch_size_(1)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def test_patches_are_cut_around_the_fixations_with_black_beyond_the_picture():
    views, batch = Saccades(spec_of(), num_views=5, patch=16), batch_of(8)
    made = views(batch, seeded())
    assert views.spec.expand(8, 5).is_in(made)
    fixations = (made["transformation"] * 48).round().int()
    for index in range(8):
        picture = torch.zeros(3, 80, 80, dtype=torch.uint8)
        picture[:, 16:64, 16:64] = batch["observation", "pixels"][index, 0]
        for view, (row, column) in enumerate(fixations[index].tolist()):
            expected = picture[:, row + 8 : row + 24, column + 8 : column + 24]
            assert torch.equal(made["observation", "pixels"][index, view], expected)
    torch.testing.assert_close(made["action"][:, :-1], made["transformation"].diff(dim=1))
    assert (made["action"][:, -1] == 0).all()
    assert (made == views(batch, seeded())).all()


@pytest.mark.parametrize("has_saliency", [False, True])
def test_inhibited_places_are_not_looked_at_again(has_saliency):
    pictures = batch_of(64)["observation", "pixels"][:, 0]
    views = Saccades(spec_of(), num_views=4, patch=16, has_saliency=has_saliency)
    distance = torch.cdist(*[views.fixate(pictures, seeded()).float()] * 2, p=float("inf"))  # [B, V, V]
    assert distance[:, ~torch.eye(4, dtype=torch.bool)].min() > 8
    free = Saccades(spec_of(), num_views=4, patch=16, has_saliency=has_saliency, has_inhibition=False)
    distance = torch.cdist(*[free.fixate(pictures, seeded()).float()] * 2, p=float("inf"))
    assert distance[:, ~torch.eye(4, dtype=torch.bool)].min() <= 8


def test_salient_places_attract():
    picture = torch.full((1, 3, 48, 48), 100, dtype=torch.uint8)
    flat = saliency(picture)[0]
    assert float(flat.sum()) == pytest.approx(1, abs=1e-4)
    assert flat.argmax() in (23 * 48 + 23, 23 * 48 + 24, 24 * 48 + 23, 24 * 48 + 24)  # the centre
    picture[..., 8:16, 30:40] = torch.randint(0, 256, (8, 10), dtype=torch.uint8)
    chance = saliency(picture)
    assert chance.shape == (1, 48, 48)
    assert float(chance[0, 5:19, 27:43].sum()) > 0.95
    views = Saccades(spec_of(), num_views=1, patch=16)
    row, column = views.fixate(picture.expand(200, -1, -1, -1), seeded())[:, 0].unbind(-1)
    assert ((row >= 5) & (row < 19) & (column >= 27) & (column < 43)).float().mean() > 0.9
    uniform = Saccades(spec_of(), num_views=1, patch=16, has_saliency=False)
    found = uniform.fixate(picture.expand(2000, -1, -1, -1), seeded())[:, 0].float()
    torch.testing.assert_close(found.mean(0), torch.full((2,), 23.5), rtol=0, atol=1.5)


def test_fixations_go_on_where_everything_is_inhibited():
    """A patch that covers the picture leaves nothing to look at: the floor makes all pixels alike."""
    views = Saccades(spec_of(8), num_views=6, patch=8)
    found = views.fixate(batch_of(4, 8)["observation", "pixels"][:, 0], seeded())
    assert found.shape == (4, 6, 2)
    assert ((found >= 0) & (found < 8)).all()


@pytest.mark.parametrize("patch", [0, 49])
def test_patches_larger_than_the_pictures_are_refused(patch):
    with pytest.raises(ValueError, match=rf"views.patch={patch}.*48 x 48"):
        Saccades(spec_of(), num_views=3, patch=patch)
