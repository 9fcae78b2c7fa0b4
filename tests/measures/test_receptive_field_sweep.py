"""The receptive fields of whole registries; writes docs/sweep-receptive-fields.md."""

from __future__ import annotations

import pytest

import sweep_receptive_fields


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")
def test_every_model_has_an_answer_or_a_reason_and_none_is_contradicted() -> None:
    outcomes = list(sweep_receptive_fields.run(sweep_receptive_fields.sources()))
    sweep_receptive_fields.TABLE.parent.mkdir(exist_ok=True)
    sweep_receptive_fields.TABLE.write_text(sweep_receptive_fields.table(outcomes), "utf-8")
    assert not [outcome for outcome in outcomes if outcome.oracle.startswith("DISAGREES")]
    assert all(outcome.field is not None or outcome.error for outcome in outcomes)
