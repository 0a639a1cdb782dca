"""Symmetric systems over the rationals: what is solved here is rounded once, by whoever takes the answer.

However close to singular a covariance is, and however large means are against spreads, its factors are exact; a
covariance that is singular is known to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

Vector = tuple[Fraction, ...]
Matrix = tuple[Vector, ...]


class SingularError(ValueError):
    """A matrix is not positive definite: ``at`` is the first row that depends on those before it."""

    def __init__(self, at: int) -> None:
        super().__init__(f"row {at} of the matrix depends on those before it")
        self.at = at


@dataclass(frozen=True, slots=True)
class Factor:
    """M S Mᵀ = D of a positive definite S: M lower triangular with ones on its diagonal, D diagonal."""

    rows: Matrix  # row i of M has i + 1 numbers
    pivots: Vector  # of D

    @classmethod
    def of(cls, matrix: Sequence[Sequence[Fraction]]) -> Factor:
        """Factor a symmetric matrix.

        Bareiss' elimination of (S | 1): integers alone, each a minor of (S | 1), so none grows beyond what it must.

        Raises
        ------
        SingularError
            The matrix is not positive definite.

        Examples
        --------
        >>> factor = Factor.of([[Fraction(4), Fraction(2)], [Fraction(2), Fraction(3)]])
        >>> factor.pivots
        (Fraction(4, 1), Fraction(2, 1))
        >>> [[str(x) for x in row] for row in factor.rows]
        [['1'], ['-1/2', '1']]
        """
        scale = lcm(*(x.denominator for row in matrix for x in row))
        # Of S what is right of the diagonal, of what began as 1 what is left of it: the rest follows, or is 0.
        upper = [[x.numerator * (scale // x.denominator) for x in row[i:]] for i, row in enumerate(matrix)]
        lower: list[list[int]] = [[] for _ in matrix]
        rows, pivots, before = [], [], 1
        for k, (mine, done) in enumerate(zip(upper, lower, strict=True)):
            pivot = mine[0]
            if pivot <= 0:
                raise SingularError(k)
            done.append(before)
            rows.append(tuple(Fraction(x, before) for x in done))
            pivots.append(Fraction(pivot, before * scale))
            for i in range(k + 1, len(matrix)):
                lead = mine[i - k]
                upper[i] = [(pivot * x - lead * y) // before for x, y in zip(upper[i], mine[i - k :], strict=True)]
                lower[i] = [(pivot * x - lead * y) // before for x, y in zip([*lower[i], 0], done, strict=True)]
            before = pivot
        return cls(tuple(rows), tuple(pivots))

    def apply(self, vector: Sequence[Fraction]) -> Vector:
        """M v."""
        return tuple(dot(row, vector) for row in self.rows)

    def solve(self, vector: Sequence[Fraction]) -> Vector:
        """The x with S x = v: Mᵀ D⁻¹ M v."""
        scaled = [x / pivot for x, pivot in zip(self.apply(vector), self.pivots, strict=True)]
        return tuple(
            sum((self.rows[i][j] * scaled[i] for i in range(j, len(scaled))), Fraction()) for j in range(len(scaled))
        )


def dot(one: Sequence[Fraction], other: Sequence[Fraction]) -> Fraction:
    """Σ aᵢ bᵢ over the shorter of the two."""
    return sum((a * b for a, b in zip(one, other, strict=False)), Fraction())
