"""Picture of a lambda/rho spectrum: where each feature lies and when it is learned, and both values by feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from worldmodels.evals.pictures import new_figure, png
from worldmodels.evals.spectrum import Spectrum

_BLUE, _GOLD, _GREY = "#1f4e9c", "#d98e04", "#9aa3ae"


def picture(
    title: str, spectrum: Spectrum, order: Mapping[str, list[int | None]], chance: float, shown: Sequence[int]
) -> bytes:
    """PNG: left rho over lambda, the predicted places under JEPA and MAE beside each of ``shown``; right the spectrum.

    Args:
        title: of the input; spectrum: its features; order: places by loss, None for never; chance: rho that noise has.
    """
    lam, rho = spectrum.lam.cpu().numpy(), spectrum.rho.cpu().numpy()
    lam = lam / (lam[0] if lam[0] > 0 else max(float(np.abs(lam).max()), 1e-300))  # falling
    figure = new_figure(9.0, 3.6)
    left, right = figure.subplots(1, 2)

    learned = np.array([place is not None for place in order["jepa"]])
    left.axhspan(-chance, chance, color=_GREY, alpha=0.2, linewidth=0, label="no better than chance")
    left.plot(lam[learned], rho[learned], "o", color=_BLUE, markersize=5, label="learned by JEPA")
    left.plot(
        lam[~learned], rho[~learned], "o", color=_BLUE, markersize=5, fillstyle="none", label="never learned by JEPA"
    )
    for i in shown:
        jepa, mae = (f"{order[loss][i] or '–'}" for loss in ("jepa", "mae"))
        offset = {"xy": (lam[i], rho[i]), "textcoords": "offset points", "fontsize": 8, "fontweight": "bold"}
        left.annotate(jepa, xytext=(-4, 6), color=_BLUE, ha="right", **offset)
        left.annotate(mae, xytext=(4, 6), color=_GOLD, ha="left", **offset)
    left.set_xscale("symlog", linthresh=1e-2)
    left.margins(0.12)
    left.set_xlabel("lambda, covariance between the views (largest = 1)", fontsize=8)
    left.set_ylabel("rho, influence", fontsize=8)
    left.set_title(f"{title}: predicted place under JEPA (blue) and MAE (gold)", fontsize=9)
    left.legend(fontsize=7, frameon=False)

    number = np.arange(1, len(lam) + 1)
    right.axhline(0, color=_GREY, linewidth=0.7)
    right.plot(number, lam, ".-", color=_GREY, label="lambda (largest = 1)")
    right.plot(number, rho, ".", color=_BLUE, label="rho")
    right.set_xlabel("feature, by falling lambda", fontsize=8)
    right.set_title("spectrum", fontsize=9)
    right.legend(fontsize=7, frameon=False)
    for axes in (left, right):
        axes.tick_params(labelsize=7)
    return png(figure)
