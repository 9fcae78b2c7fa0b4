"""The training loop: one step by hand, the same bits every time, interrupted or not, and what a result says."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from convscope.errors import BadInput, ModelError, RequestError, StoreError, StoreMismatch, UnknownName
from convscope.studies import passes
from convscope.studies import training as loop
from convscope.studies.augmentation import augmented
from convscope.studies.data import Data, Split, dataset
from convscope.studies.networks import small_cnn, text_cnn
from convscope.studies.scoring import score
from convscope.studies.training import Trained, Training, train


@pytest.fixture(scope="module")
def fashion() -> Data:
    return dataset("fashion", limit=120, test_limit=60)


def images(count: int = 24, targets: Tensor | None = None, classes: int = 3, **known: Any) -> Data:
    """Bars of three heights, which a tiny network learns in a moment."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 60, (count, 1, 6, 6), generator=generator)
    for label in range(3):
        pixels[labels == label, :, 2 * label : 2 * label + 2] += 180
    inputs = pixels.to(torch.uint8)
    split = Split(inputs, labels if targets is None else targets)
    names = tuple(map(str, range(classes)))
    kind = "dense" if split.targets.ndim > 1 else "image"
    return Data("bars", kind, names, (1, 6, 6), split, split, (0.5,), (0.5,), _test=split, **known)


def net(**choices: Any) -> nn.Module:
    torch.manual_seed(5)
    return small_cnn(**{"classes": 3, "size": 6, "width": 4, "stages": 1, **choices})


def weights(module: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in module.state_dict().values()])


# ---------------------------------------------------------------- what it computes


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_step_is_nesterovs_by_hand(smoothing: float) -> None:
    data, module = images(), net(norm=False)
    settings = Training(
        epochs=2,
        batch=24,
        lr=0.3,
        weight_decay=0.1,
        schedule="constant",
        label_smoothing=smoothing,
        precision="float32",
    )
    trained = train(module, data, settings)
    assert trained.steps == 2
    inputs = data.input.normalize(data.train.batch(torch.arange(24))[0])
    expected = copy.deepcopy(module)
    speed = [torch.zeros_like(p) for p in expected.parameters()]
    for _ in range(2):
        logs = functional.log_softmax(expected(inputs), 1)
        right = logs[torch.arange(24), data.train.targets]
        loss = -((1 - smoothing) * right + smoothing * logs.mean(1)).mean()
        slopes = torch.autograd.grad(loss, list(expected.parameters()))
        with torch.no_grad():
            for parameter, slope, moving in zip(expected.parameters(), slopes, speed, strict=True):
                slope = slope + 0.1 * parameter if parameter.ndim > 1 else slope
                moving.mul_(0.9).add_(slope)
                parameter -= 0.3 * (slope + 0.9 * moving)
    torch.testing.assert_close(weights(trained.module), weights(expected), rtol=1e-4, atol=1e-5)


def test_it_learns_and_says_so() -> None:
    trained = train(net(head="flatten"), images(), Training(epochs=20, batch=8, lr=0.05, weight_decay=0.0))
    assert trained.train_accuracy == trained.validation_accuracy == trained.test_accuracy == 1.0
    assert trained.steps == 60
    assert trained.curves[-1]["validation_loss"] < trained.curves[0]["validation_loss"]
    assert [point["epoch"] for point in trained.curves] == list(range(1, 21))
    assert not trained.module.training
    # conv 6 x 6 x 36, linear 36 x 3; twice as many for the gradients, but none of the images is wanted
    assert trained.macs == 60 * 8 * (2 * 6 * 6 * 36 + 3 * 36 * 3)


def test_the_given_network_and_the_random_state_stay() -> None:
    module = net(dropout=0.5)
    before, state = weights(module), torch.get_rng_state()
    train(module, images(), Training(epochs=1, batch=8))
    assert torch.equal(weights(module), before)
    assert module.training
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_seed_decides_everything(fashion: Data) -> None:
    settings = Training(epochs=1, batch=16, augmentation=("flip", "crop"))
    module = small_cnn(width=4, dropout=0.3)
    first = train(module, fashion, settings, seed=1)
    torch.rand(3)
    again, other = train(module, fashion, settings, seed=1), train(module, fashion, settings, seed=2)
    assert torch.equal(weights(first.module), weights(again.module))
    assert first.to_dict() == again.to_dict()
    assert not torch.equal(weights(first.module), weights(other.module))


def test_half_precision_keeps_float_weights() -> None:
    trained = train(net(), images(), Training(epochs=1, batch=8, precision="bfloat16"))
    assert trained.precision == "bfloat16"
    assert {p.dtype for p in trained.module.parameters()} == {torch.float32}
    full = train(net(), images(), Training(epochs=1, batch=8))
    assert full.precision == "float32"
    assert not torch.equal(weights(full.module), weights(trained.module))


@pytest.mark.parametrize("optimizer", ["adamw", "adadelta"])
def test_other_optimizers_lower_the_loss(optimizer: str) -> None:
    trained = train(net(), images(), Training(epochs=8, batch=8, optimizer=optimizer))
    assert trained.curves[-1]["train_loss"] < trained.curves[0]["train_loss"]


# ---------------------------------------------------------------- length


def test_a_part_of_an_epoch_and_macs_as_limits() -> None:
    assert train(net(), images(), Training(epochs=1.5, batch=8)).steps == 4  # of 3 an epoch, 4.5 to even
    whole = train(net(), images(), Training(epochs=2, batch=8))
    by_macs = train(net(), images(), Training(macs=float(whole.macs), batch=8))
    assert by_macs.steps == whole.steps == 6
    assert torch.equal(weights(by_macs.module), weights(whole.module))


def test_seconds_as_limit() -> None:
    trained = train(net(), images(), Training(seconds=0.2, batch=8))
    assert 0.2 <= trained.seconds < 2
    assert trained.steps > 3


@pytest.mark.parametrize(
    ("schedule", "parts", "rates"),
    [
        ("one-cycle", (0.1, 0.2, 0.6, 1.0), (0.5, 1.0, 0.5, 0.0)),
        ("cosine", (0.0, 0.5, 1.0), (1.0, 0.5, 0.0)),
        ("step", (0.5, 0.51, 0.76), (1.0, 0.1, 0.01)),
        ("constant", (0.0, 1.0), (1.0, 1.0)),
    ],
)
def test_schedules(schedule: str, parts: tuple[float, ...], rates: tuple[float, ...]) -> None:
    settings = Training(schedule=schedule, lr=1.0)
    assert [settings.rate(part) for part in parts] == pytest.approx(rates)
    warm = Training(schedule=schedule, lr=1.0, warmup=0.5)
    assert warm.rate(0.25) == pytest.approx(0.5)


# ---------------------------------------------------------------- resuming


class Killed(Exception):
    pass


def _killed_at(step: int) -> Any:
    def progress(event: dict[str, Any]) -> None:
        if event["step"] >= step:
            raise Killed

    return progress


@pytest.mark.parametrize("choices", [{}, {"pooling": "fractional"}, {"dropout": 0.4}])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_killed_training_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str, choices: dict[str, Any]
) -> None:
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    settings = Training(epochs=4, batch=8, augmentation=("flip", "crop"), keep=keep, optimizer="adamw")
    whole = train(net(**choices), images(), settings, seed=3)
    path = tmp_path / "state"
    for step in (2, 5, 8, 10):  # in the middle of epochs and at their ends
        with pytest.raises(Killed):
            train(
                net(**choices),
                images(),
                settings,
                seed=3,
                checkpoint=path,
                every=0,
                progress=_killed_at(step),
            )
    resumed = train(net(**choices), images(), settings, seed=3, checkpoint=path)
    assert torch.equal(weights(resumed.module), weights(whole.module))
    assert resumed.to_dict() == whole.to_dict()
    calls: list[Any] = []
    done = train(net(**choices), images(), settings, seed=3, checkpoint=path, progress=calls.append)
    assert done.to_dict() == whole.to_dict()
    assert not calls
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["state"]


@pytest.mark.parametrize(
    "change",
    [{"seed": 4}, {"training": Training(epochs=2, batch=8)}, {"data": images(27)}, {"module": net(width=8)}],
)
def test_a_checkpoint_serves_its_own_training_alone(tmp_path: Path, change: dict[str, Any]) -> None:
    own = {"module": net(), "data": images(), "training": Training(epochs=1, batch=8)}
    train(**own, seed=3, checkpoint=tmp_path / "state")
    with pytest.raises(StoreMismatch, match="is of another training"):
        train(**{**own, "seed": 3, **change}, checkpoint=tmp_path / "state")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"no checkpoint")
    with pytest.raises(StoreError, match="is damaged; delete it"):
        train(net(), images(), Training(epochs=1), checkpoint=tmp_path / "state")


def test_checkpoints_are_seconds_apart_but_for_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(loop._Run, "save", lambda run, path: written.append(run.step))
    train(net(), images(), Training(epochs=3, batch=8), checkpoint=tmp_path / "state")
    assert written == [9]


# ---------------------------------------------------------------- what can go wrong


def test_divergence_is_a_result() -> None:
    trained = train(
        net(norm=False), images(), Training(epochs=5, batch=8, lr=1e12, warmup=0.0, schedule="constant")
    )
    assert trained.diverged
    assert trained.steps < 15
    assert (trained.train_accuracy, trained.validation_accuracy, trained.test_accuracy) == (None, None, None)
    assert all(math.isfinite(value) for point in trained.curves for value in point.values())


def test_a_network_of_no_numbers_diverges_at_once(tmp_path: Path) -> None:
    module = net()
    with torch.no_grad():
        module.classifier.bias.fill_(math.nan)
    for _ in range(2):
        trained = train(module, images(), Training(epochs=2, batch=8), checkpoint=tmp_path / "state")
        assert trained.diverged
        assert (trained.steps, trained.curves) == (1, ({"epoch": 1.0, "step": 1.0},))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"optimizer": "adam"},
            UnknownName,
            "optimizer='adam' must be one of sgd, adamw, adadelta; did you mean 'adamw'",
        ),
        ({"schedule": "linear"}, UnknownName, "schedule='linear' must be one of one-cycle"),
        ({"precision": "half"}, UnknownName, "precision='half' must be one of auto, float32, bfloat16"),
        ({"keep": "first"}, UnknownName, "keep='first' must be one of last, best"),
        (
            {"augmentation": ("flop",)},
            UnknownName,
            "augmentation='flop' must be one of flip, crop; did you mean 'flip'",
        ),
        ({"augmentation": "flip"}, RequestError, "augmentation='flip' must be a list"),
        ({"epochs": 1, "seconds": 2}, RequestError, "epochs=1 and seconds=2 both limit the training"),
        ({"epochs": 0}, RequestError, "epochs=0 must be a positive number"),
        ({"macs": math.inf}, RequestError, "macs=inf must be a positive number"),
        ({"batch": 2.5}, RequestError, "batch=2.5 must be a whole number"),
        ({"lr": -1.0}, RequestError, "lr=-1.0 must be a positive number"),
        ({"weight_decay": -1.0}, RequestError, "weight_decay=-1.0 must be from 0"),
        ({"momentum": 1.0}, RequestError, "momentum=1.0 must be from 0 and below 1"),
        ({"shift": 1.5}, RequestError, "shift=1.5 must be a whole number of pixels"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Training(**settings)


def test_settings_make_themselves_again() -> None:
    settings = Training(macs=1e9, optimizer="adadelta", augmentation=["flip"])  # type: ignore[arg-type]
    assert Training(**settings.to_dict()) == settings
    assert (settings.lr, settings.weight_decay, settings.epochs) == (1.0, 0.0, None)


def test_outputs_must_fit_the_data() -> None:
    with pytest.raises(
        BadInput, match=r"outputs of shape \[8, 2\] where the data needs \[8, classes\] of at least 3"
    ):
        train(net(classes=2), images(), Training(batch=8, epochs=1))
    with pytest.raises(BadInput, match=r"where the data needs \[8, classes, 6, 6\]"):
        train(net(), images(targets=torch.zeros(24, 6, 6, dtype=torch.int64)), Training(batch=8))


class Odd(nn.Module):
    """Fails, or returns something else, when it is trained."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.inner, self.fails = net(), fails

    def forward(self, x: Tensor) -> Any:
        if self.training and self.fails:
            raise ValueError("no training today")
        return (self.inner(x),) if self.training else self.inner(x)


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (True, r"fails while training on a batch of shape \[8, 1, 6, 6\] \(ValueError: no training today\)"),
        (False, "the network returns tuple; wrap it in a module that returns a tensor"),
    ],
)
def test_a_network_that_fails_is_named_so(fails: bool, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        train(Odd(fails), images(), Training(batch=8))


def test_a_network_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(RequestError, match="no parameter of the network is trained"):
        train(net().requires_grad_(False), images(), Training(batch=8))


def test_the_test_split_is_handed_out_once() -> None:
    data = images()
    trained = train(net(), data, Training(epochs=1, batch=8))
    with pytest.raises(RequestError, match="the test split of 'bars' was already used on this network"):
        data.final_test(trained.module)
    untested = train(net(), data, Training(epochs=1, batch=8), test=False)
    assert untested.test_accuracy is None
    assert len(data.final_test(untested.module)) == 24


# ---------------------------------------------------------------- details


def test_frozen_parts_and_their_statistics_stay() -> None:
    module = net(stages=2, width=2)
    module.stage1.requires_grad_(False)
    trained = train(module, images(), Training(epochs=1, batch=8)).module
    assert torch.equal(weights(trained.stage1), weights(module.stage1))
    assert trained.stage2.norm1.num_batches_tracked == 3


def test_constrain_is_kept_to_after_each_step() -> None:
    split = Split(torch.randint(1, 9, (20, 5)), torch.arange(20) % 2)
    data = Data("toy", "text", ("a", "b"), (5,), split, split, words=("",) * 9, _test=split)
    module = text_cnn(vocabulary=9, dim=6, filters=4, max_norm=0.01)
    trained = train(module, data, Training(epochs=2, batch=5, optimizer="adamw", lr=0.1))
    assert trained.module.classifier.weight.norm(dim=1).max() <= 0.01 * (1 + 1e-6)
    assert trained.macs == 8 * 5 * passes.macs_of_sample(module, data, "cpu")


def test_the_best_epoch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0.3, 0.9, 0.9, 0.1])
    original, states = loop._Run._keep_best, []

    def keep(run: Any, _: float) -> None:
        states.append(weights(run.module))
        original(run, next(accuracies))

    monkeypatch.setattr(loop._Run, "_keep_best", keep)
    trained = train(net(), images(), Training(epochs=4, batch=8, keep="best"))
    assert trained.epoch == 2
    assert torch.equal(weights(trained.module), states[1])


def test_an_epoch_takes_every_sample_once_in_batches_of_one_size() -> None:
    split = Split(
        (torch.arange(9) < torch.randint(1, 9, (203, 1))).long(), torch.zeros(203, dtype=torch.int64)
    )
    batches = list(passes.batches(split, 10, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [10] * 20
    assert len(torch.cat(batches).unique()) == 200
    assert split.batch(batches[0])[0].shape == (10, int(split.lengths[batches[0]].max()))


def test_scores_are_what_a_loop_over_samples_gives() -> None:
    module = net().eval()
    data = images()
    found = score(module, data.validation, spec=data.input)
    losses, hits = [], 0
    for place in range(24):
        inputs, target = data.validation.batch(torch.tensor([place]))
        logs = functional.log_softmax(module(data.input.normalize(inputs)), 1)[0]
        losses.append(-logs[target].item())
        hits += int(logs.argmax() == target)
    assert found == (pytest.approx(sum(losses) / 24, rel=1e-5), hits / 24)


def test_values_are_scored_by_the_variance_explained() -> None:
    targets = torch.rand(24, 1, 6, 6)
    data = images(targets=targets, classes=1)
    module = nn.Conv2d(1, 1, 1)
    inputs = data.input.normalize(data.train.batch(torch.arange(24))[0])
    error = (module(inputs) - targets).double().square().mean().item()
    found = score(module, data.train, spec=data.input)
    assert found.loss == pytest.approx(error, rel=1e-5)
    assert found.accuracy == pytest.approx(1 - error / targets.double().var(correction=0).item(), rel=1e-4)
    trained = train(module, data, Training(epochs=30, batch=8, lr=0.05))
    assert -0.1 < trained.test_accuracy < 0.1  # type: ignore[operator]  # nothing can be told of noise
    assert "train_accuracy" not in trained.curves[0]


def test_noise_is_new_for_each_batch_and_old_for_scores() -> None:
    data = images(targets=torch.rand(24, 1, 6, 6), classes=1, noise=0.25)
    module = nn.Conv2d(1, 1, 1)
    settings = {"spec": data.input, "noise": data.noise}
    assert score(module, data.train, **settings) == score(module, data.train, **settings)
    assert score(module, data.train, **settings) != score(module, data.train, spec=data.input)
    first, second = (
        augmented(
            torch.full((2, 1, 4, 4), 0.5), torch.zeros(2), (), shift=None, noise=0.1, generator=generator
        )[0]
        for generator in [torch.Generator().manual_seed(0)] * 2
    )
    assert not torch.equal(first, second)


def test_dense_targets_move_with_their_images() -> None:
    pictures = torch.rand(50, 1, 8, 12)
    for targets in ((pictures[:, 0] > 0.5).long(), pictures.clone()):
        changed, moved = augmented(
            pictures,
            targets,
            ("flip", "crop"),
            shift=2,
            noise=0.0,
            generator=torch.Generator().manual_seed(1),
        )
        assert torch.equal(moved, (changed[:, 0] > 0.5).long() if targets.ndim == 3 else changed)
        assert not torch.equal(changed, pictures)


def test_crop_moves_by_whole_pixels_in_black() -> None:
    dot = torch.zeros(200, 1, 9, 9)
    dot[:, :, 4, 4] = 1
    changed, _ = augmented(
        dot, torch.zeros(200), ("crop",), shift=2, noise=0.0, generator=torch.Generator().manual_seed(0)
    )
    places = changed.flatten(1).argmax(1)
    assert changed.sum().item() == 200
    assert {(int(p) // 9 - 4, int(p) % 9 - 4) for p in places} == {
        (y, x) for y in range(-2, 3) for x in range(-2, 3)
    }


def test_progress_tells_of_epochs() -> None:
    events: list[dict[str, Any]] = []
    trained: Trained = train(net(), images(), Training(epochs=2, batch=8), progress=events.append)
    assert [(event["epoch"], event["step"], event["steps"]) for event in events] == [(1, 3, 6), (2, 6, 6)]
    assert [event["validation_accuracy"] for event in events] == [
        point["validation_accuracy"] for point in trained.curves
    ]
