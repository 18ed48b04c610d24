"""Drawn pictures and file writers that the raw trees share."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def blob(
    rng: np.random.Generator, shape: tuple[int, int], bright: bool, noise: float = 6.0
) -> np.ndarray:
    """Draw a noisy body with or without a bright spot, float in [0, 255]."""
    rows, columns = np.indices(shape) / np.array(shape)[:, None, None]
    body = 90 * (((rows - 0.5) / 0.45) ** 2 + ((columns - 0.5) / 0.4) ** 2 < 1)
    row, column = rng.uniform(0.35, 0.65, 2)
    spot = 110 * np.exp(-(((rows - row) ** 2 + (columns - column) ** 2) / 0.01)) * bright
    return np.clip(body + spot + rng.normal(0, noise, shape) + rng.uniform(10, 30), 0, 255)


def gray_image(rng: np.random.Generator, shape: tuple[int, int], bright: bool) -> np.ndarray:
    return blob(rng, shape, bright).astype(np.uint8)


def color_image(rng: np.random.Generator, shape: tuple[int, int], bright: bool) -> np.ndarray:
    return np.stack([gray_image(rng, shape, bright) for _ in range(3)], axis=-1)


def save_image(path: Path, pixels: np.ndarray, image_format: str | None = None, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format=image_format, **options)


def png(pixels: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", **options)
    return stream.getvalue()


def jpeg_cmyk(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(stream, format="JPEG")
    return stream.getvalue()


def save_xlsx(path: Path, rows: list[list[object]]) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


def edit_xlsx(path: Path, change: Callable[[Any], object]) -> None:
    """Apply ``change`` to a workbook's first sheet, and save the workbook."""
    import openpyxl

    book = openpyxl.load_workbook(path)
    change(book.active)
    book.save(path)


def save_nifti(
    path: Path, values: np.ndarray, affine: np.ndarray | None = None, **header: object
) -> Path:
    import nibabel

    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path
