"""Find pairs of similar class names: one name may be a misspelling of the other name.

isweep only reports such names in a flag. It does not merge or reject them, because similar
names, such as ``typical`` and ``atypical``, may be two classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from shlex import quote

from search_spaces.errors import plural
from tasks.sources.tables import MAX_NAMED

MAX_COMPARED_CLASSES = 300
"""If there are more classes than this, class names are not compared. 1,000 classes have
500,000 pairs of names, and the comparison of all pairs would take seconds."""
MIN_WORD_LENGTH = 4
"""Words with fewer letters do not count as misspellings, because short words with different
letters, such as ``cat`` and ``bat``, are usually different classes."""
MIN_SINGULAR_LENGTH = 3
"""Words with fewer letters do not count as the singular of another word."""
WORD_BORDER = re.compile(r"[\W_]+|(?<=[^\W\d_A-Z])(?=[A-Z])")
"""Pattern of the border between two words: characters that are not letters or digits, or the
position before a capital letter, as in ``typeB``."""


def similar_class_flags(num_images: Mapping[str, int]) -> dict[str, int]:
    """Return flags for class names with a possible spelling error: flag -> number of images.

    Args:
        num_images: Name of a class -> its number of images.
    """
    flags = {}
    for name in num_images:
        if name != name.strip():
            option = quote(f"{name.strip()}={name.strip()}")
            flags[
                f"class name {name!r} with a blank at its start or end; to remove the blank, "
                f"set label_map (--label-map {option})"
            ] = num_images[name]
    if len(num_images) > MAX_COMPARED_CLASSES:
        return flags
    pairs = list(_similar_pairs(sorted(num_images)))
    for pair in pairs[:MAX_NAMED]:
        rare, common = sorted(pair, key=num_images.__getitem__)
        rare_text = f"{rare!r} ({plural(num_images[rare], 'image')})"
        names = f"{rare_text} and {common!r} ({plural(num_images[common], 'image')})"
        option = f"--label-map {quote(f'{rare}={common}')}"
        flags[f"similar class names {names}; if they are one class, set label_map ({option})"] = (
            num_images[rare] + num_images[common]
        )
    if len(pairs) > MAX_NAMED:
        flags["other pairs of similar class names"] = len(pairs) - MAX_NAMED
    return flags


def _similar_pairs(names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of names that differ in only one word, if the two words are similar."""
    words_by_name = {}
    for name in names:
        words_by_name[name] = list(map(str.casefold, WORD_BORDER.split(name)))
    for first, second in combinations(names, 2):
        words = words_by_name[first]
        other_words = words_by_name[second]
        if len(words) != len(other_words):
            continue
        pairs = [pair for pair in zip(words, other_words, strict=True) if pair[0] != pair[1]]
        if len(pairs) == 1 and are_similar(*pairs[0]):
            yield first, second


def are_similar(first: str, second: str) -> bool:
    """Return whether two different words differ by one letter, or are singular and plural.

    Two words differ by one letter if one letter is replaced, added or missing, or if two
    neighboring letters are swapped. Words are not similar if only their last letter is
    replaced, because ``typea`` and ``typeb`` are different classes.

    Args:
        first: A word in lower case.
        second: Another word in lower case.
    """
    short, long = sorted((first, second), key=len)
    plurals = (f"{short}s", f"{short}es")
    if len(short) >= MIN_SINGULAR_LENGTH and short.isalpha() and long in plurals:
        return True
    if len(short) < MIN_WORD_LENGTH or len(long) > len(short) + 1:
        return False
    num_equal = 0
    while num_equal < len(short) and short[num_equal] == long[num_equal]:
        num_equal += 1
    short_rest = short[num_equal:]
    long_rest = long[num_equal:]
    if len(short) < len(long):
        return long_rest[0].isalpha() and long_rest[1:] == short_rest
    # Numbers that differ by one digit, as in ``stage1`` and ``stage2``, are different classes.
    if len(short_rest) < 2 or not (short_rest[0].isalpha() and long_rest[0].isalpha()):
        return False
    is_replaced = short_rest[1:] == long_rest[1:]
    is_swapped = short_rest[1::-1] + short_rest[2:] == long_rest
    return is_replaced or is_swapped
