"""How one dimension of a weight is shared among the ranks of a stage."""

from __future__ import annotations

from dataclasses import dataclass

from ..model.errors import LoadError


@dataclass(frozen=True)
class Piece:
    """Items `start` to `stop` of the whole, then `zeros` more that it does not have."""

    start: int
    stop: int
    zeros: int = 0


@dataclass(frozen=True)
class Cut:
    """A dimension that is `parts` equal ones side by side (q, k, v in one product), each of units
    that stay whole (the columns of a head).

    Units that do not divide are made up with units of zeros, which change no sum. Where there are
    fewer units than ranks and `shared`, several ranks have the same one (key-value heads).

        parts 2, unit 2, 3 units, 2 ranks:   aa bb cc  AA BB CC
            rank 0   aa bb  AA BB
            rank 1   cc 00  CC 00
    """

    parts: int = 1
    unit: int = 1
    shared: bool = False

    def pieces(self, total: int, rank: int, size: int) -> list[Piece]:
        """The rank's share of `total` items.

        Raises:
            LoadError: they are no whole number of units.
        """
        width, rest = divmod(total, self.parts)
        units, more = divmod(width, self.unit)
        if rest or more:
            raise LoadError(f"{total} is not {self.parts} times a multiple of {self.unit}")
        mine = self._units(units, rank, size)
        first, last = (min(bound, units) * self.unit for bound in (mine.start, mine.stop))
        zeros = len(mine) * self.unit - (last - first)
        return [
            Piece(first + part * width, last + part * width, zeros) for part in range(self.parts)
        ]

    def share(self, total: int, size: int) -> int:
        """How many of `total` items each rank has, with its zeros."""
        return sum(each.stop - each.start + each.zeros for each in self.pieces(total, 0, size))

    def _units(self, units: int, rank: int, size: int) -> range:
        if self.shared and units < size and size % units == 0:
            place = rank * units // size
            return range(place, place + 1)
        each = -(-units // size)
        return range(rank * each, (rank + 1) * each)


EVEN = Cut()


def uneven(total: int, rank: int, size: int) -> Piece:
    """The rank's share of `total` items without zeros: the sizes differ by one at most."""
    return Piece(total * rank // size, total * (rank + 1) // size)
