"""Find the nearest neighbors and other-label distances of the distinct images of a dataset.

A *source row* is an index among all images. A *position* is an index among the distinct
images. The caller counts train sizes in images. This module converts them to numbers of
distinct images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.array_types import AnyArray, BoolArray, FloatArray, IntArray
from tasks.measures.distances import BlockSource, Precision, direct_squared_distances, flatten
from tasks.measures.duplicates import RowCheck
from tasks.measures.estimators import table_width
from tasks.measures.neighbor_tables import NeighborTable, NestedNeighbors
from tasks.measures.neighbors import nested_neighbors
from tasks.measures.records import MeasureSettings
from tasks.measures.sharpness import OtherLabelDistances, stratified_samples
from tasks.measures.tile_blocks import EXACT
from tasks.remote import Executor

MINIMUM_TOLERANCE = 1 + 4e-5
"""Distances up to this multiple of the smallest distance are computed again in float64,
because each of them may be the true minimum. A distance has a relative error of up to 1e-5, so
the computed values of two equal distances differ by at most 2e-5. The factor allows for twice
this difference."""


@dataclass(frozen=True)
class SearchedImages:
    """The distinct images of all train sizes, and their nearest neighbors.

    The *position* of an image is its index among the distinct images.

    Attributes:
        source: Source of all images, including duplicates.
        source_rows: ``(num_distinct,)`` source row of each distinct image.
        labels: ``(num_distinct,)`` label of each distinct image; None if there are no labels.
        neighbors: The result of the search: the nearest neighbors of each distinct image.
        samples: ``(num_samples, num_distinct)`` masks of the samples, one row per sample. The
            rows are ordered by train size.
        sample_slices: For each train size, the slice of the rows of ``samples`` that belong to
            it.
    """

    source: BlockSource
    source_rows: IntArray
    labels: IntArray | None
    neighbors: NestedNeighbors
    samples: BoolArray
    sample_slices: list[slice]

    def other_label_distances(self, size_index: int) -> OtherLabelDistances:
        """Return the distances to the nearest images with another label, at one train size.

        Unless distances are exact integers, the smallest distances are computed again in
        float64.
        """
        search = self.neighbors
        table = search.tables[size_index]
        positions = slice(table.num_positions)
        sample_slice = self.sample_slices[size_index]
        distances = table.other_label_distances.copy()
        sample_distances = search.sample_other_label_distances[sample_slice, positions].copy()
        if search.arithmetic != EXACT:
            self._refine_minimum(distances, table.other_label_positions)
            sample_partners = search.sample_other_label_positions[sample_slice, positions]
            for one_sample, partners in zip(sample_distances, sample_partners, strict=True):
                self._refine_minimum(one_sample, partners)
        return OtherLabelDistances(
            distances=distances,
            pair=self._closest_pair(distances, table),
            pair_distance=float(distances.min(initial=np.inf)),
            sample_distances=sample_distances,
            sample_masks=self.samples[sample_slice, positions],
        )

    def _closest_pair(
        self,
        distances: FloatArray,
        table: NeighborTable,
    ) -> tuple[int, int] | None:
        """Return the source rows of the closest pair with different labels, or None.

        Args:
            distances: ``(num_positions,)`` distances to the nearest image with another label.
            table: The table whose ``other_label_positions`` belong to ``distances``.
        """
        if not np.isfinite(distances).any():
            return None
        position = int(distances.argmin())
        partner = table.other_label_positions[position]
        first, second = sorted((int(self.source_rows[position]), int(self.source_rows[partner])))
        return first, second

    def _refine_minimum(self, distances: FloatArray, partners: AnyArray) -> None:
        """Compute again, in float64 and in place, all distances that may be the smallest.

        Args:
            distances: ``(num_positions,)`` distances to other images; infinite if there is no
                such image.
            partners: ``(num_positions,)`` positions of these other images.
        """
        limit = distances.min(initial=np.inf) * MINIMUM_TOLERANCE
        candidates = np.flatnonzero(np.isfinite(distances) & (distances <= limit))
        only_row = np.zeros(1, np.intp)
        for position in candidates.tolist():
            image = self._read(position)
            partner_image = self._read(int(partners[position]))
            squared = direct_squared_distances(image, partner_image, only_row, only_row)
            distances[position] = np.sqrt(squared[0])

    def _read(self, position: int) -> AnyArray:
        """Return the image with this position, as an array ``(1, num_features)``."""
        row = int(self.source_rows[position])
        return flatten(self.source.read(row, row + 1))


def search_images(
    row_check: RowCheck,
    image_labels: IntArray | None,
    train_sizes: Sequence[int],
    precision: Precision,
    settings: MeasureSettings,
    executor: Executor | None,
) -> SearchedImages:
    """Find the nearest neighbors of all distinct images at each train size.

    Args:
        row_check: The result of checking all images, which contains the distinct images.
        image_labels: ``(num_source_rows,)`` label of each image; None if there are no labels.
        train_sizes: Ascending train sizes, counted in images.
        precision: Precision and device of the products of floats.
        settings: Settings of the measure.
        executor: Executor of the search; None computes in this process.
    """
    distinct_rows = row_check.distinct_rows()
    # Number of distinct images among the first n images, for each size n.
    distinct_sizes = np.searchsorted(distinct_rows, train_sizes).tolist()
    source_rows = distinct_rows[: distinct_sizes[-1]]
    position_labels = None if image_labels is None else image_labels[source_rows]
    samples, sample_slices = stratified_samples(
        position_labels, distinct_sizes, settings.sharpness_sample, settings.sharpness_seeds
    )
    num_neighbors = table_width(settings.estimators, settings.num_neighbors)
    num_neighbors = min(num_neighbors, len(source_rows) - 1)
    neighbors = nested_neighbors(
        row_check.source,
        image_labels,
        distinct_sizes,
        max(num_neighbors, 1),
        executor=executor,
        precision=precision,
        block_rows=settings.block_rows,
        source_rows=source_rows,
        samples=samples,
    )
    return SearchedImages(
        source=row_check.source,
        source_rows=source_rows,
        labels=position_labels,
        neighbors=neighbors,
        samples=samples,
        sample_slices=sample_slices,
    )
