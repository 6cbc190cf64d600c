"""Whether a bundle can be used: every check, before anything of it is loaded or evaluated."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import sha256
from ..paths import as_path
from ..texts import counted, shown
from .code import check_code
from .configs import SUFFIXES, check_configs, problems_in_text
from .contents import Contents, opened
from .findings import Checked, Finding
from .hashes import check_hashes, of_card
from .kinds import kinds_findings
from .logs import check_logging
from .names import WEIGHTS
from .signatures import check_signature, sign_statement, statement
from .tensors import check_weights, weights_findings
from .texts import NotPlainError, read_plain
from .volumes import check_volumes


@dataclass(frozen=True)
class Verdict:
    """What a verification says.

    Attributes:
        path: path of the bundle.
        checks: the lines of its table.
    """

    path: Path
    checks: Sequence[Checked]

    @property
    def findings(self) -> list[Finding]:
        """All that was found, what is refused first."""
        found = [finding for check in self.checks for finding in check.findings]
        return sorted(found, key=lambda finding: not finding.refused)

    @property
    def refused(self) -> bool:
        """Whether it must not be used."""
        return any(finding.refused for finding in self.findings)

    def words(self) -> str:
        """The verdict in plain words."""
        wrong = sum(finding.refused for finding in self.findings)
        open_ = len(self.findings) - wrong
        if wrong:
            return f"DO NOT USE IT: {counted(wrong, 'reason')} below"
        told = f", and {counted(open_, 'thing')} below that cannot be checked" if open_ else ""
        return f"nothing wrong was found{told}"

    def text(self) -> str:
        """The table, what was found, and the verdict."""
        width = max(len(check.what) for check in self.checks)
        lines = [f"  {check.state:8}{check.what:{width}}  {shown(check.said)}" for check in self.checks]
        lines += ["", *(f"  - {'REFUSED' if f.refused else 'unknown'}: {f.line()}" for f in self.findings)]
        return "\n".join([f"{shown(self.path)}: {self.words()}", *lines]).rstrip()


def verify(path: str | Path, *, signature: str | Path | None = None, public_key: str | Path | None = None) -> Verdict:
    """Check a bundle, or one file of weights, without loading or evaluating anything of it.

    Args:
        path: a bundle's folder, a packed bundle (zip), or a file of weights.
        signature: file that ``semsynth sign`` wrote.
        public_key: file of the key of somebody who is trusted.

    Raises:
        InputError: for a path that is none of these; for a signature without a key; for a file that is no key.

    Examples:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     weights = Path(folder, "model.pt")
        ...     torch.save({"weight": torch.ones(2, 2)}, weights)
        ...     verdict = verify(weights)
        >>> verdict.refused, [checked.what for checked in verdict.checks]
        (False, ['card', 'weights', 'signature'])
    """
    place = _place(path)
    if _is_weights(place):
        return Verdict(place, _of_weights(place, signature, public_key))
    with opened(place) as contents:
        return Verdict(place, _of_bundle(contents, place, signature, public_key))


def sign(path: str | Path, key: str | Path, output: str | Path) -> Path:
    """Write a detached signature of a bundle, or of one file of weights.

    Args:
        path: as in :func:`verify`; a bundle that it refuses for another reason than unknown code is not signed.
        key: file of a private Ed25519 key.
        output: the file to write, outside the bundle.

    Raises:
        InputError: as :func:`verify`; for a bundle that is refused; for an output inside the bundle.
    """
    place, target = _place(path), as_path(output, "output")
    if place.is_dir() and target.resolve().is_relative_to(place.resolve()):
        raise InputError(f"{target}: would be a file of the bundle that it signs; give an --output outside it")
    with _hashes(place) as (hashes, checks):
        wrong = [finding for check in checks for finding in check.findings if finding.refused]
        if wrong:
            raise InputError(f"{place}: is not signed, since it would be refused", [one.line() for one in wrong])
        return sign_statement(statement(hashes), key, target)


def _place(path: str | Path) -> Path:
    place = as_path(path, "path")
    if not (place.is_dir() or place.is_file()):  # a pipe has no end
        raise InputError(f"{place}: no such bundle; give its folder, a packed bundle (zip) or a file of weights")
    return place


def _is_weights(place: Path) -> bool:
    return place.is_file() and place.name.lower().endswith(WEIGHTS)


@contextmanager
def _hashes(place: Path) -> Iterator[tuple[Mapping[str, str], Sequence[Checked]]]:
    """What a signature is about, and the checks that need none."""
    if _is_weights(place):
        yield {"": sha256(place)}, _of_weights(place, None, None)
        return
    with opened(place) as contents:
        yield _hashes_of(contents), [check for check in _of_bundle(contents, place, None, None) if check.what != "code"]


def _hashes_of(contents: Contents) -> dict[str, str]:
    return {name: sha256(path) for name, path in contents.files.items()}


def _of_weights(path: Path, signature: str | Path | None, key: str | Path | None) -> list[Checked]:
    card = path.with_suffix(".json")
    files = {file.name: file for file in (path, card) if file.is_file()}
    found = sha256(path)
    return [
        Checked("card", card.name if card.is_file() else "none", of_card(path.name, files, found)),
        Checked("weights", "tensors only", weights_findings(path, path.name)),
        check_signature(statement({"": found}), signature, key),
    ]


def _of_bundle(contents: Contents, place: Path, signature: str | Path | None, key: str | Path | None) -> list[Checked]:
    structure = _structure(contents)
    if contents.packed and not contents.files:
        return [structure]  # of a zip whose table is wrong nothing is unpacked
    if not any(name.startswith("configs/") for name in contents.files):
        raise InputError(f"{place}: no configs in it; give a bundle's folder, a packed bundle or a file of weights")
    with _quiet():
        signed = check_signature(statement(_hashes_of(contents)), signature, key)
        is_signed = signature is not None and not signed.findings
        return [
            structure, *check_hashes(contents), check_weights(contents), _configs(contents), _logging(contents),
            check_volumes(contents), check_code(contents, signed=is_signed), signed,
        ]  # fmt: skip


def _structure(contents: Contents) -> Checked:
    findings = [*contents.findings, *kinds_findings(contents)]
    size = sum(path.stat().st_size for path in contents.files.values())
    left = f"; not looked at, as what runs leave: {', '.join(contents.left_out)}" if contents.left_out else ""
    return Checked("paths, sizes", f"{len(contents.files)} files, {size / 1e6:.1f} MB{left}", findings)


def _configs(contents: Contents) -> Checked:
    names = [name.removeprefix("configs/") for name in contents.ending(*SUFFIXES) if name.startswith("configs/")]
    findings = check_configs(contents.root, names, packed=contents.packed)
    others = [name for name in contents.ending(*SUFFIXES) if not name.startswith(("configs/", "scripts/semsynth/"))]
    for name in others:  # cards say how a network is built, and whoever does that looks for a target
        try:
            content = read_plain(contents.files[name])
        except NotPlainError as error:
            findings.append(Finding(name, f"{error}; take the bundle's own"))
            continue
        findings += [Finding(name, text) for text in problems_in_text(content)]
    return Checked("configs", f"{len(names)} files, read and not evaluated", findings)


def _logging(contents: Contents) -> Checked:
    files = contents.ending(".conf")
    findings = [finding for name, path in files.items() for finding in check_logging(path, name)]
    return Checked("logging", f"{len(files)} files, handlers of Python's own", findings)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of what is read: they would name files of a temporary folder."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
