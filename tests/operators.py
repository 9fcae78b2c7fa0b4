"""torch's own database of operators and their sample inputs, without what importing it changes.

Importing it switches hypothesis to a profile of ten examples and forbids setting torch's backend flags, for the whole
process; both are put back here, the environment too.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import hypothesis
import torch


@functools.cache
def database() -> dict[str, Any]:
    """Operator by its name, and by "name variant" where it has variants: `database()["nn.functional.conv2d"]`."""
    environment, settings = dict(os.environ), hypothesis.settings.get_current_profile_name()
    flags = torch.backends.disable_global_flags.__globals__
    allowed = flags["__allow_nonbracketed_mutation_flag"]
    try:
        from torch.testing._internal.common_methods_invocations import op_db
    finally:
        os.environ.clear()
        os.environ.update(environment)
        hypothesis.settings.load_profile(settings)
        flags["__allow_nonbracketed_mutation_flag"] = allowed
    return {f"{op.name} {op.variant_test_name}".rstrip(): op for op in op_db}
