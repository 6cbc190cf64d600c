"""What a verification has found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..texts import shown


@dataclass(frozen=True)
class Finding:
    """One thing that was found in a bundle.

    Attributes:
        file: its path in the bundle; empty for the bundle as a whole.
        text: what it is, and what to do.
        refused: whether the bundle must not be used; False: nobody can tell.
    """

    file: str
    text: str
    refused: bool = True

    def line(self) -> str:
        """In one line, in which nothing that others have written does anything but be read."""
        return shown(f"{self.file}: {self.text}" if self.file else self.text)


@dataclass(frozen=True)
class Checked:
    """One line of the table.

    Attributes:
        what: was checked.
        said: how much of it, and by what.
        findings: what is not as it must be.
    """

    what: str
    said: str
    findings: Sequence[Finding] = field(default_factory=list)

    @property
    def state(self) -> str:
        """``ok``, ``unknown`` or ``REFUSED``."""
        if any(finding.refused for finding in self.findings):
            return "REFUSED"
        return "unknown" if self.findings else "ok"
