"""Where the numbers of one Winograd kernel lie, and in which blocks they are worked on.

With frequencies f < points^2, tiles t, input channels c and output channels k:

    U  filters    [k / columns][f][c][columns]                 made once, by `winograd.prepare`
    V  tiles      [f][t / rows][c / width][rows][width]        written by the input transform
    M  products   [f][k / columns][t][columns]                 written by the product, one block at a time

The product reads U and V from first to last, `rows` tiles by `columns` output channels in registers.
"""

from __future__ import annotations

from dataclasses import dataclass

LINE = 16  # numbers in a cache line; frequencies lie an odd number of lines apart, so that none shares a set


@dataclass(frozen=True)
class Layout:
    """Sizes that the machine code has built in. All lengths are in float32 numbers.

    Attributes:
        tile: m, pixels of output along one side of a tile.
        points: m + r - 1, frequencies along one side.
        inputs, outputs: channels as the tensors have them.
        width: lanes of a vector.
        rows: tiles in registers at once.
        columns: output channels in registers at once.
        block: tiles that are transformed before their products begin, a multiple of `rows`.
        group: tiles whose products are kept at once, a multiple of `rows`.
        chunk: output channels whose products are kept at once, a multiple of `columns`.
        shared: whether one block is worked on by all threads, with barriers; otherwise each has its own.
    """

    tile: int
    points: int
    inputs: int
    outputs: int
    width: int
    rows: int
    columns: int
    block: int
    group: int
    chunk: int
    shared: bool

    @property
    def frequencies(self) -> int:
        """Numbers that a tile of one channel becomes."""
        return self.points**2

    @property
    def deep(self) -> int:
        """Input channels, rounded up to whole vectors."""
        return -(-self.inputs // self.width) * self.width

    @property
    def wide(self) -> int:
        """Output channels, rounded up to whole columns."""
        return -(-self.outputs // self.columns) * self.columns

    @property
    def v_frequency(self) -> int:
        """From one frequency of V to the next."""
        return self.block * self.deep + _odd(self.block * self.deep)

    @property
    def m_columns(self) -> int:
        """From one set of columns of M to the next."""
        return self.group * self.columns

    @property
    def m_frequency(self) -> int:
        """From one frequency of M to the next."""
        size = self.group * self.chunk
        return size + _odd(size)

    @property
    def u_size(self) -> int:
        """Numbers in all transformed filters."""
        return self.frequencies * self.deep * self.wide

    @property
    def v_size(self) -> int:
        """Numbers in the transformed tiles of one block."""
        return self.frequencies * self.v_frequency

    @property
    def m_size(self) -> int:
        """Numbers in the products of one group and chunk."""
        return self.frequencies * self.m_frequency

    def workspace(self, threads: int) -> int:
        """Numbers of scratch for a team: M and dump of each thread, then V of each, or one that is shared."""
        return self.v_size * (1 if self.shared else threads) + (self.m_size + self.dump) * threads

    @property
    def dump(self) -> int:
        """Room of a thread for pixels that lie outside the image."""
        return -(-self.chunk // LINE) * LINE

    @property
    def zeros(self) -> int:
        """Zeros read in place of pixels outside the image."""
        return -(-self.deep // LINE) * LINE


def _odd(size: int) -> int:
    """What to add to make it an odd number of lines."""
    lines = -(-size // LINE)
    return (lines + (lines % 2 == 0)) * LINE - size
