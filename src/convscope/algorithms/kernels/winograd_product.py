"""The product: for one frequency, some panels of tiles times one panel of filters.

`rows` x `columns` sums stay in registers while the input channels go by; each step reads one vector of filters
a column vector and one number a row. The lines that the next call will read are asked for meanwhile.
"""

from __future__ import annotations

from convscope.algorithms.kernels.builder import FLOATS, INT, Function, Module
from convscope.algorithms.kernels.winograd_layout import LINE, Layout

UNROLLED = 4  # input channels in one turn of the innermost loop


def product(module: Module, layout: Layout) -> Function:
    """M = V U for one frequency and one set of output channels.

    Args:
        module: where the function goes.
        layout: the sizes.

    Returns:
        A function of: the first panel of V; the panel of U; M; how many panels of V; the panel of U to fetch.
    """
    f = module.function("product", public=False, v=FLOATS, u=FLOATS, m=FLOATS, panels=INT, following=FLOATS)
    first, filters, out, panels, following = f.arguments
    width, rows = layout.width, layout.rows
    vectors = range(layout.columns // width)
    with f.loop(0, panels) as panel:
        tiles = first + panel * (rows * layout.deep)
        place = out + panel * (rows * layout.columns)
        sums = [[f.variable(f.zero()) for _ in vectors] for _ in range(rows)]
        with f.loop(0, layout.deep, width) as start:
            numbers = tiles + start * rows
            column = start * layout.columns
            with f.loop(0, width, UNROLLED) as c:
                step = filters + (column + c * layout.columns)
                ahead = following + (column + c * layout.columns)
                for u in range(UNROLLED):
                    across = [
                        (step + (u * layout.columns + v * width)).load(align=4 * width) for v in vectors
                    ]
                    for v in vectors:
                        if v * width % LINE == 0:
                            (ahead + (u * layout.columns + v * width)).prefetch(level=2)
                    for r, row in enumerate(sums):
                        number = (numbers + c + (r * width + u)).splat()
                        for total, vector in zip(row, across, strict=True):
                            total.set(f.keep_order(f.fma(number, vector, total.get())))
        for r, row in enumerate(sums):
            for v, total in enumerate(row):
                (place + (r * layout.columns + v * width)).store(total.get(), align=4 * width)
    return f
