"""SIGKILL at any moment of a preparation: nothing half written is believed, and the next one finishes the
work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from search_spaces.datasets import dataset_spec
from search_spaces.errors import DataError
from search_spaces.specs import PreparedSpec
from tasks.prepared.prepare import prepare_dataset
from tasks.prepared.store import PreparedDataset
from tasks.remote import InlineExecutor

SPEC = PreparedSpec(dataset="mri_lesion", image_size=48, channels=1, max_images_per_class=150)
PROGRAM = """
import sys
from pathlib import Path
from search_spaces.datasets import dataset_spec
from search_spaces.specs import PreparedSpec
from tasks.preparation import blocks, prepare
from tasks.prepared import dataset as arrays
from tasks.remote import InlineExecutor
blocks.BLOCK_BYTES = 48 * 48 * 20
arrays.SHARD_BYTES = 48 * 48 * 40
arrays.CHUNK_BYTES = 48 * 48 * 10
spec = PreparedSpec.model_validate_json(sys.argv[1])
print("started", flush=True)
prepare.prepare_dataset(spec, dataset_spec(spec.dataset), raw=None, destination=Path(sys.argv[2]),
                        executor=InlineExecutor(), on_progress=lambda done, total: print(done, flush=True))
print("published", flush=True)
"""


@pytest.mark.parametrize("lines", [3, 10, 17])
def test_killed_and_continued(tmp_path, lines):
    destination = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, SPEC.model_dump_json(), str(destination)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[4],
    )
    for _ in range(lines):
        assert process.stdout is not None
        process.stdout.readline()
    if lines == 17:  # all is read: now inside writing and publishing
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    if destination.exists():
        PreparedDataset.open(destination).verify()
    else:
        with pytest.raises(DataError, match="must exist"):
            PreparedDataset.open(destination)
    prepare_dataset(
        SPEC, dataset_spec("mri_lesion"), raw=None, destination=destination, executor=InlineExecutor()
    )
    whole = PreparedDataset.open(destination)
    whole.verify()
    assert whole.num_images == 300
