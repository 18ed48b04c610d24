import stat
from itertools import product

import pytest

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import CellStatus, plan_rows, plan_sweep
from orchestrator.planning.redaction import without_secrets
from orchestrator.planning.workspace import Workspace
from search_spaces.errors import ConfigError
from search_spaces.recipes import recipe_spec
from search_spaces.sweeps import SweepSpec


def sweep(**changes: object) -> SweepSpec:
    fields = {
        "name": "mine",
        "models": ("small_cnn", "small_mlp"),
        "datasets": ({"name": "mnist5k", "class_pairs": ((3, 8), (4, 9))}, {"name": "mri_lesion"}),
        "train_sizes": (20, 40, 60),
        "test_size": 20,
        "image_size": 28,
        "seeds": (0, 1),
        "recipe": "smoke",
    }
    return SweepSpec.model_validate({**fields, **changes})


def test_the_plan_is_the_product_computed_otherwise():
    rows = plan_rows(plan_sweep(sweep()), {})
    cells = [
        (row["model"], row["dataset"], row["class_pair"], row["train_size"], row["seed"])
        for row in rows
    ]
    subsets = [("mnist5k", "3-8"), ("mnist5k", "4-9"), ("mri_lesion", "")]
    wanted = {
        (model, dataset, pair, size, seed)
        for model, (dataset, pair), size, seed in product(
            ("small_cnn", "small_mlp"), subsets, (20, 40, 60), (0, 1)
        )
    }
    assert len(cells) == len(set(cells)) == 36
    assert set(cells) == wanted
    assert len({row["trial_id"] for row in rows}) == 36
    assert {row["status"] for row in rows} == {CellStatus.PENDING}


def test_a_class_that_does_not_exist_is_refused():
    message = r"class_pairs lists the pair \[3, 12\], but the classes are 0 to 9\. Choose from"
    with pytest.raises(ConfigError, match=message):
        plan_sweep(sweep(datasets=({"name": "mnist5k", "class_pairs": ((3, 12),)},)))


def test_a_huge_grid_is_refused_with_its_size():
    with pytest.raises(ConfigError, match="has 1,800,000 trials, more than the limit of 100,000"):
        plan_sweep(sweep(train_sizes=tuple(range(2, 3002)), seeds=tuple(range(100))))


@pytest.mark.parametrize(
    ("model", "dataset", "learning_rate", "batch_size"),
    [
        ("resnet18", "brats", 1e-3, 40),
        ("resnet34", "svhn", 1e-3, 25),
        ("resnet50", "mnist", 1e-3, 12),
        ("vgg13", "mnist", 1e-4, 6),
        ("vgg19", "svhn", 1e-6, 6),
        ("timm_vgg16", "svhn", 1e-6, 6),
    ],
)
def test_released_exceptions_are_rows(model, dataset, learning_rate, batch_size):
    """Fact sheet, section D: learning rates and batch sizes of the released training script."""
    recipe = recipe_spec("released", model, dataset)
    assert (recipe.learning_rate, recipe.batch_size, recipe.epochs) == (
        learning_rate,
        batch_size,
        100,
    )
    assert (recipe.num_outputs, recipe.weight_decay) == (1000, 1e-4)


def test_in_released_mode_every_cell_has_the_pair_the_script_drew():
    """Fact sheet, F8: the MNIST pairs of vgg13, which the released script trains first."""
    plan = plan_sweep(
        sweep(
            models=("vgg13",),
            datasets=({"name": "mnist"}, {"name": "brats"}),
            train_sizes=(500, 750, 1000, 1250, 1500, 1750),
            seeds=(0,),
            image_size=224,
            data_mode="as_released",
            recipe="released",
        )
    )
    pairs = [
        t.network.subset.class_pair
        for t in plan.trials
        if t.network.subset.prepared.dataset == "mnist"
    ]
    assert pairs == [(9, 8), (5, 2), (5, 6), (5, 4), (6, 3), (5, 1)]
    # Every size has its own test set (F7), so every size is measured alone.
    assert [measure.train_sizes for measure in plan.measures] == [
        (n,) for n in plan.sweep.train_sizes
    ] * 2


def test_a_root_in_a_session_folder_of_ray_is_refused(tmp_path):
    session = tmp_path / "session_2026-11-25_04-16-00_123456_1"
    inside = session / "runtime_resources" / "working_dir_files" / "isweep-root"
    inside.parent.mkdir(parents=True)
    (tmp_path / "session_latest").symlink_to(session)
    (tmp_path / "results").symlink_to(inside.parent)
    for root in (inside, tmp_path / "results" / "isweep-root"):
        with pytest.raises(ConfigError, match=r"cannot be the root: .* session folder .*--root"):
            RootPaths.at(root).make()
    for storage in (inside, tmp_path / "results" / "stored", f"file://{inside}"):
        workspace = Workspace.open("smoke", str(tmp_path / "root"), str(storage))
        with pytest.raises(
            ConfigError, match=r"cannot be the result store: .* session folder .*--storage"
        ):
            workspace.make()
    assert not inside.exists()
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("storage", ["s3://", "s3:", "gs:///", "file://"])
def test_a_storage_without_a_place_is_no_folder_here(tmp_path, storage):
    with pytest.raises(
        ConfigError,
        match=rf"`--storage {storage}` has no bucket or host\. Write, for example, s3",
    ):
        Workspace.open("smoke", str(tmp_path), storage)


def test_a_root_is_made_for_this_user_alone_and_keeps_modes_that_it_has(tmp_path):
    new, old = tmp_path / "session_1" / "new", tmp_path / "old"  # only called like a session of Ray
    old.mkdir()
    old.chmod(0o750)
    for root in (new, old):
        RootPaths.at(root).make()
    assert [stat.S_IMODE(root.stat().st_mode) for root in (new, old)] == [0o700, 0o750]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("s3://key:hush@bucket/x", "s3://…@bucket/x"),
        ("postgresql://me:hu@sh@host:5432/db is away", "postgresql://…@host:5432/db is away"),
        ("https://host/x?sig=hush&b=1 'y'", "https://host/x?… 'y'"),
        ("two: a://u:p@h and b://u:p@h", "two: a://…@h and b://…@h"),
        ("what?", "what?"),
        ("me@host and /a/path@2", "me@host and /a/path@2"),
    ],
)
def test_urls_say_no_more_than_host_and_path(text, left):
    assert without_secrets(text) == left


def test_values_of_variables_that_hold_secrets_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    monkeypatch.setenv("my_password", "swordfish")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path))
    monkeypatch.setenv("SOME_TOKEN", "true")
    monkeypatch.setenv("PLAIN", "plain words")
    said = f"hush-hush and swordfish at {tmp_path}, true, plain words"
    assert without_secrets(said) == f"… and … at {tmp_path}, true, plain words"
