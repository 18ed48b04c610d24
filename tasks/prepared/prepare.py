"""Prepare a dataset from its raw download: list, read in parallel, check and publish.

The store is written to a sibling folder of the destination, and this folder is then renamed.
Part files are in another sibling folder. If a preparation is interrupted, the next preparation
continues from its part files. Two processes may prepare the same data at the same time. The
store of the first process that finishes is moved to the destination. The other process uses
this store.
"""

from __future__ import annotations

import json
import select
import sys
import time
from contextlib import suppress
from pathlib import Path

from search_spaces.datasets import DATASETS
from search_spaces.errors import SweepError
from search_spaces.specs import DatasetSpec, PreparedSpec
from tasks.prepared.blocks import Progress, read_again, read_blocks
from tasks.prepared.changes import check_same_content, update_record
from tasks.prepared.checks import check_images, collect_skips, count_skips
from tasks.prepared.listings import Listings
from tasks.prepared.parts import PixelType
from tasks.prepared.preparation import Preparation
from tasks.prepared.publish import build_and_publish, published_record
from tasks.prepared.reading import Reading, plan_reading
from tasks.prepared.record import PreparedRecord, make_record
from tasks.remote import Executor, InlineExecutor
from tasks.sources.base import RawRequest, hash_key


def prepare_dataset(
    spec: PreparedSpec,
    dataset: DatasetSpec,
    *,
    raw: Path | None,
    destination: Path,
    executor: Executor,
    max_skipped_share: float = 0.001,
    for_training: bool = True,
    on_progress: Progress = lambda read, total: None,
    other_nodes: Executor | None = None,
    listings: Listings | None = None,
) -> PreparedRecord:
    """Prepare a dataset, and store it in a folder.

    If the destination contains a finished preparation, the function returns its record. If the
    dataset consists of user data, the raw files are first checked for changes. If the listing,
    or the size or time of a file, differs, all images are read again and compared. If the
    images are equal, only the record is written again, because its flags and skipped items may
    have changed.

    If the destination contains a damaged preparation, the dataset is prepared again.

    Args:
        spec: The spec of the preparation, with task, image size, channels and faults.
        dataset: The row of the dataset in the table of datasets. For user data, it is a row
            that isweep made.
        raw: Folder or file of the raw download; None for sources that need no download.
        destination: Folder of the store. Its parent folder also contains the hash key. Until
            the store is complete, the parent folder contains the part files too.
        executor: Executor that runs the reading and writing tasks. All its nodes must see
            ``raw`` and ``destination``.
        max_skipped_share: Largest share of the listed items that may be unusable. Unless the
            share is 0, one unusable item is always allowed. The same number also limits the
            share of images that equal an image with another label. This second limit applies
            only to corrected data for training.
        for_training: True to raise an error if the images cannot be split into training and
            test sets. Reasons are that one group (patient) has most images, that each class
            has only one group, or that too many equal images have different labels. Measures
            need no split, so they pass False.
        on_progress: Function that is called after every block of items.
        other_nodes: Executor that runs reading tasks on further nodes, which need not see
            ``destination``; None if there are no such nodes. See
            :func:`~tasks.prepared.blocks.read_blocks`.
        listings: The listings that the command has already created; None if it has created
            none.

    Returns:
        The record of the store at the destination.

    Raises:
        DataError: The raw download does not have the expected layout, has too many unusable
            items, or has changed since the preparation.
    """
    finished = published_record(destination, spec)
    may_files_change = raw is not None and dataset.name not in DATASETS
    if finished is not None and not may_files_change:
        return finished
    started = time.monotonic()
    request = RawRequest(dataset, spec, raw, hash_key(destination.parent))
    listing = (listings or Listings()).of(request)
    dtype: PixelType = listing.dtype
    if request.has_fault("resize_without_antialias"):
        dtype = "float32"  # the released code does not round resized pixels
    preparation = Preparation(request, listing, dtype)
    raw_id = preparation.raw_id()
    if finished is not None and finished.raw_id == raw_id:
        return finished
    parts_folder = destination.with_name(f".{destination.name}.parts")
    plan = plan_reading(preparation, raw_id, parts_folder)
    if finished is not None:
        # All images are read again, even if this takes long. Otherwise a run would silently
        # use changed data.
        parts = read_again(preparation, plan.blocks, on_progress)
        reading = plan.add_parts(parts)
        return _update_if_unchanged(reading, finished, destination, max_skipped_share)
    try:
        parts = read_blocks(preparation, plan.blocks, executor, other_nodes, on_progress)
        reading = plan.add_parts(parts)
        skipped = collect_skips(reading, max_skipped_share)
        check_images(reading.images, request, max_skipped_share, for_training=for_training)
        record = make_record(reading, skipped)
        return build_and_publish(record, reading, destination, executor, started)
    except FileNotFoundError:
        # Another process has published the same dataset and removed the part files.
        finished = published_record(destination, spec)
        if finished is None:
            raise
        return finished


def _update_if_unchanged(
    reading: Reading, finished: PreparedRecord, destination: Path, max_skipped_share: float
) -> PreparedRecord:
    """Check that the raw files still contain the prepared images, and write the record again.

    Raises:
        DataError: The images have changed since the preparation.
    """
    check_same_content(finished, destination, reading)
    # The first preparation was accepted with its skipped items. So an error is raised only if
    # there are more skipped items than before, and if they are too many.
    has_more_skips = count_skips(reading) > finished.num_skipped
    skipped = collect_skips(reading, max_skipped_share if has_more_skips else 1.0)
    record = make_record(reading, skipped)
    return update_record(destination, record.model_copy(update={"seconds": finished.seconds}))


def prepare_from_stdin() -> None:
    """Prepare the datasets that a line on stdin describes. Stop if stdin is closed.

    ``isweep run`` calls this function in a second process, so that datasets are prepared while
    the run starts.

    The line is a JSON list with three entries: the folder of prepared datasets, the largest
    share of unusable items, and a list of pairs. Each pair consists of the spec of a
    preparation and the spec of its dataset. The function prints the name of each dataset
    before it prepares the dataset. It ignores errors, because the caller prepares the dataset
    again and then reports the error.
    """

    def end_if_closed() -> None:
        # The caller writes only one line. So if stdin is readable after this line, the caller
        # has closed it.
        is_readable, _, _ = select.select([sys.stdin], [], [], 0)
        if is_readable:
            sys.exit()

    folder, max_skipped_share, specs = json.loads(sys.stdin.readline())
    for prepared_json, dataset_json in specs:
        spec = PreparedSpec.model_validate_json(prepared_json)
        dataset = DatasetSpec.model_validate_json(dataset_json)
        print(spec.dataset, flush=True)  # noqa: T201
        with suppress(SweepError):
            prepare_dataset(
                spec,
                dataset,
                raw=None,
                destination=Path(folder) / spec.prepared_id,
                executor=InlineExecutor(end_if_closed),
                max_skipped_share=max_skipped_share,
            )
