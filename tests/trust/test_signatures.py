"""A signature shows what hashes cannot: that weights and their card were exchanged together."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from bundles_of_enemies import configured, good_bundle, packed, write_weights
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from semsynth.cli.main import main
from semsynth.errors import InputError
from semsynth.trust.verify import sign, verify

PEM = serialization.Encoding.PEM


def keys(folder: Path, name: str = "key", key=None) -> tuple[Path, Path]:
    """Files of a private key and its public one."""
    key = Ed25519PrivateKey.generate() if key is None else key
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A packed bundle, its signature and the public key."""
    private, public = keys(tmp_path)
    bundle = packed(good_bundle(tmp_path / "bundle"))
    return bundle, sign(bundle, private, tmp_path / "signature.json"), public


def test_zip_and_folder_have_one_signature_by_the_command_line(signed, tmp_path, capsys):
    bundle, signature, public = signed
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(tmp_path / "here")
    for path in (bundle, tmp_path / "here" / "bundle"):
        arguments = ["verify", str(path), "--signature", str(signature), "--public-key", str(public)]
        assert main(arguments) == 0
        assert "nothing wrong was found\n" in capsys.readouterr().out
    arguments = ["sign", str(bundle), "--key", str(tmp_path / "key.pem"), "--output", str(tmp_path / "again.json")]
    assert main(arguments) == 0
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(signature.read_text())


def test_a_consistent_exchange_is_seen_by_the_signature_alone(signed, tmp_path):
    _, signature, public = signed
    write_weights(tmp_path / "bundle" / "models" / "model.pt", 2.0)
    exchanged = packed(tmp_path / "bundle")
    without = verify(exchanged)
    assert not without.refused
    assert (
        "whoever exchanges weights and their card together, with a new hash, is seen by a signature" in without.text()
    )
    found = verify(exchanged, signature=signature, public_key=public)
    assert found.refused and "signature: does not hold for these files: files were changed" in found.text()


def test_added_files_and_other_keys_are_seen(signed, tmp_path):
    bundle, signature, public = signed
    (tmp_path / "bundle" / "docs" / "more.md").write_text("x")
    assert verify(packed(tmp_path / "bundle"), signature=signature, public_key=public).refused
    (tmp_path / "bundle" / "docs" / "more.md").unlink()
    _, other = keys(tmp_path, "other")
    bundle = packed(tmp_path / "bundle")
    assert not verify(bundle, signature=signature, public_key=public).refused
    found = verify(bundle, signature=signature, public_key=other)
    assert found.refused and "it was made with another key" in found.text()


def test_one_file_of_weights_is_signed(tmp_path):
    private, public = keys(tmp_path)
    write_weights(tmp_path / "model.pt")
    signature = sign(tmp_path / "model.pt", private, tmp_path / "signature.json")
    assert not verify(tmp_path / "model.pt", signature=signature, public_key=public).findings
    write_weights(tmp_path / "model.pt", 2.0)
    assert verify(tmp_path / "model.pt", signature=signature, public_key=public).refused


def test_unknown_code_is_vouched_for_by_a_signature(tmp_path):
    private, public = keys(tmp_path)
    folder = good_bundle(tmp_path / "bundle")
    (folder / "scripts").mkdir()
    (folder / "scripts" / "own.py").write_text("x = 1\n")
    bundle = packed(folder)
    assert verify(bundle).refused
    signature = sign(bundle, private, tmp_path / "signature.json")
    found = verify(bundle, signature=signature, public_key=public)
    assert not found.refused and "the others are signed" in found.text()


def test_what_would_be_refused_is_not_signed(tmp_path):
    private, _ = keys(tmp_path)
    folder = configured(good_bundle(tmp_path / "bundle"), evil="$import os")
    with pytest.raises(InputError, match=r"is not signed, since it would be refused\n  - configs/inference.json: evil"):
        sign(folder, private, tmp_path / "signature.json")
    assert not (tmp_path / "signature.json").exists()


def test_wrong_keys_signatures_and_places_are_named(signed, tmp_path):
    bundle, signature, public = signed
    private = tmp_path / "key.pem"
    with pytest.raises(InputError, match=r"would be a file of the bundle that it signs; give an --output outside"):
        sign(tmp_path / "bundle", private, tmp_path / "bundle" / "signature.json")
    (tmp_path / "mine.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match=r"mine.json: is there and is no signature; give another --output"):
        sign(bundle, private, tmp_path / "mine.json")
    with pytest.raises(InputError, match=r"key.pub: no private key \(PEM, without a password\) that can be read"):
        sign(bundle, public, tmp_path / "s.json")
    elliptic, elliptic_public = keys(tmp_path, "elliptic", generate_private_key(SECP256R1()))
    with pytest.raises(InputError, match=r"elliptic.pem: is a key of another kind; make one with openssl genpkey"):
        sign(bundle, elliptic, tmp_path / "s.json")
    with pytest.raises(InputError, match=r"elliptic.pub: is a key of another kind; an Ed25519 key is needed"):
        verify(bundle, signature=signature, public_key=elliptic_public)
    with pytest.raises(InputError, match=r"nowhere.pub: no such key"):
        verify(bundle, signature=signature, public_key=tmp_path / "nowhere.pub")
    signature.write_text('{"signature": "§"}')
    with pytest.raises(InputError, match=r"signature.json: holds no signature; give what 'semsynth sign' wrote"):
        verify(bundle, signature=signature, public_key=public)
