"""Raw trees of the medical datasets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.uid import RLELossless

from tests.raw_trees.dicoms import make_dicom, save_dicom
from tests.raw_trees.pictures import (
    blob,
    color_image,
    gray_image,
    save_image,
    save_nifti,
    save_xlsx,
)


def write_brats(folder: Path, seed: int, num_cases: int = 6) -> None:
    """Write HGG and LGG cases.

    One case has ``.nii`` files, one has another orientation, and one has no segmentation.
    """
    rng = np.random.default_rng(seed)
    root = folder / "MICCAI_BraTS_2018_Data_Training"
    for number in range(num_cases):
        name = f"Brats18_TCIA{number:02d}_{rng.integers(100, 999)}_1"
        case = root / ("HGG" if number % 3 else "LGG") / name
        flair, t2, segmentation = _brain(rng)
        for kind, values in (
            ("flair", flair),
            ("t2", t2),
            ("t1", t2),
            ("t1ce", t2),
            ("seg", segmentation),
        ):
            if number == 5 and kind == "seg":
                continue
            ending = ".nii" if number == 1 else ".nii.gz"
            flip = -1 if number == 2 else 1
            save_nifti(case / f"{name}_{kind}{ending}", values[::flip], np.diag((flip, 1, 1, 1)))


def _brain(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = np.array((60, 60, 44))
    positions = np.indices(shape) / shape[:, None, None, None] - 0.5
    brain = ((positions / np.array((0.4, 0.45, 0.45))[:, None, None, None]) ** 2).sum(0) < 1
    center = rng.uniform(-0.1, 0.1, 3)
    tumor = ((positions - center[:, None, None, None]) ** 2).sum(0) < 0.17**2
    t2 = np.where(brain, 300 + rng.normal(0, 20, shape), 0)
    flair = np.where(brain, 250 + rng.normal(0, 15, shape) + 200 * tumor, 0)
    segmentation = np.where(tumor & brain, np.where(rng.random(shape) < 0.5, 1, 4), 0)
    return flair.astype(np.int16), np.maximum(t2, 0).astype(np.int16), segmentation.astype(np.int16)


def write_dbc(folder: Path, seed: int, num_patients: int = 5, depth: int = 30) -> None:
    """Write breast MRI with classic names.

    One patient has descriptive names, one has MONOCHROME1, mapping rows of the series after contrast
    have no file, and files ``1-0NN`` are named ``1-NN``.
    """
    rng = np.random.default_rng(seed)
    root = folder / "manifest-1654812109500" / "Duke-Breast-Cancer-MRI"
    boxes: list[list[object]] = [
        [
            "Patient ID",
            "Start Row",
            "End Row",
            "Start Column",
            "End Column",
            "Start Slice",
            "End Slice",
        ]
    ]
    mapping: list[list[object]] = [
        ["original_path_and_filename", "classic_path", "sop_instance_UID", "descriptive_path"]
    ]
    for number in range(1, num_patients + 1):
        patient = f"Breast_MRI_{number:03d}"
        start = 10 + number
        end = 16 + number
        boxes.append([patient, 10, 20, 10, 20, start, end])
        for level in range(1, depth + 1):
            inside = start <= level < end
            values = (blob(rng, (48, 48), inside) * 12).astype(np.uint16)
            classic = f"Duke-Breast-Cancer-MRI/{patient}/1.3.6.1.{number}/1.3.6.1.{number}.9/1-{level:03d}.dcm"
            descriptive = (
                f"Duke-Breast-Cancer-MRI/{patient}/01-01-1990-NA-MRI BREAST-9{number}538/"
                f"3.000000-ax dyn pre-9{number}883/1-{level:02d}.dcm"
            )
            original = f"DICOM_Images/{patient}/pre/{patient}_pre_{level:04d}.dcm"
            instance = f"1.3.6.1.4.{number}.{level}"
            mapping.append([original, classic, instance, descriptive])
            mapping.append(
                [
                    original.replace("pre", "post_1"),
                    classic.replace(".9/", ".8/"),
                    "1.3",
                    descriptive,
                ]
            )
            photometric = "MONOCHROME1" if number == 2 else "MONOCHROME2"
            data = make_dicom(
                values, patient=patient, bits=12, photometric=photometric, SOPInstanceUID=instance
            )
            # The mapping has names with three digits, this download with two.
            stored = descriptive if number == 3 else classic.replace("/1-0", "/1-")
            save_dicom(root.parent / stored, data)
    save_xlsx(folder / "Annotation_Boxes.xlsx", boxes)
    save_xlsx(folder / "Breast-Cancer-MRI-filepath_filename-mapping.xlsx", mapping)


KNEE_VIEW = "Bilateral PA Fixed Flexion Knee"


def write_oai(folder: Path, seed: int, num_patients: int = 12) -> None:
    """Write bilateral radiographs without a file extension, and ``|`` tables.

    Some tables have sides such as ``1: Right``, one knee has no grade, one image has MONOCHROME1.
    """
    rng = np.random.default_rng(seed)
    lines = ["ID|SIDE|READPRJ|barcdBU|V00XRKL|V00XRJSM|V00XRJSL"]
    header = "Folder,ParticipantID,StudyDate,Barcode,SeriesDescription"
    contents = {release: [header] for release in ("0.C.2", "0.E.1")}
    for number in range(num_patients):
        patient = str(9000000 + 7 * number)
        grades = (rng.integers(0, 2), rng.integers(2, 5))[:: 1 if number % 2 else -1]
        for side, grade in zip((1, 2), grades, strict=True):
            label = str(side)
            if number % 3 == 0:
                label += ": Right" if side == 1 else ": Left"
            grade_text = "" if (number, side) == (4, 2) else str(grade)
            lines.append(f"{patient}|{label}|15|01660{number}|{grade_text}|0|0")
            lines.append(f"{patient}|{label}|37|01660{number}|0|0|0")
        values = _legs(rng, [int(grade) for grade in grades])
        photometric = "MONOCHROME1" if number == 1 else "MONOCHROME2"
        if photometric == "MONOCHROME1":
            values = values.max() - values
        release = "0.C.2" if number % 4 == 3 else "0.E.1"
        study_path = f"{patient}/20050411/0016{number:04d}"
        _save_radiograph(
            folder / "results" / "P001" / release / study_path / "001", values, patient, photometric
        )
        contents[release].append(f"{study_path},{patient},20050411,0016{number:04d},{KNEE_VIEW}")
    for release, rows in contents.items():
        (folder / "results" / "P001" / release / "contents.csv").write_text("\n".join(rows) + "\n")
    (folder / "kxr_sq_bu00.txt").write_text("\n".join(lines) + "\n")


def _save_radiograph(
    path: Path, values: np.ndarray, patient: str, photometric: str, view: str = KNEE_VIEW
) -> None:
    data = make_dicom(
        values,
        modality="CR",
        patient=patient,
        bits=12,
        photometric=photometric,
        spacing=(0.4, 0.4),
        SeriesDescription=view,
    )
    save_dicom(path, data)


def _legs(rng: np.random.Generator, grades: list[int]) -> np.ndarray:
    """Draw two bright legs with a dark joint gap, which is narrower for higher grades."""
    height = 700
    width = 900
    values = rng.normal(200, 20, (height, width))
    for side, grade in enumerate(grades):
        center = int(width * (0.25 + 0.5 * side) + rng.integers(-20, 20))
        joint = int(height * 0.5 + rng.integers(-60, 60))
        values[:, center - 90 : center + 90] += 1500
        gap = 16 - 3 * grade
        values[joint - gap // 2 : joint + gap // 2, center - 90 : center + 90] -= 1300
    return np.clip(values, 0, 4095).astype(np.uint16)


def write_chexpert(folder: Path, seed: int, num_patients: int = 30) -> None:
    """Write the small release with frontal and lateral views.

    Findings are uncertain, blank or explicitly negative, and ``1.0`` stands for 1.
    """
    rng = np.random.default_rng(seed)
    findings = ["No Finding", "Edema", "Pleural Effusion"]
    lines = ["Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(findings)]
    for number in range(1, num_patients + 1):
        for view, name in ((1, "frontal"), (2, "lateral"))[: 1 + number % 2]:
            path = f"CheXpert-v1.0-small/train/patient{number:05d}/study1/view{view}_{name}.jpg"
            effusion = ("1.0", "-1.0", "", "0.0")[number % 4]
            edema = ("", "1.0", "-1.0")[number % 3]
            lines.append(f"{path},Female,68,{name.title()},AP,,{edema},{effusion}")
            save_image(folder / path, gray_image(rng, (64, 70), effusion == "1.0"), "JPEG")
    (folder / "CheXpert-v1.0-small" / "train.csv").write_text("\r\n".join(lines) + "\r\n")


def write_mura(folder: Path, seed: int, num_patients: int = 24) -> None:
    """Write 8-bit gray images of several body parts in mixed sizes.

    One patient has RGB images, one has 16-bit PNG files, and the table has a hidden file.
    """
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(1, num_patients + 1):
        part = ("SHOULDER", "ELBOW", "HAND")[number * 3 // (num_patients + 1)]
        abnormal = number % 2 == 1
        for image in range(1, 3):
            study = f"study1_{'positive' if abnormal else 'negative'}"
            path = f"MURA-v1.1/train/XR_{part}/patient{number:05d}/{study}/image{image}.png"
            lines.append(path)
            shape = (60 + number, 50 + image)
            pixels = (
                color_image(rng, shape, abnormal)
                if number == 3
                else gray_image(rng, shape, abnormal)
            )
            if number == 4:
                pixels = (blob(rng, shape, abnormal) * 257).astype(np.uint16)
            save_image(folder / path, pixels)
    lines.append("MURA-v1.1/train/XR_HAND/patient00001/study1_positive/._image1.png")
    (folder / "MURA-v1.1" / "train_image_paths.csv").write_text("\n".join(lines) + "\n")
    studies = sorted({line.rpartition("/")[0] for line in lines})
    table = [f"{study}/,{int(study.endswith('positive'))}" for study in studies]
    (folder / "MURA-v1.1" / "train_labeled_studies.csv").write_text("\n".join(table) + "\n")


def write_rsna(folder: Path, seed: int, num_patients: int = 16) -> None:
    """Write signed and 12-bit unsigned CT slices, each with six rows in the table.

    Signed slices have padding below the field of view, and some rows are there twice.
    """
    rng = np.random.default_rng(seed)
    subtypes = (
        "epidural",
        "intraparenchymal",
        "intraventricular",
        "subarachnoid",
        "subdural",
        "any",
    )
    lines = ["ID,Label"]
    for number in range(num_patients):
        for level in range(3):
            name = f"ID_{rng.integers(16**8):08x}"
            bleeds = (number + level) % 2 == 1
            units = blob(rng, (48, 48), bleeds) * 4 - 100
            signed = number % 2 == 0
            values = units.astype(np.int16) if signed else (units + 1024).astype(np.uint16)
            if signed:
                values[:4] = -2000
            data = make_dicom(
                values,
                modality="CT",
                patient=f"ID_{number:08x}",
                bits=16 if signed else 12,
                RescaleSlope=1,
                RescaleIntercept=0 if signed else -1024,
                WindowCenter=30,
                WindowWidth=80,
            )
            save_dicom(folder / "stage_2_train" / f"{name}.dcm", data)
            rows = [
                f"{name}_{kind},{int(bleeds and kind in ('any', 'subarachnoid'))}"
                for kind in subtypes
            ]
            lines += rows * (2 if number == 0 else 1)
    (folder / "stage_2_train.csv").write_text("\n".join(lines) + "\n")


def write_prostate(folder: Path, seed: int, num_patients: int = 8) -> None:
    """Write multi-frame ultrasound.

    Some files are compressed by RLE, one score is blank, one series has two targets, and one folder
    has a descriptive name.
    """
    rng = np.random.default_rng(seed)
    header = [
        "Patient ID",
        "seriesInstanceUID_MR",
        "seriesInstanceUID_US",
        "Target No.",
        "ROI Volume (cc)",
    ]
    rows: list[list[object]] = [[*header, "UCLA Score (Similar to PIRADS v2)"]]
    root = folder / "manifest-1" / "Prostate-MRI-US-Biopsy"
    for number in range(num_patients):
        patient = f"Prostate-MRI-US-Biopsy-{number + 1:04d}"
        series = f"1.3.6.1.4.1.14519.5.2.1.{number}.{10_000 + 37 * number}"
        score = number % 6
        frames = np.stack([gray_image(rng, (48, 56), score >= 2) for _ in range(12)])
        data = make_dicom(
            frames,
            modality="US",
            patient=patient,
            series=series,
            bits=8,
            spacing=None,
            syntax=RLELossless if number % 3 == 0 else "1.2.840.10008.1.2.1",
        )
        study = f"1.3.6.1.4.1.14519.5.2.1.{number}"
        leaf = f"09-29-2012-NA-US Prostate-{series[-5:]}" if number == 5 else series
        save_dicom(root / patient / study / leaf / "1-1.dcm", data)
        rows.append([patient, f"1.3.{number}", series, 1, 0.4, float(score)])
        if number == 3:
            rows.append([patient, f"1.3.{number}", series, 2, 0.2, 1])
    rows.append([patient, "1.3.9", series, 2, 0.1, None])
    save_xlsx(folder / "Target Data_2019-12-05.xlsx", rows)
