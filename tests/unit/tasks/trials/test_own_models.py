import sys
from pathlib import Path

import pytest
import torch

from search_spaces.errors import ConfigError
from search_spaces.models import model_spec
from search_spaces.sweeps import ModelChoice
from search_spaces.user_code import code_hash, source_files, source_texts
from tasks.trials.models import build_model, check_buildable
from tasks.trials.user_networks import install_code

NETWORK = """
from torch import nn
from {package}layers import width

def tiny(*, num_outputs, in_channels, image_size, hidden=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, hidden * width), nn.ReLU(),
                         nn.Linear(hidden * width, num_outputs))

def raises(**options):
    raise KeyError("no such weights")

def wrong_shape(*, num_outputs, **options):
    return nn.Sequential(nn.Flatten(1), nn.LazyLinear(num_outputs + 1))

def no_network(**options):
    return 3

def mixes(*, num_outputs, **options):
    return nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, -1)), nn.LazyLinear(num_outputs))

def exits(**options):
    raise SystemExit(3)

def frozen(**options):
    return nn.Flatten()

def breaks(**options):
    return nn.Linear(7, 2)
"""
OPTIONS = {"num_outputs": 2, "in_channels": 1, "image_size": 8, "dropout": None}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mynets.py").write_text(NETWORK.format(package=""))
    (tmp_path / "layers.py").write_text("width = 3")
    (tmp_path / "stranger.py").write_text("x = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("mynets", "layers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in ("mynets", "layers"):
        sys.modules.pop(name, None)


def test_a_custom_network_is_built_with_its_arguments(folder):
    spec = model_spec(
        ModelChoice.model_validate({"from": "mynets:tiny", "arguments": {"hidden": 5}})
    )
    assert (spec.name, spec.library, spec.architecture) == ("tiny", "own", "mynets:tiny")
    model = build_model(spec, input_scale=1.0, seed=0, **OPTIONS)
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 2)
    assert model.network[1].out_features == 15


def test_the_code_is_part_of_the_identity_with_what_it_imports(folder):
    before = code_hash("mynets:tiny")
    assert set(source_files("mynets:tiny")) == {"mynets", "layers"}
    (folder / "stranger.py").write_text("x = 2")
    assert code_hash("mynets:tiny") == before
    (folder / "layers.py").write_text("width = 4")
    assert code_hash("mynets:tiny") != before


def test_a_package_is_hashed_with_its_own_modules_only(tmp_path, monkeypatch):
    package = tmp_path / "ownpackage"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(NETWORK.format(package="."))
    (package / "layers.py").write_text("import numpy\nwidth = 3")
    monkeypatch.syspath_prepend(str(tmp_path))
    hashed_files = source_files("ownpackage.nets:tiny")
    assert set(hashed_files) == {"ownpackage", "ownpackage.nets", "ownpackage.layers"}


def test_source_sent_to_another_machine_builds_the_same_network(folder, monkeypatch):
    spec, texts = model_spec("mynets:tiny"), source_texts("mynets:tiny")
    for path in folder.glob("*.py"):
        path.unlink()
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry) != folder])
    with pytest.raises(ConfigError, match="The module 'mynets' of your network was not found"):
        build_model(spec, input_scale=1.0, seed=0, **OPTIONS)
    install_code(texts)
    assert build_model(spec, input_scale=1.0, seed=0, **OPTIONS)(torch.zeros(1, 1, 8, 8)).shape == (
        1,
        2,
    )


def test_code_that_changed_since_the_plan_is_refused(folder):
    spec = model_spec("mynets:tiny")
    (folder / "layers.py").write_text("width = 9")
    with pytest.raises(
        ConfigError,
        match="The source code of your network mynets:tiny has changed since the sweep was planned",
    ):
        build_model(spec, input_scale=1.0, seed=0, **OPTIONS)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", "Your function mynets:raises raised KeyError: 'no such weights'"),
        (
            "wrong_shape",
            r"returned \(2, 3\) for 2 images, but should return logits of the shape \(2, 2\)\. Correct",
        ),
        (
            "mixes",
            r"returned \(1, 2\) for 2 images, but should return logits of the shape \(2, 2\)\. Correct",
        ),
        ("exits", "Your function mynets:exits raised SystemExit: 3"),
        ("frozen", r"Your network mynets:frozen has no parameters to train\."),
        (
            "no_network",
            r"Your function mynets:no_network returned int, which is not a torch\.nn\.Module\.",
        ),
        (
            "breaks",
            "network mynets:breaks raised RuntimeError: mat1 and mat2 shapes cannot be multiplied",
        ),
        (
            "missing",
            "network mynets:missing was not found: the module mynets has no function missing",
        ),
    ],
)
def test_a_function_that_returns_no_network_is_refused(folder, function, message):
    with pytest.raises(ConfigError, match=message):
        check_buildable(model_spec(f"mynets:{function}"), **OPTIONS)


@pytest.mark.parametrize(
    ("reference", "source", "message"),
    [
        (
            "nowhere.nets:tiny",
            "",
            r"The module 'nowhere\.nets' of your network was not found",
        ),
        ("a b:tiny", "", r"'a b:tiny' is not of the form package\.module:function"),
        ("mynets:", "", r"'mynets:' is not of the form package\.module:function"),
        (
            "mynets:tiny",
            "width = = 3",
            r"The source code of your network is not valid Python: layers\.py, line 1: invalid syntax\.",
        ),
    ],
)
def test_a_reference_that_leads_nowhere_or_to_no_python_is_refused(
    folder, reference, source, message
):
    (folder / "layers.py").write_text(source)
    with pytest.raises(ConfigError, match=message):
        model_spec(reference)


@pytest.mark.parametrize(
    ("choice", "name", "library"),
    [
        ("torchvision:resnet18", "resnet18", "torchvision"),
        ("timm:resnet18", "timm_resnet18", "timm"),
        ("torchvision:densenet121", "densenet121", "torchvision"),
        (
            {"from": "timm:vgg13", "arguments": {"drop_rate": 0.5}},
            "timm_vgg13_drop_rate_0_5",
            "timm",
        ),
        ({"from": "vgg13", "name": "mine"}, "mine", "torchvision"),
    ],
)
def test_library_networks_are_named_after_what_they_are(choice, name, library):
    spec = model_spec(ModelChoice.model_validate(choice))
    assert (spec.name, spec.library) == (name, library)


def test_a_name_of_the_table_and_of_its_library_are_one_network():
    assert model_spec("torchvision:resnet18") == model_spec("resnet18")
    assert model_spec("timm:vgg13") == model_spec("timm_vgg13")


def test_arguments_that_a_library_does_not_take_are_found_without_memory():
    spec = model_spec(
        ModelChoice.model_validate({"from": "timm:resnet18", "arguments": {"colour": 1}})
    )
    with pytest.raises(
        ConfigError,
        match=r"timm resnet18 does not accept the arguments \{'colour': 1\}: ResNet\.__init__\(\) got an",
    ):
        check_buildable(spec, **OPTIONS)


def test_arguments_reach_the_library_and_are_part_of_the_identity():
    spec = model_spec(
        ModelChoice.model_validate({"from": "timm:resnet18", "arguments": {"drop_rate": 0.25}})
    )
    assert spec != model_spec("timm:resnet18")
    model = build_model(spec, input_scale=1.0, seed=0, **OPTIONS | {"image_size": 32})
    assert model.network.drop_rate == 0.25
