"""What a look at a sweep needs of each result, kept beside the root so that not every record is read again.

The index is a cache of one root: lines that are appended, each with a checksum, each about a record file of a
certain size and time. A line that is torn, or whose file has changed, counts for nothing, and the whole file
may always be thrown away: what it lacks is read from the store. No number of a table comes from it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.results.records import TrialRecord, missing
from search_spaces.trials import Measurement, TrialSpec
from tasks.atomic import read_whole, write_atomic
from tasks.trials.result import TrialStatus

log = logging.getLogger(__name__)

VERSION = f"outlines 1, records {TrialRecord.version}"
"""Of the lines; an index of another one is made anew."""


@dataclass(frozen=True, slots=True)
class TrialOutline:
    """What decides whether a result counts, and what its trial cost; attributes as of :class:`TrialRecord`.

    Attributes:
        has_weights: Whether the trained network is kept.
        has_predictions: Whether its predictions are.
        peak_bytes: What the whole batches of its process took on a card; 0 where that is not known.
    """

    trial_id: str
    spec: TrialSpec
    data_fingerprint: str
    status: TrialStatus
    device: str
    num_threads: int
    gpu_share: float
    started_at: float
    finished_at: float
    measured_at: float | None
    has_weights: bool
    has_predictions: bool
    gpu_name: str
    peak_bytes: int

    @property
    def on_gpu(self) -> bool:
        """Whether it ran on a card."""
        return self.device.startswith("cuda")

    def lacks(self, asked: TrialSpec) -> tuple[Measurement, ...]:
        """See :meth:`TrialRecord.lacks`."""
        return missing(self.spec, asked, kept_without=self.has_weights and not self.has_predictions)

    @classmethod
    def of(cls, record: TrialRecord) -> TrialOutline:
        """Return the outline of a record."""
        result = record.result
        return cls(
            trial_id=record.trial_id,
            spec=record.spec,
            data_fingerprint=record.data_fingerprint,
            status=result.status,
            device=result.device,
            num_threads=result.num_threads,
            gpu_share=record.gpu_share,
            started_at=record.started_at,
            finished_at=record.finished_at,
            measured_at=record.measured_at,
            has_weights=result.weights is not None,
            has_predictions=result.predictions is not None,
            gpu_name=record.gpu_name,
            peak_bytes=result.peak_memory_bytes if result.micro_batch is None else 0,
        )


Stamped = tuple[str, TrialOutline]
"""An outline with the stamp of the file that it was read from."""


@dataclass
class OutlineIndex:
    """The index of one sweep at ``path``; it may be missing, and may be of a root that cannot be written.

    Attributes:
        known: Outlines with their stamps, by trial id.
    """

    path: Path
    known: dict[str, Stamped] = field(default_factory=dict)
    _families: dict[str, TrialSpec] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, path: Path) -> OutlineIndex:
        """Read what is whole of an index."""
        index = cls(path)
        try:
            first, *lines = read_whole(path).split(b"\n")
            if _payload(first) != VERSION:
                return index
        except (OSError, ValueError):
            return index
        for line in lines:
            try:
                index._take(_payload(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # torn, or its family is: the record is read instead
        return index

    def add(self, found: Iterable[Stamped]) -> None:
        """Append outlines; that they cannot be kept costs time at the next look and nothing else."""
        lines = [line for stamped in found if stamped[0] for line in self._learn(stamped)]
        if not lines or not self.path.parent.is_dir():
            return
        try:
            if not self.path.exists():
                write_atomic(self.path, _line(VERSION), durable=False)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
            try:
                os.write(descriptor, b"".join(lines))
            finally:
                os.close(descriptor)
        except OSError as error:
            log.info("the index %s cannot be written: %s", self.path, error)

    def renew(self, found: Iterable[Stamped]) -> None:
        """Make the index anew; see :meth:`add` for when it cannot be."""
        self.known, self._families = {}, {}
        lines = [_line(VERSION), *(line for stamped in found for line in self._learn(stamped))]
        try:
            write_atomic(self.path, b"".join(lines), durable=False)
        except OSError as error:
            log.info("the index %s cannot be written: %s", self.path, error)

    def _learn(self, stamped: Stamped) -> Iterator[bytes]:
        """Know an outline, and yield the lines that say it, with its family's where that is new."""
        stamp, outline = stamped
        if self.known.get(outline.trial_id, ("",))[0] == stamp:
            return
        self.known[outline.trial_id] = stamped
        network = outline.spec.network
        family = _family(outline.spec)
        text = family.model_dump_json()
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        if key not in self._families:
            self._families[key] = family
            yield _line({"family": key, "of": text})
        values = [getattr(outline, name) for name in _VALUES]
        yield _line([stamp, key, network.train_size, network.seed, *values])

    def _take(self, payload: Any) -> None:
        """Learn what a line says."""
        if isinstance(payload, dict):
            self._families[payload["family"]] = TrialSpec.model_validate_json(payload["of"])
            return
        stamp, key, train_size, seed, *values = payload
        fields = dict(zip(_VALUES, values, strict=True))
        fields["status"] = TrialStatus(fields["status"])
        outline = TrialOutline(spec=_member(self._families[key], train_size, seed), **fields)
        self.known[outline.trial_id] = (str(stamp), outline)


_VALUES = tuple(name for name in TrialOutline.__slots__ if name != "spec")


def _family(spec: TrialSpec) -> TrialSpec:
    """Return what thousands of trials share: their spec but for the train size and the seed."""
    return _member(spec, 2, 0)


def _member(spec: TrialSpec, train_size: int, seed: int) -> TrialSpec:
    network = spec.network.model_copy(update={"train_size": train_size, "seed": seed})
    return spec.model_copy(update={"network": network})


def _line(payload: Any) -> bytes:
    text = json.dumps(payload, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _payload(line: bytes) -> Any:
    """Return what a line says.

    Raises:
        ValueError: when it is torn.
    """
    checksum, _, text = line.partition(b" ")
    if len(checksum) != 8 or int(checksum, 16) != zlib.crc32(text):
        raise ValueError("torn")
    return json.loads(text)
