"""Audits that were made of synthetic volumes: what they found, and whether they cover these volumes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import sha256
from ..json_files import read_object
from ..paths import as_path

logger = logging.getLogger(__name__)
AUDIT = "audit.json"
COPIES_FOUND, NO_SIGN_FOUND, CANNOT_TELL = "copies found", "no sign found", "cannot tell"
NOT_AUDITED = "not audited"
VERDICTS = (COPIES_FOUND, NO_SIGN_FOUND, CANNOT_TELL)


@dataclass(frozen=True)
class Audit:
    """What ``semsynth audit`` wrote.

    Attributes:
        verdict: one of :data:`VERDICTS`.
        reasons: sentences.
        volumes: SHA-256 of every synthetic volume that was audited.
        weights: SHA-256 of the generators' weights that these volumes name.
        sha256: SHA-256 of the file itself.
    """

    verdict: str
    reasons: tuple[str, ...]
    volumes: frozenset[str]
    weights: frozenset[str]
    sha256: str

    def missing(self, volumes: Mapping[str, str] | Iterable[Path]) -> list[str]:
        """The volumes that were not audited, by name.

        Args:
            volumes: name → SHA-256 of the file, or files, which are then read.
        """
        known = volumes if isinstance(volumes, Mapping) else {path.name: sha256(path) for path in volumes}
        return [name for name, digest in known.items() if digest not in self.volumes]

    def record(self) -> dict[str, object]:
        """What a card says of it."""
        return {"verdict": self.verdict, "reasons": list(self.reasons), "audit_sha256": self.sha256}


def read_audit(source: str | Path) -> Audit:
    """The audit in a folder, or of an ``audit.json``.

    Raises:
        InputError: for a file that is missing or no audit.

    Examples:
        >>> import json
        >>> from tempfile import TemporaryDirectory
        >>> said = {"verdict": NO_SIGN_FOUND, "reasons": [], "volumes_sha256": ["0" * 64], "weights_sha256": []}
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, AUDIT).write_text(json.dumps(said))  # as semsynth audit writes it
        ...     audit = read_audit(folder)
        >>> audit.verdict, audit.missing({"P1": "0" * 64, "P2": "1" * 64})
        ('no sign found', ['P2'])
    """
    path = as_path(source, "audit")
    path = path / AUDIT if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path}: no such audit; make it with 'semsynth audit'")
    content = read_object(path, damaged="make it again with 'semsynth audit'")
    said, reasons = content.get("verdict"), content.get("reasons")
    volumes, weights = content.get("volumes_sha256"), content.get("weights_sha256")
    if said not in VERDICTS or not all(_are_texts(one) for one in (reasons, volumes, weights)):
        raise InputError(f"{path}: is no audit of synthetic volumes; make it with 'semsynth audit'")
    assert isinstance(reasons, list) and isinstance(volumes, list) and isinstance(weights, list)
    return Audit(str(said), tuple(reasons), frozenset(volumes), frozenset(weights), sha256(path))


def given_audit(source: str | Path | None, *, despite: bool = False) -> Audit | None:
    """The audit that an export is given, which long work asks for before it begins; None without one.

    Raises:
        InputError: as :func:`read_audit`; for ``despite`` without an audit.
    """
    if source is None and despite:
        raise InputError(
            "--despite-audit (of bundles --despite_audit) goes with --audit, the folder of the audit that found copies"
        )
    return None if source is None else read_audit(source)


def passed(
    source: str | Path | None, volumes: Mapping[str, str] | Iterable[Path], *, despite: bool = False
) -> dict[str, object]:
    """What an export records of the audit of the volumes that it shares; copies that were found stop it.

    Args:
        source: the audit; None: there is none, which is recorded and warned of.
        volumes: as in :meth:`Audit.missing`.
        despite: share volumes although copies were found, which is recorded.

    Raises:
        InputError: as in :func:`given_audit`; for an audit that does not cover all volumes, or that found copies,
            unless ``despite``.

    Examples:
        >>> passed(None, {"P1": "0" * 64})  # no audit: recorded, and warned of
        {'verdict': 'not audited'}
    """
    audit = given_audit(source, despite=despite)
    if audit is None:
        logger.warning("these volumes were not audited; run 'semsynth audit' on them before they are shared")
        return {"verdict": NOT_AUDITED}
    missing = audit.missing(volumes)
    if missing:
        raise InputError(f"{source}: this audit does not cover {len(missing)} of the volumes; audit them too", missing)
    if audit.verdict == COPIES_FOUND and not despite:
        raise InputError(
            f"{source}: copies of training scans were found in these volumes; leave those out that it flags and audit "
            "the others, or give --despite-audit (of bundles --despite_audit True), which is recorded",
            audit.reasons,
        )
    return audit.record() | ({"despite": True} if audit.verdict == COPIES_FOUND else {})


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
