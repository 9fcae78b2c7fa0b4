"""Blocks for one convolution on one machine: what stays in registers, in the second cache, in the third.

Threads work alone where there are tiles enough: each takes a small block, about as many tiles as fit the
registers, transforms it, and streams all filters past it once. V and M of so few tiles stay in a core's own
cache, the filters come from the shared one, nobody waits, and the last blocks even out. (Larger blocks read the
filters less often, and lost in every measurement: 4 % at 28 tiles, 5 to 10 % at 100.)

Few tiles are shared: all threads transform them together, then divide the output channels among themselves, so
that each filter is read by one thread, once.
"""

from __future__ import annotations

from convscope.algorithms.kernels.host import Host
from convscope.algorithms.kernels.winograd_layout import Layout

ALONE = 24  # tiles for each thread, from which it works alone
BLOCK = 16  # tiles of a block worked on alone, at most, or those of one panel
CHUNK = 64  # output channels whose products are kept at once by a thread alone


def choose(tile: int, taps: int, inputs: int, outputs: int, tiles: int, host: Host, threads: int) -> Layout:
    """The layout for a convolution.

    Args:
        tile: m, pixels of output along one side of a tile.
        taps: r, along one side of the filter.
        inputs, outputs: channels.
        tiles: in the whole batch.
        host: the machine.
        threads: of the team.
    """
    width, tiles, points = host.width, max(1, tiles), tile + taps - 1
    shared = tiles < ALONE * threads
    vectors = 2 if outputs > width else 1
    if shared and _most(2, host) < tiles <= _most(1, host):
        vectors = 1  # all tiles in one panel: each filter is read from afar once, evenly over time
    columns, most = vectors * width, _most(vectors, host)
    if shared:
        rows = rows_for(tiles, most)
        block = rows * -(-min(tiles, _shared_tiles(points, inputs, host)) // rows)
        chunk = columns if outputs <= 2 * width * threads else 2 * width
        group = min(block, rows * max(1, host.l2 // 2 // (points**2 * chunk * 4) // rows))
    else:
        rows, panels = block_for(tiles, min(most, BLOCK), threads)
        block = group = rows * panels
        chunk = min(CHUNK, -(-outputs // columns) * columns)
    return Layout(
        tile=tile,
        points=points,
        inputs=inputs,
        outputs=outputs,
        width=width,
        rows=rows,
        columns=columns,
        block=block,
        group=group,
        chunk=chunk,
        shared=shared,
    )


def _most(vectors: int, host: Host) -> int:
    """Rows whose sums fit the registers, beside a row of filters and one number."""
    return (host.registers - 1 - vectors) // vectors


def rows_for(tiles: int, most: int) -> int:
    """Tiles in registers at once: many, so that filters are read seldom, yet few places of the last panel empty.

    Example:
        >>> rows_for(49, 14), rows_for(196, 14), rows_for(3, 14)
        (10, 14, 3)
    """
    return min(range(1, most + 1), key=lambda rows: -(-tiles // rows) * (rows + 2))


def block_for(tiles: int, most: int, threads: int) -> tuple[int, int]:
    """Rows and panels of a block worked on alone: the busiest thread is to finish first.

    A panel costs its rows, and two more for reading the filters into registers; a block three more, for
    bringing them from the shared cache.

    Example:
        >>> block_for(196, 14, 2), block_for(49, 14, 2), block_for(196, 6, 2)
        ((14, 1), (13, 1), (5, 3))
    """
    sizes = [
        (rows, panels)
        for rows in range(max(1, most // 2), most + 1)
        for panels in range(1, max(1, BLOCK // rows) + 1)
    ]

    def slowest(size: tuple[int, int]) -> int:
        rows, panels = size
        blocks = -(-tiles // (rows * panels))
        return -(-blocks // threads) * (panels * (rows + 2) + 3)

    return min(sizes, key=slowest)


def _shared_tiles(points: int, inputs: int, host: Host) -> int:
    """Tiles whose V takes a quarter of the shared cache."""
    return max(ALONE, host.l3 // 4 // (points**2 * inputs * 4))
