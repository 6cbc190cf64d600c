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
        text: description and remedy.
        refused: True where the bundle must not be used; False where that cannot be checked.
    """

    file: str
    text: str
    refused: bool = True

    def line(self) -> str:
        """The finding in one line, with characters that could do harm in a terminal escaped."""
        return shown(f"{self.file}: {self.text}" if self.file else self.text)


@dataclass(frozen=True)
class Checked:
    """One line of the table.

    Attributes:
        what: was checked.
        said: extent of the check, and its means.
        findings: faults that were found.
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
