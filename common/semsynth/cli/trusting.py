"""The commands of ``semsynth`` about trust: whether a bundle may be used; their docstrings are their help."""

from __future__ import annotations

from .datasets import FailedCheck
from .options import FilePath


def verify(*, path: FilePath, signature: FilePath | None = None, public_key: FilePath | None = None) -> str:
    """Whether a bundle can be used, before anything of it is loaded or evaluated.

    semsynth verify PATH. Files are compared with their hashes, weights are inspected, configs are read and not
    evaluated, paths, sizes, logging and Python are checked (docs/trust.md). The exit status is 0 where nothing wrong
    was found, 1 where it must not be used, 2 for wrong usage. What cannot be checked, such as weights without a card,
    is printed.

    Args:
        path: a bundle's folder, a packed bundle (zip), or one file of weights.
        signature: file that semsynth sign wrote; needs pip install 'semsynth[trust]'.
        public_key: Ed25519 key (PEM) of a person you trust, received from them apart from the bundle.
    """
    from ..trust.verify import verify as run

    verdict = run(str(path), signature=signature, public_key=public_key)
    if verdict.refused:
        raise FailedCheck(verdict.text())
    return verdict.text()


def sign(*, path: FilePath, key: FilePath, output: FilePath) -> str:
    """A detached signature of a bundle or a file of weights, by which others can check that no part was exchanged.

    semsynth sign PATH --key FILE --output FILE. Needs pip install 'semsynth[trust]'. How keys are made: docs/trust.md.

    Args:
        path: a bundle's folder, a packed bundle (zip), or one file of weights; what verify refuses is not signed.
        key: file of a private Ed25519 key (PEM, without a password).
        output: the file to write, outside the bundle.
    """
    from ..trust.verify import sign as run

    return str(run(str(path), str(key), str(output)))
