"""Detached signatures (Ed25519) over the SHA-256 of all files of a bundle, by the package ``cryptography``; offline."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_text
from ..json_files import read_object
from ..paths import as_path, read_text
from .findings import Checked, Finding

_FORMAT = "semsynth bundle signature 1"
MOST_KEY = 1 << 16
NONE = (
    "none: whoever exchanges weights and their card together, with a new hash, is seen by a signature alone "
    "(--signature, --public-key; docs/trust.md)"
)


def statement(hashes: Mapping[str, str]) -> bytes:
    """What is signed: a line per file, its SHA-256 and its path, sorted. A zip and its folder have the same."""
    return "\n".join([_FORMAT, *(f"{hashes[name]}  {name}" for name in sorted(hashes)), ""]).encode()


def sign_statement(message: bytes, key: str | Path, output: str | Path) -> Path:
    """Write a signature.

    Args:
        message: result of :func:`statement`.
        key: file of a private Ed25519 key (PEM, without a password).
        output: the file to write.

    Raises:
        InputError: for a file that is no such key; where ``output`` is there and is no signature.
    """
    target = as_path(output, "output")
    if target.exists() and not _is_signature(target):
        raise InputError(f"{target}: is there and is no signature; give another --output")
    private = _private_key(as_path(key, "key"))
    content = {
        "format": _FORMAT,
        "algorithm": "Ed25519",
        "public_key_sha256": _fingerprint(private.public_key()),
        "signature": base64.b64encode(private.sign(message)).decode("ascii"),
    }
    return write_text(target, json.dumps(content, indent=1) + "\n")


def check_signature(message: bytes, signature: str | Path | None, key: str | Path | None) -> Checked:
    """Whether somebody with the private part of a key has signed these very files.

    Args:
        message: result of :func:`statement`.
        signature: file of the signature; None: there is none.
        key: file of the public key (PEM), from whom one trusts, and not from where the bundle comes from.

    Raises:
        InputError: for one without the other; for files that are none of these.
    """
    if signature is None and key is None:
        return Checked("signature", "none", [Finding("", f"signature: {NONE}", refused=False)])
    if signature is None or key is None:
        raise InputError("--signature and --public-key go together: the signature that came with the bundle, and the "
                         "key of somebody you trust")  # fmt: skip
    public = _public_key(as_path(key, "public-key"))
    said = f"Ed25519 by the key {_fingerprint(public)[:16]}"
    path = as_path(signature, "signature")
    content = read_object(path, damaged="give what 'semsynth sign' wrote")
    try:
        value = base64.b64decode(str(content.get("signature", "")), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{path}: holds no signature; give what 'semsynth sign' wrote") from error
    if _verifies(public, value, message):
        return Checked("signature", said)
    other = content.get("public_key_sha256") not in (None, _fingerprint(public))
    reason = "it was made with another key" if other else "files were changed, added or removed since it was made"
    return Checked("signature", said, [Finding("", f"signature: does not hold for these files: {reason}")])


def _verifies(public: Any, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _is_signature(path: Path) -> bool:
    try:
        return read_object(path).get("format") == _FORMAT
    except InputError:
        return False


def _fingerprint(public: Any) -> str:
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()


def _private_key(path: Path) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = _pem(path, "load_pem_private_key", password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path}: is a key of another kind; make one with openssl genpkey -algorithm ed25519")
    return key


def _public_key(path: Path) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    key = _pem(path, "load_pem_public_key")
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path}: is a key of another kind; an Ed25519 key is needed")
    return key


def _pem(path: Path, loader: str, **options: Any) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise InputError(
            "signatures are made and checked by the package cryptography; pip install 'semsynth[trust]'"
        ) from error
    try:
        return getattr(serialization, loader)(read_text(path, MOST_KEY).encode(), **options)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such key") from error
    except (ValueError, TypeError, OSError, UnsupportedAlgorithm) as error:
        what = "private" if "private" in loader else "public"
        reason = f"no {what} key (PEM, without a password) that can be read"
        raise InputError(f"{path}: {reason}; see docs/trust.md") from error
