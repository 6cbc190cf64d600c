"""A bundle that is about to run: what it would evaluate, import and configure is judged first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from .code import INSTALLED, is_known
from .configs import check_configs
from .findings import Finding
from .logs import check_logging
from .names import CODE

_IMPORTED = (".py", ".pyc", ".pyo", ".pyw", ".pyd", ".so")


def refuse_bundle(bundle: str | Path, *files: str) -> None:
    """Raise, before anything of a bundle is evaluated or imported, for what no bundle needs: it may do anything.

    Args:
        bundle: its folder.
        files: names below ``configs`` of what is to be evaluated; those that are not there are passed over.

    Raises:
        InputError: naming every value of the configs, every line of a ``logging.conf`` and every file of Python that is
            not allowed.
    """
    folder = Path(bundle)
    configs = folder / "configs"
    found = check_configs(folder, [name for name in dict.fromkeys(files) if (configs / name).is_file()])
    for path in sorted(configs.glob("*.conf")):  # MONAI's command line takes it by itself
        found += check_logging(path, f"configs/{path.name}")
    found += _imported(folder)
    if found:
        raise InputError(
            f"{folder}: is not run, as it does or names what a bundle does not need (docs/trust.md); take the bundle's "
            "own files",
            [finding.line() for finding in found],
        )


def _imported(folder: Path) -> Iterator[Finding]:
    """Python in a bundle that is not of the package installed here.

    While a bundle runs, Python looks into its folder before it looks for installed packages: ``numpy.py`` would run.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if f"{path.name}/" == CODE:
            yield from _unknown(folder, path)
        elif path.name.lower().endswith(_IMPORTED) or (path.is_dir() and any(path.glob("__init__.*"))):
            yield Finding(path.name, "would be imported in the place of an installed package; remove it")


def _unknown(folder: Path, scripts: Path) -> Iterator[Finding]:
    if INSTALLED.is_relative_to(scripts.resolve()):
        return  # it runs already
    for path in sorted(scripts.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.lower().endswith((".pyc", ".pyo")):
            yield Finding(name, "compiled Python, which Python prefers to its source; remove the folder __pycache__")
        elif name.lower().endswith(_IMPORTED) and not is_known(name, path):
            yield Finding(name, "Python that is not of the semsynth which is installed here; install the version that "
                                "the bundle was packed with")  # fmt: skip
