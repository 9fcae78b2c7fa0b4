"""Records of studies that were never run: what verdicts are tried on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convscope.studies.design import Design
from convscope.studies.results import Run, StudyResult, VariantResult

Scores = Mapping[str, Sequence[float]]  # split -> accuracy, seed by seed


def record(
    folder: Path, name: str, factors: Mapping[str, Any], scores: Mapping[tuple[Any, ...], Scores]
) -> Path:
    """Writes the record of a study with these levels and scores; the folder.

    Args:
        folder: for records, made where it is not there.
        name: of the study.
        factors: factor -> its levels.
        scores: levels, in order of the factors -> what each split reached.
    """
    seeds = len(next(iter(next(iter(scores.values())).values())))
    design = Design("convscope.studies.networks:small_cnn", factors=factors, seeds=seeds)
    variants = []
    for place, variant in enumerate(design.variants()):
        reached = scores[tuple(variant.values.values())]
        runs = tuple(
            Run(place, seed, f"{place}-{seed}", {split: values[seed] for split, values in reached.items()})
            for seed in range(seeds)
        )
        variants.append(VariantResult(variant.values, variant.label, None, runs))
    folder.mkdir(exist_ok=True)
    told = StudyResult(design, {}, {}, tuple(variants)).content()
    (folder / f"{name}.json").write_text(json.dumps(told))
    return folder
