"""Decide whether the top folders of a raw folder are classes or groups."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from search_spaces.specs import Layout
from tasks.sources.base import RawRequest
from tasks.sources.class_folders.paths import ImagePath
from tasks.sources.dicom import read_header
from tasks.sources.own.groups import plain_id
from tasks.sources.own.words import PLACEHOLDERS
from tasks.sources.pictures import is_image_name
from tasks.sources.raw import RawTree

MAX_CLASSES_BELOW_GROUPS = 20
"""If the subfolders have more different names than this, they are patients and not classes, so
the layout is ``class/group``."""
MAX_HEADERS = 200
"""Number of DICOM headers that are read to choose the layout. Each subfolder gets an equal
share of these headers, and at least one."""


class LayoutChoice(NamedTuple):
    """The layout of a raw folder.

    Attributes:
        layout: ``class/group`` if the top folders are classes; ``group/class`` if they are
        groups.
        flags: A flag if patient ids in DICOM headers decided the layout.
    """

    layout: Layout
    flags: tuple[str, ...] = ()


def choose_layout(
    image_paths: Sequence[ImagePath], tree: RawTree, request: RawRequest
) -> LayoutChoice:
    """Choose whether the top folders are classes or groups.

    Raises:
        DataError: The layout is unclear.
    """
    if request.dataset.layout is not None:
        return LayoutChoice(request.dataset.layout)
    tops_by_subfolder: defaultdict[str | None, set[str]] = defaultdict(set)
    for image in image_paths:
        tops_by_subfolder[image.first_subfolder].add(image.top)
    # If all three conditions hold, the subfolders may be the classes.
    all_in_subfolders = None not in tops_by_subfolder
    has_few_subfolder_names = 1 < len(tops_by_subfolder) <= MAX_CLASSES_BELOW_GROUPS
    every_name_is_shared = all(len(tops) > 1 for tops in tops_by_subfolder.values())
    if not (all_in_subfolders and has_few_subfolder_names and every_name_is_shared):
        return LayoutChoice("class/group")
    layout = _layout_by_headers(image_paths, tree, request)
    if layout is None:
        tops = set().union(*tops_by_subfolder.values())
        raise request.error(
            f"the same {len(tops_by_subfolder)} subfolder names occur in {len(tops)} top "
            "folders, so it is unclear whether the top folders or the subfolders are the "
            "classes",
            hint="If the top folders are the classes, set `layout: class/group` (--layout). "
            "If the subfolders are the classes, set `layout: group/class`. If the top "
            "folders are folds, use the path of one fold",
        )
    return LayoutChoice(layout, (f"layout {layout}, by the patient ids in DICOM headers",))


def _layout_by_headers(
    image_paths: Sequence[ImagePath], tree: RawTree, request: RawRequest
) -> Layout | None:
    """Return the layout in which every patient of the DICOM headers has one group folder.

    The table shows how the layout follows from the folders of each patient's images.

    =======================  ==========================  =================================
    each patient has images  each patient has images in  layout
    in one top folder only   subfolders of one name only
    =======================  ==========================  =================================
    yes                      no                          group/class
    no                       yes                         class/group
    yes                      yes                         None: both are possible
    no                       no                          None: the headers contradict both
    =======================  ==========================  =================================

    The layout is also None if there are fewer than two patients, or if a patient id is missing
    or a placeholder.
    """
    tops_by_patient: defaultdict[str, set[str]] = defaultdict(set)
    subfolders_by_patient: defaultdict[str, set[str | None]] = defaultdict(set)
    for image in _images_with_headers(image_paths):
        header = read_header(request.base(), tree.locator(image.name))
        patient = plain_id(header.patient) if header else ""
        if patient in PLACEHOLDERS:
            return None
        tops_by_patient[patient].add(image.top)
        subfolders_by_patient[patient].add(image.first_subfolder)
    if len(tops_by_patient) < 2:
        return None
    each_has_one_top = all(len(tops) == 1 for tops in tops_by_patient.values())
    have_one_subfolder = all(len(names) == 1 for names in subfolders_by_patient.values())
    if each_has_one_top and not have_one_subfolder:
        return "group/class"
    if have_one_subfolder and not each_has_one_top:
        return "class/group"
    return None


def _images_with_headers(image_paths: Sequence[ImagePath]) -> Iterator[ImagePath]:
    """Yield about :data:`MAX_HEADERS` DICOM images, with an equal share of each subfolder."""
    num_yielded: Counter[tuple[str, str | None]] = Counter()
    num_folders = len({(image.top, image.first_subfolder) for image in image_paths})
    max_per_folder = max(MAX_HEADERS // num_folders, 1)
    for image in image_paths:
        folder = image.top, image.first_subfolder
        # All images except pictures are DICOM files, even images without a file extension.
        if num_yielded[folder] < max_per_folder and not is_image_name(image.name):
            num_yielded[folder] += 1
            yield image
