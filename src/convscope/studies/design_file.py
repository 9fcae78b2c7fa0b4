"""A design as a TOML file, which a laptop and a cluster read alike.

base = "convscope.studies.networks:small_cnn"
data = "fashion"
seeds = 5
budget = { epochs = 4 }

[factors]
kernel_size = [1, 3, 5, 7]
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from convscope.errors import RequestError
from convscope.studies.design import Design


def read(path: str | os.PathLike[str]) -> Design:
    """The design that a file holds.

    Args:
        path: a TOML file whose keys are the arguments of `Design`; its name is the study's where it gives none.

    Raises:
        RequestError: there is no such file, it is no TOML, or what `Design` refuses; the file is named.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "sizes.toml")
        ...     _ = path.write_text('base = "timm:resnet18"\\nseeds = 3\\n[factors]\\nrule = ["none", "kernel_size:5"]')
        ...     print(read(path).name, read(path).all_seeds)
        sizes (0, 1, 2)
    """
    place = Path(path)
    try:
        values = tomllib.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(
            f"the design {str(path)!r} cannot be read: {error.strerror}; give a TOML file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the design {str(path)!r} is no TOML: {error}.") from error
    try:
        return Design.from_dict({"name": place.stem, **values})
    except RequestError as error:
        raise type(error)(f"in {str(path)!r}: {error}") from error
