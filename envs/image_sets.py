"""Named sets of pictures that packages bring along: they need no network.

Needs scikit-image and scikit-learn: pip install 'worldmodels[images]'.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from envs.image_layouts import Pictures
from worldmodels.spelling import did_you_mean

# Of skimage.data; what was drawn by a program or shows text is left out. Their licences: skimage/data/README.txt.
PHOTOGRAPHS = (
    "astronaut brick camera cell chelsea clock coffee coins grass gravel hubble_deep_field immunohistochemistry moon "
    "retina rocket stereo_motorcycle"
).split()
_MOST = {"train": 512, "val": 128, "test": 128}  # patches of a photograph, so that no large one outnumbers the others
_SHRINK = 2  # a patch at full size shows little but a surface
_FLAT = 6.0  # mean standard deviation of a channel, in bytes; patches below show nothing


def photographs(size: int | None, *, val_share: float, test_share: float, seed: int) -> Pictures:
    """Patches of 16 photographs; the class is the photograph.

    Each is shrunk by two where it then still has three patches along its longer side, and cut across that side into
    three strips, for train, val and test, at least one patch wide. Patches start every quarter of a patch within a
    strip, so no pixel is in two parts. Flat ones are left out, and a random choice is kept of those of large
    photographs. Photographs that have no patch in some part are left out.

    Raises:
        ValueError: without a size, or if less than two photographs are large enough.
    """
    try:
        import skimage.data
    except ImportError as error:
        raise ImportError("env.dataset=photographs needs scikit-image: pip install 'worldmodels[images]'") from error
    if size is None:
        raise ValueError("env.dataset=photographs is cut into patches: give env.size=")
    random = np.random.default_rng(seed)
    arrays, parts, labels, classes = [], [], [], []
    for name in PHOTOGRAPHS:
        picture = getattr(skimage.data, name)()
        picture = picture[0] if isinstance(picture, tuple) else picture  # the left one of a stereo pair
        picture = np.stack([picture] * 3) if picture.ndim == 2 else picture.transpose(2, 0, 1)  # [3, H, W]
        strips = _strips(shrunk(picture), size, val_share, test_share) or _strips(picture, size, val_share, test_share)
        for part, patches in strips.items():
            chosen = np.sort(random.permutation(len(patches))[: _MOST[part]])
            arrays.append(patches[chosen])
            parts += [part] * len(chosen)
            labels += [len(classes)] * len(chosen)
            if part == "test":
                classes.append(name)
    if len(classes) < 2:
        raise ValueError(f"env.size={size}: the photographs are too small for patches of that size; give env.path=")
    left_out = [name for name in PHOTOGRAPHS if name not in classes]
    notes = (f"left out, a part would have no patch of {size} pixels: {', '.join(left_out)}",) if left_out else ()
    return Pictures("photographs", parts, np.asarray(labels), tuple(classes), arrays=tuple(arrays), notes=notes)


def shrunk(picture: np.ndarray) -> np.ndarray:
    """Squares of pixels of a picture [3, H, W] averaged, rounded to bytes."""
    height, width = (side // _SHRINK for side in picture.shape[1:])
    squares = picture[:, : height * _SHRINK, : width * _SHRINK].reshape(3, height, _SHRINK, width, _SHRINK)
    return np.rint(squares.mean((2, 4), dtype=np.float32)).astype(np.uint8)


def _strips(picture: np.ndarray, size: int, val_share: float, test_share: float) -> dict[str, np.ndarray]:
    """Patches uint8 [n, 3, S, S] of each part of a picture [3, H, W]; no part of a picture where one would be empty."""
    is_tall = picture.shape[1] > picture.shape[2]
    wide = picture.swapaxes(1, 2) if is_tall else picture
    length = wide.shape[2]
    val, test = (max(size, round(share * length)) for share in (val_share, test_share))
    if wide.shape[1] < size or length - val - test < size:
        return {}
    ends = {
        "train": (0, length - val - test),
        "val": (length - val - test, length - test),
        "test": (length - test, length),
    }
    step = max(1, size // 4)
    found = {}
    for part, (first, last) in ends.items():
        windows = np.lib.stride_tricks.sliding_window_view(wide[:, :, first:last], (size, size), (1, 2))
        patches = windows[:, ::step, ::step].reshape(3, -1, size, size).swapaxes(0, 1)  # [n, 3, S, S]
        patches = patches[patches.std((2, 3), dtype=np.float32).mean(1) >= _FLAT]
        found[part] = patches.swapaxes(2, 3) if is_tall else patches
    return found if all(map(len, found.values())) else {}


def digits(size: int | None, *, val_share: float, test_share: float, seed: int) -> Pictures:
    """scikit-learn's 1797 hand-written digits of 8 x 8 pixels, in grey; parts are drawn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("env.dataset=digits needs scikit-learn: pip install 'worldmodels[images]'") from error
    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # 17 levels
    pictures = np.repeat(grey[:, None], 3, 1)  # [N, 3, 8, 8]
    labels = bunch.target.astype(np.int64)
    return Pictures("digits", [""] * len(labels), labels, tuple("0123456789"), arrays=(pictures,))


NAMED: dict[str, Callable[..., Pictures]] = {"photographs": photographs, "digits": digits}


def named_pictures(name: str, size: int | None, *, val_share: float, test_share: float, seed: int) -> Pictures:
    """The pictures of a named set; a ValueError if there is no such name."""
    if name not in NAMED:
        hint = did_you_mean(name, NAMED) or "."
        raise ValueError(f"env.dataset={name}: no such pictures{hint} There are {', '.join(NAMED)}; your own: env.path")
    return NAMED[name](size, val_share=val_share, test_share=test_share, seed=seed)
