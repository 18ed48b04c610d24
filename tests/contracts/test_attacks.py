"""Promises of every attack in ``ATTACKS``, tested on its row and its function."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from orchestrator.planning.costs.passes import attack_flops
from orchestrator.planning.sweep_file import parse_sweep, sweep_text
from search_spaces.attacks import ATTACKS, AttackParameter, AttackPasses
from search_spaces.errors import ConfigError
from search_spaces.specs import ATTACK_VERSION, AttackSpec
from tasks.trials.attacks import PIXEL_MAX, attack_function
from tasks.trials.trial import run_trial
from tests.contracts.rows import check_one_row
from tests.unit.tasks.trials.conftest import bright_squares, pixels_of, trial_spec
from tests.unit.tasks.trials.test_attacks import attack_all, attacked

EPSILONS = (0.5, 2.0, 8.0)


class NoSlope(nn.Module):
    """The margin does not depend on the pixels, so every gradient is 0 or, on request, NaN."""

    def __init__(self, gradient):
        super().__init__()
        self.gradient = gradient

    def forward(self, pixels):
        zero = 0 * pixels.flatten(1).sum(1)
        if self.gradient == "nan":
            # The derivative of the square root at 0 is infinite, times 0 of the other branch.
            zero = torch.where(zero > 0, torch.sqrt(zero), torch.zeros_like(zero))
        return torch.stack([zero, zero + 1], 1)


@pytest.fixture
def model() -> nn.Module:
    """A linear network: its loss rises along the gradient for every step.

    Batch normalization and dropout behave differently in training.
    """
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Dropout(0.5), nn.Linear(48, 3))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (10, 3, 4, 4), generator=generator, dtype=torch.uint8)
    # Two images at the ends of the pixel range.
    images[0] = 0
    images[1] = 255
    return images, torch.randint(0, 3, (10,), generator=generator)


@pytest.mark.parametrize("method", sorted(ATTACKS))
class TestAttack:
    def test_an_adversarial_image_stays_within_epsilon_and_the_pixel_range(
        self, method, model, batch
    ):
        for epsilon in EPSILONS:
            adversarial = attacked(method, model, *batch, epsilon)
            assert adversarial.shape == batch[0].shape
            assert adversarial.dtype == torch.float32
            assert not adversarial.requires_grad
            assert (adversarial - batch[0].float()).abs().max() <= epsilon + 1e-4
            assert adversarial.min() >= 0
            assert adversarial.max() <= PIXEL_MAX

    def test_the_loss_rises_with_epsilon(self, method, model, batch):
        records = attack_all(model, *batch, AttackSpec(methods=(method,), epsilons=EPSILONS))
        gains = [record.loss_gain for record in records]
        assert gains[0] > 0
        assert gains == sorted(gains)
        names = [record.name for record in records]
        assert names == [f"{method}_{epsilon:g}" for epsilon in EPSILONS]

    def test_it_runs_in_evaluation_mode_and_changes_no_image_model_or_gradient(
        self, method, model, batch
    ):
        images = batch[0].clone()
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        spec = AttackSpec(methods=(method,), epsilons=EPSILONS)
        model.train()
        first_records = attack_all(model, *batch, spec)
        second_records = attack_all(model, *batch, spec)
        assert first_records == second_records
        assert model.training
        assert (batch[0] == images).all()
        for name, tensor in model.state_dict().items():
            assert (tensor == state[name]).all()
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_an_adversarial_image_does_not_depend_on_the_batch(self, method, model, batch):
        in_batch = attacked(method, model, *batch, 2.0)
        single = attacked(method, model, batch[0][3:4], batch[1][3:4], 2.0, rows=torch.tensor([3]))
        torch.testing.assert_close(in_batch[3:4], single)

    def test_a_trial_has_the_records_of_an_attack_in_a_sweep_file(self, method):
        sweep = parse_sweep(SWEEP.format(method), origin="sweep")
        spec = trial_spec(epochs=1).model_copy(update={"attacks": sweep.attacks})
        result = run_trial(spec, bright_squares())
        names = [record.name for record in result.attacks]
        assert names == [f"{method}_2", f"{method}_8"]
        assert spec.missing_for(spec) == ()
        versions = {
            measurement.schema_version
            for measurement in spec.requests
            if hasattr(measurement, "epsilon")
        }
        assert versions == {max(ATTACKS[method].versions)}
        assert max(versions) <= ATTACK_VERSION

    def test_costs_count_the_passes_that_an_attack_makes(self, method, model, batch):
        images, labels = batch
        forwards = []
        backwards = []
        # The third argument of a forward hook is the output, one row per image.
        model.register_forward_hook(lambda *call: forwards.append(len(call[2])))
        model.register_full_backward_pre_hook(lambda *call: backwards.append(len(images)))
        attack_all(model, images, labels, AttackSpec(methods=(method,), epsilons=EPSILONS))
        passes = ATTACKS[method].passes(ATTACKS[method].values({}))
        gradients = passes.shared_gradients + len(EPSILONS) * passes.gradients
        # The clean pass is made for every trial, with or without an attack that needs it.
        clean_passes = 1 - passes.shared_gradients
        counted_backwards = sum(backwards) // len(images) - clean_passes
        counted_forwards = (sum(forwards) - sum(backwards)) // len(images)
        assert counted_backwards == gradients, (
            f"for {len(EPSILONS)} epsilons, {method} makes {counted_backwards} backward passes of "
            f"an image, but `passes` of its row says {gradients}"
        )
        assert counted_forwards == len(EPSILONS) * passes.forwards, (
            f"for {len(EPSILONS)} epsilons, {method} makes {counted_forwards} forward passes of "
            f"an image without a backward pass, but `passes` says {len(EPSILONS)} times "
            f"{passes.forwards}"
        )
        priced = trial_spec().model_copy(update={"attacks": AttackSpec(methods=(method,))})
        assert attack_flops(priced)[method] > 0

    def test_each_parameter_reaches_its_function_and_is_part_of_the_measurement(
        self, method, model, batch
    ):
        plain = trial_spec()
        for name, parameter in ATTACKS[method].parameters.items():
            assert parameter.meaning
            assert parameter.problem(parameter.default) == ""
            assert parameter.problem("many")
            changed_value = parameter.low
            if changed_value == parameter.default:
                changed_value = parameter.high
            adversarial = attacked(method, model, *batch, 2.0, **{name: changed_value})
            assert adversarial.shape == batch[0].shape

            def trial_with(value, name=name):
                attacks = AttackSpec(methods=(method,), parameters={method: {name: value}})
                return plain.model_copy(update={"attacks": attacks})

            default = plain.model_copy(update={"attacks": AttackSpec(methods=(method,))})
            assert trial_with(parameter.default) == default
            missing = default.missing_for(trial_with(changed_value))
            assert len(missing) == len(default.attacks.epsilons)

    @pytest.mark.parametrize("gradient", ["zero", "nan"])
    def test_a_pixel_without_a_gradient_is_not_moved_and_its_image_is_counted(
        self, method, gradient
    ):
        """``torch.sign`` of a gradient that is NaN is 0. Other functions of it may be NaN."""
        model = NoSlope(gradient)
        images = pixels_of(3, side=2)
        labels = torch.tensor([0, 1, 0])
        float_images = images.float().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(float_images), labels), float_images)
        assert slope.isnan().all() == (gradient == "nan")
        (record,) = attack_all(
            model, images, labels, AttackSpec(methods=(method,), epsilons=(4.0,))
        )
        assert record.num_unchanged == 3
        assert record.loss_gain == 0

    def test_its_row_fits_its_function(self, method):
        row = ATTACKS[method]
        check_one_row("search_spaces/attacks.py", "ATTACKS", method)
        function = attack_function(method)
        assert function.__doc__, f"the function of {method} needs a docstring"
        arguments = list(inspect.signature(function).parameters)
        assert arguments == ["model", "batch", "epsilon", *row.parameters], (
            f"the keyword arguments of {row.function} are not the `parameters` of row {method!r}"
        )
        for name, parameter in row.parameters.items():
            assert isinstance(parameter, AttackParameter), f"{method}, parameter {name}"
        assert isinstance(row.passes(row.values({})), AttackPasses), (
            f"`passes` of row {method!r} must be a function that returns AttackPasses"
        )
        assert row.effect, f"`effect` of row {method!r} is empty"


SWEEP = """
name: any
models: [small_mlp]
datasets: [manifold_d4]
train_sizes: [8]
test_size: 8
image_size: 12
recipe: smoke
attacks: {{methods: [{}], epsilons: [2, 8]}}
"""


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("tasks.trials.attacks:mifgms", "the module tasks.trials.attacks contains no mifgms"),
        ("tasks.trials.attack:pgd", "there is no module tasks.trials.attack. Correct"),
        ("pgd", "Write package.module:name"),
        (".pgd:attack", "Write package.module:name"),
    ],
)
def test_a_message_names_the_row_whose_function_does_not_exist(monkeypatch, target, problem):
    monkeypatch.setitem(ATTACKS, "new", replace(ATTACKS["pgd"], function=target))
    row = f"search_spaces/attacks.py, ATTACKS, row 'new': `function` is '{target}'"
    with pytest.raises(ConfigError, match=f"^{row}.*{problem}"):
        attack_function("new")


def test_a_message_names_an_unknown_parameter_in_the_passes_of_a_row():
    row = replace(ATTACKS["pgd"], passes=lambda values: AttackPasses(gradients=values["steps"]))
    with pytest.raises(ConfigError, match=r"Unknown parameter 'steps' of the attack tasks\..*:pgd"):
        row.passes(row.values({}))


def test_a_record_has_the_changed_parameters_of_its_attack(model, batch):
    spec = AttackSpec(
        methods=("pgd",), epsilons=(2.0,), parameters={"pgd": {"num_steps": 3, "num_restarts": 5}}
    )
    (record,) = attack_all(model, *batch, spec)
    assert record.parameters == {"num_steps": 3}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "{pgd: {steps: 3}}",
            "pgd has no parameter 'steps'. Choose from these parameters: num_steps, num_rest",
        ),
        (
            "{pgd: {num_steps: 0}}",
            r"pgd\.num_steps must be a whole number from 1 to 10000, but is 0",
        ),
        (
            "{pgd: {num_steps: 2.5}}",
            r"num_steps must be a whole number from 1 to 10000, but is 2\.5",
        ),
        ("{fgsm: {num_steps: 3}}", "fgsm has no parameter 'num_steps'. Remove its parameters"),
        ("{pdg: {num_steps: 3}}", "no attack has this name. Did you mean 'pgd'"),
    ],
)
def test_a_message_names_the_wrong_parameter_of_a_sweep_file(written, message):
    text = SWEEP.format("pgd").replace("epsilons", f"parameters: {written}, epsilons")
    with pytest.raises(ConfigError, match=message):
        parse_sweep(text, origin="sweep")


def test_parameters_of_an_attack_that_is_not_requested_are_refused():
    text = SWEEP.format("fgsm").replace("epsilons", "parameters: {pgd: {num_steps: 3}}, epsilons")
    with pytest.raises(ConfigError, match="`parameters` contains pgd, but `methods` does not"):
        parse_sweep(text, origin="sweep")


def test_a_parameter_survives_a_sweep_file_that_is_written_and_read():
    text = SWEEP.format("pgd").replace("epsilons", "parameters: {pgd: {num_steps: 3}}, epsilons")
    spec = parse_sweep(text, origin="sweep")
    assert parse_sweep(sweep_text(spec), origin="sweep").attacks == spec.attacks
    assert spec.attacks.all_parameters("pgd")["num_steps"] == 3


@pytest.mark.parametrize(
    ("name", "returned"), [("one_row_less", "pixels of shape .*"), ("pair", "a tuple")]
)
def test_an_attack_that_returns_something_else_is_named(monkeypatch, model, batch, name, returned):
    row = replace(ATTACKS["fgsm"], function=f"tests.contracts.test_attacks:{name}")
    monkeypatch.setitem(ATTACKS, "fgsm", row)
    with pytest.raises(
        ConfigError, match=f"row 'fgsm': `function` returned {returned} for pixels of shape"
    ):
        attack_all(model, *batch, AttackSpec(methods=("fgsm",), epsilons=(4.0,)))


def one_row_less(model, batch, epsilon):
    """Return pixels of another shape than those of the batch."""
    return batch.pixels[:, :, 1:]


def pair(model, batch, epsilon):
    """Return a tuple in place of the pixels."""
    return batch.pixels, epsilon
