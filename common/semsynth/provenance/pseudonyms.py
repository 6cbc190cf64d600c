"""Case names in cards: keyed, so that only whoever holds the institution's key can tell which case is meant.

A plain or publicly salted hash of a name protects nothing: names are few and short (``pt_1`` …), and whoever guesses
them all has them all back in a moment. HMAC-SHA256 (RFC 2104) with a key that never leaves the institution cannot be
guessed at without that key.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from ..errors import InputError

VARIABLE = "SEMSYNTH_PSEUDONYM_KEY"
FILE_VARIABLE = f"{VARIABLE}_FILE"
SHORTEST = 16


def pseudonym_key() -> bytes | None:
    """The institution's key, of the environment variable or of the file that the other one names; None without.

    Raises:
        InputError: for a file that cannot be read, or a key of fewer than 16 bytes.
    """
    text, file = os.environ.get(VARIABLE), os.environ.get(FILE_VARIABLE)
    if text is None and file is None:
        return None
    if text is not None:
        key, where = text.strip().encode(), VARIABLE
    else:
        where = f"{FILE_VARIABLE}={file}"
        try:
            key = Path(str(file)).expanduser().read_bytes().strip()
        except OSError as reason:
            raise InputError(f"{where}: the key cannot be read ({reason.strerror}); correct the path") from reason
    if len(key) < SHORTEST:
        raise InputError(
            f"{where}: a key of {len(key)} bytes can be guessed, {SHORTEST} or more are needed; make one with "
            "python -c 'import secrets; print(secrets.token_hex(32))' and keep it"
        )
    return key


def pseudonym(name: str, key: bytes) -> str:
    """A case's name under a key: 32 hexadecimal digits.

    Examples:
        >>> key = b"sixteen bytes or more"
        >>> len(pseudonym("pt_1", key)), pseudonym("pt_1", key) == pseudonym("pt_2", key)
        (32, False)
    """
    return hmac.new(key, f"semsynth case:{name}".encode(), hashlib.sha256).hexdigest()[:32]


def key_id(key: bytes) -> str:
    """What tells one key from another without telling the key: 8 hexadecimal digits.

    Examples:
        >>> len(key_id(b"sixteen bytes or more"))
        8
    """
    return hmac.new(key, b"semsynth key", hashlib.sha256).hexdigest()[:8]
