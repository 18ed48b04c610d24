"""The semi-synthetic set mri_lesion with dials: contrast and size of the lesions, flips, pixel scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample
from tasks.sources.dials import dial, flipped, scaled
from tasks.sources.mri_lesion import brain_mask, label_items, render_slice, template


class Lesions:
    """Label 1 = lesion blended in; group = variation."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per slice; whether it is drawn with a lesion stands in its details."""
        items = label_items(int(dial(request, "variations")))
        labels = flipped(np.array([item.label for item in items], np.int64), request)
        return Listing(
            [
                replace(item, label=int(label), details=(item.label,))
                for item, label in zip(items, labels, strict=True)
            ],
            request.dataset.label_names,
            dtype="uint8" if dial(request, "pixel_scale") == 1 else "float32",
            block_size=700,
            intensity="template scaled to [0, 255], gamma and shading drawn per variation",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader that renders one slice."""
        volume, brain = template("t1"), brain_mask()
        contrast, size = dial(request, "contrast"), dial(request, "size")

        def read(item: Item) -> tuple[Sample]:
            variation, index = map(int, item.locator.split("/"))
            pixels = render_slice(
                volume, brain, variation, index, lesion=item.details[0] == 1, contrast=contrast, size=size
            )
            return (Sample(scaled(pixels, request)),)

        return read
