"""bfloat16 weights: training with them is autocast's, and the kernel that writes them is torch's Adam.

Of a machine without a card, Triton's interpreter runs the kernel and its compiler translates it; both are
skipped where Triton is not installed: ``pip install --no-deps --target DIR triton==`` that of
constraints-cuda.txt, and DIR in PYTHONPATH.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from search_spaces.errors import SetupError
from search_spaces.models import model_spec
from search_spaces.specs import RecipeSpec
from tasks.trials import training as steps
from tasks.trials.half_weights import TOLERANCE, card_update, check, differences, half_weights, torch_update
from tasks.trials.models import build_model
from tasks.trials.training import Checkpoints, Step, split_batches, takes_half_weights, train, update_of

torch.set_num_threads(1)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def recipe(**changes):
    fields = {"name": "test", "epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "precision": "bfloat16"}
    return RecipeSpec(**(fields | changes))


def images(num_images=21):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (num_images, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return pixels, torch.arange(num_images) % 2


def small_vgg():
    """Convolutions, pooling, two dense layers with dropout; channels last, as built networks are."""
    torch.manual_seed(0)
    convolutions = [
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(True),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(True),
    ]
    dense = [nn.Linear(8 * 16, 24), nn.ReLU(True), nn.Dropout(0.4), nn.Linear(24, 2)]
    model = nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), *dense)
    return model.to(memory_format=torch.channels_last)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(ours, theirs):
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def on_card(monkeypatch):
    """Training takes bfloat16 weights as it would on a card, with torch's own update; returns its calls."""
    calls = []

    def update(*arguments):
        calls.append(arguments[1].dtype)
        torch_update(*arguments)

    def found(model, recipe, device):
        return (update, "") if takes_half_weights(model, recipe) else (None, "")

    monkeypatch.setattr(steps, "update_of", found)
    return calls


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_training_gives_the_weights_and_losses_of_autocast_to_the_last_bit(on_card, optimizer, micro_batch):
    settings = recipe(optimizer=optimizer, weight_decay=1e-2)
    results = []
    for half in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if not half:
                patch.setattr(steps, "update_of", update_of)
            model = small_vgg()
            history = train(model, *images(), settings, seed=1, micro_batch=micro_batch)
            results.append((state(model), [(e.train_loss, e.train_accuracy) for e in history]))
    (plain, losses), (ours, our_losses) = results
    assert equal(ours, plain)
    assert our_losses == losses
    assert len(on_card) == 3 * 3 * 8  # epochs, batches of 8, 8 and 5, weights and biases
    assert set(on_card) == {torch.float32 if micro_batch else torch.bfloat16}


def test_layers_without_a_copy_train_as_under_autocast(on_card):
    """Layer norm stays float32; two layers share a weight, one is frozen, one is never used."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.norm, self.second = nn.Linear(64, 16), nn.LayerNorm(16), nn.Linear(16, 16)
            self.shared, self.last, self.unused = nn.Linear(16, 16), nn.Linear(16, 2), nn.Linear(2, 2)
            self.shared.weight = self.second.weight
            self.frozen = nn.Linear(16, 16).requires_grad_(False)

        def forward(self, pixels):
            hidden = self.frozen(self.second(self.norm(self.first(pixels.flatten(1)))))
            with torch.autocast("cpu", enabled=False):
                hidden = self.shared(hidden.float().relu())
            return self.last(hidden)

    Mixed.__module__ = "tasks.example"
    assert_trains_as_under_autocast(on_card, Mixed, 3 * 7)


def assert_trains_as_under_autocast(on_card, make, num_updates):
    ours, plain = make(), make()
    train(ours, *images(), recipe(epochs=1), seed=0)
    assert len(on_card) == num_updates
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "update_of", update_of)
        train(plain, *images(), recipe(epochs=1), seed=0)
    assert equal(state(ours), state(plain))


def dense():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 2))


def another_forward(layer):
    layer.forward = lambda pixels: torch.nn.functional.linear(pixels, layer.weight.clamp(-0.02, 0.02))


HUNG_ON = {
    "pre-hook": lambda layer: layer.register_forward_pre_hook(lambda layer, _: clamp(layer)),
    "hook": lambda layer: layer.register_forward_hook(lambda layer, *_: clamp(layer)),
    "backward hook": lambda layer: layer.register_full_backward_hook(lambda layer, *_: clamp(layer)),
    "backward pre-hook": lambda layer: layer.register_full_backward_pre_hook(lambda layer, _: clamp(layer)),
    "gradient hook": lambda layer: layer.weight.register_hook(lambda gradient: gradient / 2),
    "gathered hook": lambda layer: layer.weight.register_post_accumulate_grad_hook(halve_gradient),
    "forward": another_forward,
}


def clamp(layer):
    layer.weight.data.clamp_(-0.05, 0.05)


def halve_gradient(weight):
    weight.grad /= 2


@pytest.mark.parametrize("what", HUNG_ON)
def test_a_librarys_layer_with_somebodys_own_code_hung_on_it_trains_as_under_autocast(on_card, what):
    """Copies would pass by what holds weights down or changes gradients; another forward pass stays."""

    def make():
        model = dense()
        HUNG_ON[what](model[3])
        return model

    model = make()
    forward = model[3].forward
    train(model, *images(), recipe(epochs=1), seed=0)
    assert model[3].forward == forward
    assert_trains_as_under_autocast(on_card, make, 0)


def test_a_weight_that_another_kind_of_layer_has_too_gets_no_copy(on_card):
    """Autocast casts it once for all uses and adds their gradients as bfloat16; an embedding cuts its own."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.words, self.out = nn.Embedding(256, 16, max_norm=1.0), nn.Linear(16, 256, bias=False)
            self.first, self.second = nn.Linear(256, 16), nn.Linear(16, 16)
            self.last, self.again = nn.Linear(16, 2), nn.Linear(16, 16)
            self.out.weight, self.again.weight = self.words.weight, self.second.weight
            self.again.bias.requires_grad_(False)

        def forward(self, pixels):
            hidden = self.first(self.out(self.words(pixels.flatten(1).long()).mean(1)))
            return self.last(self.again(self.second(hidden)))

    Tied.__module__ = "tasks.example"
    assert_trains_as_under_autocast(on_card, Tied, 3 * 4)


def test_a_part_that_computes_in_float16_casts_the_weights_themselves(on_card):
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 2)

        def forward(self, pixels):
            with torch.autocast("cpu", dtype=torch.float16):
                hidden = self.first(pixels.flatten(1) / 255)
            return self.last(hidden.float())

    Halves.__module__ = "tasks.example"
    assert_trains_as_under_autocast(on_card, Halves, 3 * 4)


def test_a_weight_read_outside_of_its_layer_gets_both_gradients():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with half_weights(model, steps.make_optimizer(model, recipe()), torch_update) as half:
        seen = []
        half._update = lambda weight, gradient, *rest: seen.append(gradient)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(torch.ones(3, 1, 8, 8)).float().sum() + 2 * model[1].weight.sum()
        loss.backward()
        half.step()
    assert [gradient.dtype for gradient in seen] == [torch.float32, torch.bfloat16]
    assert torch.equal(seen[0], torch.full((2, 64), 3.0 + 2.0))


def test_within_training_the_model_is_its_float32_self_for_all_others(on_card):
    """Its parameters stay what they were and decide an evaluation; afterwards nothing is left."""
    model = small_vgg()
    parameters, forwards = list(model.parameters()), [layer.forward for layer in model]
    looks = []

    def look(record):
        fresh = small_vgg().eval()
        fresh.load_state_dict(model.state_dict())
        pixels = torch.rand(4, 1, 8, 8)
        model.eval()
        with torch.no_grad():
            looks.append(torch.equal(model(pixels), fresh(pixels)))
        model.train()
        assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters, strict=True))

    train(model, *images(), recipe(), seed=0, on_epoch=look)
    assert looks == [True] * 3
    assert on_card
    assert [layer.forward for layer in model] == forwards
    assert all("forward" not in vars(layer) for layer in model)
    assert all(p.dtype == torch.float32 and p.grad is None for p in model.parameters())


def test_a_resumed_training_ends_with_the_same_bits(on_card):
    saved, whole, resumed = [], small_vgg(), small_vgg()

    def checkpoints(data=None):
        return Checkpoints(lambda: data, saved.append, interval_s=0)

    train(whole, *images(), recipe(epochs=4), seed=0, checkpoints=checkpoints())
    train(resumed, *images(), recipe(epochs=4), seed=0, checkpoints=checkpoints(saved[1]))
    assert equal(state(resumed), state(whole))
    with pytest.MonkeyPatch.context() as patch:  # and where no kernel can be had
        patch.setattr(steps, "update_of", update_of)
        plain = small_vgg()
        train(plain, *images(), recipe(epochs=4), seed=0, checkpoints=checkpoints(saved[1]))
    assert equal(state(plain), state(whole))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
def test_a_training_that_fails_leaves_the_model_usable(on_card, error):
    model = small_vgg()

    def fail(record):
        raise error("here")

    with pytest.raises(error, match="here"):
        train(model, *images(), recipe(), seed=0, on_epoch=fail)
    assert all("forward" not in vars(layer) for layer in model)
    train(model, *images(), recipe(epochs=1), seed=0)


def test_a_training_that_diverges_leaves_the_model_usable(on_card):
    model = small_vgg()
    model[0].weight.data.mul_(1e38)
    history = train(model, *images(), recipe(), seed=0)
    assert history[-1].diverged
    assert all("forward" not in vars(layer) for layer in model)


def built(name, **changes):
    shape = {"num_outputs": 2, "in_channels": 1, "input_scale": 1.0, "dropout": None, "image_size": 32}
    return build_model(model_spec(name), seed=0, **(shape | changes))


class Own(nn.Linear):
    """Somebody's own layer: it may hold its weights down in its forward pass."""


@pytest.mark.parametrize(
    ("model", "changes", "takes"),
    [
        ("vgg13", {}, True),
        ("vgg13", {"optimizer": "adamw"}, True),
        ("vgg13", {"optimizer": "sgd"}, False),
        ("vgg13", {"precision": "float32"}, False),
        ("vgg13", {"precision": "float16_unscaled"}, False),
        ("small_mlp", {}, True),
        ("resnet18", {}, False),  # captured graphs
        ("own", {}, False),
    ],
)
def test_networks_without_batch_norm_take_them_in_bfloat16_with_adam(model, changes, takes):
    with torch.device("meta"):
        network = nn.Sequential(Own(4, 2)) if model == "own" else built(model)
    assert takes_half_weights(network, recipe(**changes)) == takes


def test_training_on_a_cpu_never_takes_them():
    assert update_of(small_vgg(), recipe(), CPU) == (None, "")


def test_every_weight_of_a_vgg_has_a_copy_laid_out_as_it_is():
    model = built("vgg13").to(memory_format=torch.channels_last)
    with half_weights(model, steps.make_optimizer(model, recipe()), torch_update) as half:
        assert list(half._copies) == list(model.parameters())
        for weight, copy in half._copies.items():
            assert copy.stride() == weight.stride()
            assert torch.equal(copy, weight.bfloat16())


def test_without_triton_the_result_says_why_weights_are_cast(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tasks.trials.adam_kernel", None)
    card_update.cache_clear()
    update, note = card_update(CPU)
    card_update.cache_clear()
    assert update is None
    assert note.startswith("weights were cast in every step: the kernel that saves it cannot be built (Mod")
    assert note in caplog.text


def test_a_card_without_room_for_the_kernel_is_asked_again(monkeypatch):
    def full(*arguments):
        raise RuntimeError("Triton Error [CUDA]: out of memory")

    monkeypatch.setitem(sys.modules, "tasks.trials.adam_kernel", SimpleNamespace(update=full))
    card_update.cache_clear()
    with pytest.raises(torch.OutOfMemoryError, match=r"Triton Error \[CUDA\]: out of memory"):
        card_update(CPU)
    monkeypatch.setitem(sys.modules, "tasks.trials.adam_kernel", SimpleNamespace(update=torch_update))
    assert card_update(CPU) == (torch_update, "")
    card_update.cache_clear()


def wrong_updates():
    """Faults that a kernel might have, each as what is done with right tensors."""

    def altered(**changes):
        def update(*arguments):
            *tensors, rates = arguments
            torch_update(*tensors, replace(rates, **changes))

        return update

    def no_copy(weight, gradient, mean, square, copy, rates):
        torch_update(weight, gradient, mean, square, copy.clone(), rates)

    def cut_copy(weight, gradient, mean, square, copy, rates):
        torch_update(weight, gradient, mean, square, copy, rates)
        copy.copy_((weight.view(torch.int32) & -65536).view(torch.float32))

    def last_left_out(weight, gradient, mean, square, copy, rates):
        kept = weight[-1, -1].clone()
        torch_update(weight, gradient, mean, square, copy, rates)
        weight[-1, -1] = kept

    def infinite(weight, gradient, mean, square, copy, rates):
        torch_update(weight, gradient, mean, square, copy, rates)
        square[0, 0] = torch.nan

    def multiples_of_16(*arguments):
        torch_update(*arguments)
        if arguments[0].numel() % 16 == 0:
            arguments[0].view(-1)[3] += 0.01

    changes = [{"eps": 0.0}, {"eps": 2e-8}, {"step": 2}, {"decay": 0.0}, {"beta1": 0.9001}, {"beta2": 0.99}]
    found = {next(iter(change)) + str(i): altered(**change) for i, change in enumerate(changes)}
    for other in (False, True):
        found[f"decoupled{other}"] = altered(decoupled=other)
    return found | {f.__name__: f for f in (no_copy, cut_copy, last_left_out, multiples_of_16, infinite)}


@pytest.mark.parametrize("fault", wrong_updates())
def test_a_kernel_that_computes_something_else_never_trains(fault):
    found = differences(wrong_updates()[fault], CPU)
    assert max(found.values()) > 4 * TOLERANCE
    with pytest.raises(SetupError, match=r"must compute what torch's Adam does; found: node .* differs by"):
        check(found)


def test_torchs_own_update_passes_the_check():
    found = differences(torch_update, CPU)
    assert set(found.values()) == {0.0}
    check(found)


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: it comes with torch for CUDA"
)


def outcome(script, **environment):
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_triton
def test_the_kernel_interpreted_is_torchs_adam():
    """Triton's interpreter cuts float32 down to bfloat16, which a card rounds: off by less than a unit."""
    found = outcome(
        """
import json, torch
from tasks.trials.adam_kernel import update
from tasks.trials.half_weights import AdamRates, differences
tensors = [torch.ones(2, 3) for _ in range(4)] + [torch.ones(3, 2).T]
try:
    update(*tensors, AdamRates(0.1, 0.1, False, 0.9, 0.999, 1e-8, 1))
except ValueError as error:
    print(json.dumps(differences(update, torch.device("cpu")) | {"refused": str(error)}))
""",
        TRITON_INTERPRET="1",
    )
    assert found["refused"] == "tensors of an update must have the same strides, not [(1, 2), (3, 1)]"
    assert max(found[name] for name in ("weight", "mean", "square")) <= TOLERANCE
    assert 0 < found["copy"] <= 2**-7


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiled_rounds_as_torch_does_and_moves_28_bytes(capability):
    found = outcome(
        f"""
import json, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tasks.trials import adam_kernel
names = adam_kernel._update.arg_names
pointers = dict(zip(names, ["*fp32", "*bf16", "*fp32", "*fp32", "*bf16", "i32"]))
constants = {{"DECOUPLED": False, "BLOCK": adam_kernel.BLOCK}}
signature = {{name: "fp32" for name in names}} | pointers | {{name: "constexpr" for name in constants}}
aligned = {{(i,): [["tt.divisibility", 16]] for i in range(6)}}
source = ASTSource(adam_kernel._update, signature, constants, aligned)
made = triton.compile(source, target=GPUTarget("cuda", {capability}, 32))
print(json.dumps([adam_kernel.BLOCK, made.asm["ptx"], len(made.asm["cubin"]), made.metadata.num_warps]))
"""
    )
    block, ptx, num_bytes, num_warps = found
    assert num_bytes > 0
    for instruction in ("sqrt.rn.f32", "div.rn.f32", "cvt.rn.bf16"):
        assert instruction in ptx
    for inexact in ("sqrt.approx", "div.full", "div.approx"):
        assert inexact not in ptx
    # Eight weights of a thread, 16 bytes an instruction: 14 bytes a weight either way.
    assert block == 8 * 32 * num_warps
    assert [len(re.findall(rf"{way}\.global\.v4\.b32", ptx)) for way in ("ld", "st")] == [7, 7]
    assert len(re.findall(r"(ld|st)\.global", ptx)) == 14


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_kernel_on_a_card_is_torchs_adam():
    update, note = card_update(CUDA)
    assert note == ""
    found = differences(update, CUDA)
    assert max(found.values()) <= TOLERANCE
    assert found["copy"] == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_twenty_steps_on_a_card_are_autocasts(optimizer):
    """Kernels of a card may add in any order: weights agree to a part of what they moved by."""
    settings = recipe(optimizer=optimizer, learning_rate=1e-3)
    pixels, labels = (tensor.cuda() for tensor in images(160))
    update, _ = card_update(CUDA)
    results = []
    for chosen in (None, update):
        model = small_vgg().cuda()
        model[8].p = 0.0
        step = Step(model, pixels, labels, settings)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(steps, "update_of", lambda *_, chosen=chosen: (chosen, ""))
            with steps.stepper(step) as take:
                assert (step.half is None) == (chosen is None)
                for rows in split_batches(torch.arange(160).cuda(), 8):
                    take(rows)
        results.append(state(model))
    moved = 20 * settings.learning_rate
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=0, atol=0.05 * moved)
