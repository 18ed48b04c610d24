import stat
from itertools import product

import pytest

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import PlannedStatus, plan_rows, plan_sweep
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


def test_the_plan_is_the_product_of_models_subsets_sizes_and_seeds():
    rows = plan_rows(plan_sweep(sweep()), {})
    combinations = [
        (row["model"], row["dataset"], row["class_pair"], row["train_size"], row["seed"])
        for row in rows
    ]
    subsets = [("mnist5k", "3-8"), ("mnist5k", "4-9"), ("mri_lesion", "")]
    expected = {
        (model, dataset, pair, size, seed)
        for model, (dataset, pair), size, seed in product(
            ("small_cnn", "small_mlp"), subsets, (20, 40, 60), (0, 1)
        )
    }
    assert len(combinations) == len(set(combinations)) == 36
    assert set(combinations) == expected
    assert len({row["trial_id"] for row in rows}) == 36
    assert {row["status"] for row in rows} == {PlannedStatus.PENDING}


def test_a_class_that_does_not_exist_is_refused():
    message = r"class_pairs` lists the pair \[3, 12\], but the classes are 0 to 9\. Choose from"
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
def test_exceptions_of_the_released_recipe_have_their_values(
    model, dataset, learning_rate, batch_size
):
    """The values are those of the released training script (fact sheet, section D)."""
    recipe = recipe_spec("released", model, dataset)
    assert (recipe.learning_rate, recipe.batch_size, recipe.epochs) == (
        learning_rate,
        batch_size,
        100,
    )
    assert (recipe.num_outputs, recipe.weight_decay) == (1000, 1e-4)


def test_in_released_mode_every_combination_has_the_pair_that_the_script_drew():
    """Fact sheet F8 has the MNIST pairs of vgg13, which the released script trains first."""
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
    subsets = [trial.network.subset for trial in plan.trials]
    pairs = [subset.class_pair for subset in subsets if subset.prepared.dataset == "mnist"]
    assert pairs == [(9, 8), (5, 2), (5, 6), (5, 4), (6, 3), (5, 1)]
    # Every size has its own test set (F7), so every size is measured separately.
    sizes = [measure.train_sizes for measure in plan.measures]
    assert sizes == [(size,) for size in plan.sweep.train_sizes] * 2


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
def test_a_storage_without_a_bucket_is_refused(tmp_path, storage):
    with pytest.raises(
        ConfigError,
        match=rf"`--storage {storage}` has no bucket or host\. Write, for example, s3",
    ):
        Workspace.open("smoke", str(tmp_path), storage)


def test_a_new_root_is_private_and_an_existing_root_keeps_its_mode(tmp_path):
    new = tmp_path / "session_1" / "new"  # only the name is that of a session of Ray
    old = tmp_path / "old"
    old.mkdir()
    old.chmod(0o750)
    for root in (new, old):
        RootPaths.at(root).make()
    modes = [stat.S_IMODE(root.stat().st_mode) for root in (new, old)]
    assert modes == [0o700, 0o750]


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("s3://key:hush@bucket/x", "s3://…@bucket/x"),
        ("postgresql://me:hu@sh@host:5432/db is away", "postgresql://…@host:5432/db is away"),
        ("https://host/x?sig=hush&b=1 'y'", "https://host/x?… 'y'"),
        ("two: a://u:p@h and b://u:p@h", "two: a://…@h and b://…@h"),
        ("what?", "what?"),
        ("me@host and /a/path@2", "me@host and /a/path@2"),
    ],
)
def test_urls_keep_only_host_and_path(text, redacted):
    assert without_secrets(text) == redacted


def test_values_of_secret_environment_variables_are_redacted(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    monkeypatch.setenv("my_password", "swordfish")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path))
    monkeypatch.setenv("SOME_TOKEN", "true")
    monkeypatch.setenv("PLAIN", "plain words")
    text = f"hush-hush and swordfish at {tmp_path}, true, plain words"
    assert without_secrets(text) == f"… and … at {tmp_path}, true, plain words"
