"""convscope opens up a convolutional network: point it at any PyTorch CNN, see what every filter looks for.

    import convscope

    net = convscope.load()  # the embedded EfficientNet-Lite0; or any nn.Module, "timm:NAME", ...
    shown = convscope.visualize(net, "blocks.4.2", channels=range(8))
    convscope.report(net, "report")  # a folder of pages that opens in any browser, offline

Everything public is listed in `__all__`. Names are imported on first use, so that `import convscope` stays
quick and does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> the module that defines it; an empty attribute means the module itself
_HOME = {
    "load": "convscope.models:load",
    "Net": "convscope.models:Net",
    "InputSpec": "convscope.models:InputSpec",
    "look": "convscope.tour:look",
    "visualize": "convscope.features.visualize:visualize",
    "atlas": "convscope.features.atlas:atlas",
    "measure": "convscope.measures.measure:measure",
    "effective_receptive_field": "convscope.measures.effective_field:effective_receptive_field",
    "receptive_field": "convscope.measures.receptive_field:receptive_field",
    "report": "convscope.tour:report",
    "objectives": "convscope.features.objectives:",
    "nn": "convscope.nn:",
    "algorithms": "convscope.algorithms:",
    "rewrite": "convscope.rewrites.rewrite:rewrite",
    "compare": "convscope.rewrites.compare:compare",
    "finetune": "convscope.studies.finetune:finetune",
    "rules": "convscope.rules:",
    "ask": "convscope.answers.ask:ask",
    "study": "convscope.studies.study:study",
}

__all__ = [
    "InputSpec",
    "Net",
    "__version__",
    "algorithms",
    "ask",
    "atlas",
    "compare",
    "effective_receptive_field",
    "finetune",
    "load",
    "look",
    "measure",
    "nn",
    "objectives",
    "receptive_field",
    "report",
    "rewrite",
    "rules",
    "study",
    "visualize",
]

if TYPE_CHECKING:
    from convscope import algorithms, nn, rules
    from convscope.answers.ask import ask
    from convscope.features import objectives
    from convscope.features.atlas import atlas
    from convscope.features.visualize import visualize
    from convscope.measures.effective_field import effective_receptive_field
    from convscope.measures.measure import measure
    from convscope.measures.receptive_field import receptive_field
    from convscope.models import InputSpec, Net, load
    from convscope.rewrites.compare import compare
    from convscope.rewrites.rewrite import rewrite
    from convscope.studies.finetune import finetune
    from convscope.studies.study import study
    from convscope.tour import look, report


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'convscope' has no attribute {name!r}")
    module_name, _, attribute = home.partition(":")
    module = importlib.import_module(module_name)
    value = getattr(module, attribute) if attribute else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
