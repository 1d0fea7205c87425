"""Critical times computed independently of this code, to the digits that were printed, at half of the fixed point."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Table(NamedTuple):
    """One panel at one depth; features have the names of conf/env/linear_features.yaml."""

    panel: str
    depth: int
    scale: float
    jepa: str
    mae: str
    is_descent: bool = False  # updates x step size; else the clock of the paper, which is depth times as long

    def __str__(self) -> str:
        return f"{self.panel}-depth{self.depth}"

    @property
    def lam(self) -> np.ndarray:
        return np.array(FEATURES[self.panel][0])

    @property
    def rho(self) -> np.ndarray:
        return np.array(FEATURES[self.panel][1])

    def times(self, loss: str) -> tuple[np.ndarray, np.ndarray]:
        """Times and how far they may be off for rounding, in updates x step size."""
        words = getattr(self, loss).split()
        unit = 1 if self.is_descent else self.depth
        half = [0.5 * 10.0 ** -len(word.partition(".")[2]) for word in words]
        return np.array([float(word) for word in words]) / unit, np.array(half) / unit

    def order(self, loss: str) -> str:
        return " ".join(str(i) for i in np.argsort(self.times(loss)[0], kind="stable"))


FEATURES = {  # lambda, rho
    "lambda": ([0.4, 0.6, 0.8, 1.0], [1.0] * 4),
    "rho": ([1.0] * 4, [0.5, 0.65, 0.8, 1.0]),
    "conflict": ([1.0, 0.85, 0.7, 0.6], [0.5, 0.65, 0.85, 1.1]),
    "fast": ([0.95**i for i in range(4)], [0.5 * 1.25**i for i in range(4)]),
    "mid": ([0.95**i for i in range(4)], [0.6 * 1.15**i for i in range(4)]),
    "deep": ([0.9**i for i in range(4)], [0.5 * 1.25**i for i in range(4)]),
}
TABLES = [
    Table("lambda", 1, 0.05, "52.36 34.91 26.18 20.94", "6.113 4.075 3.056 2.445"),
    Table("rho", 1, 0.05, "20.39 20.75 20.89 20.94", "2.097 2.229 2.333 2.445"),
    Table("lambda", 2, 0.2, "290.39 193.59 145.19 116.15", "19.31 12.87 9.654 7.723"),
    Table("rho", 2, 0.2, "140.21 133.34 124.83 116.15", "7.102 7.356 7.541 7.723"),
    Table("lambda", 5, 0.4, "9753 6502 4876.5 3901.2", "121.07 80.71 60.53 48.43"),
    Table("rho", 5, 0.4, "6752.5 6601.5 4922.6 3901.2", "48.03 48.21 48.33 48.43"),
    Table("conflict", 1, 0.1, "8.77 11.23 14.31 17.13", "1.397 1.800 2.380 2.994"),
    Table("conflict", 2, 0.2, "140.21 156.87 174.80 188.11", "7.102 8.654 10.845 12.995"),
    Table("conflict", 3, 0.3, "581.42 622.96 628.10 629.94", "14.60 17.51 21.62 25.56"),
    Table("conflict", 4, 0.35, "2681.0 2683.8 2473.3 2379.3", "29.70 35.23 43.07 50.52"),
    Table("fast", 3, 0.25, "461.7 418.3 379.7 354.5", "7.34 7.81 8.29 8.79", is_descent=True),
    Table("mid", 4, 0.35, "620.6 562.2 511.5 475.2", "7.47 7.89 8.34 8.81", is_descent=True),
    Table("deep", 5, 0.35, "5175.8 4242.0 3565.2 3269.6", "16.54 18.40 20.47 22.77", is_descent=True),
]
# depth, eps = scale^depth, t*(rho = 0.5) / t*(rho = 1) at lambda = 1: JEPA, its first order in eps^(1/depth), MAE
RATIOS = [
    (1, 1e-3, "1.004", None, "0.945"),
    (2, 1e-3, "1.054", "1.047", "0.990"),
    (3, 1e-3, "1.173", "1.125", "0.996"),
    (5, 1e-3, "1.671", "1.283", "0.999"),
    (8, 1e-3, "3.142", "1.452", "1.001"),
    (3, 1e-6, "1.013", "1.013", "1.000"),
    (8, 1e-6, "1.310", "1.191", "1.000"),
]
# (lambda, rho) of two features, eps, smallest depth at which JEPA learns the second first
INVERSION_DEPTHS = [
    *(((1.0, 0.7), (0.8, 1.0), eps, depth) for eps, depth in ((1e-2, 4), (1e-3, 6), (1e-4, 8), (1e-6, 12))),
    *(((1.0, 0.6), (0.6, 1.4), eps, depth) for eps, depth in ((1e-2, 4), (1e-3, 6), (1e-4, 8), (1e-6, 12))),
    *(((2.0, 0.4), (1.0, 0.8), eps, depth) for eps, depth in ((1e-3, 5), (1e-4, 7), (1e-6, 10))),
    *(((1.0, 0.5), (0.5, 1.0), eps, depth) for eps, depth in ((1e-3, 6), (1e-4, 8), (1e-6, 13))),
]
