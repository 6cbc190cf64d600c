"""What is published of a bundle has no dead link, tells of no patient and no machine, and is taken by its takers."""

from __future__ import annotations

import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pack_bundle
import pack_docs
import pytest
import verify_bundles
import yaml
from bundle_configs import WEIGHTS, config_path, read
from bundle_contents import collect
from bundle_packages import kept_out
from huggingface_hub import ModelCard
from markdown_links import headings, links, relink
from monai.bundle import download_large_files
from pack_hf import CARD, data_of, write_hf
from pack_zoo import LARGE_FILES, write_zoo
from selection import name_of
from semsynth.trust.hashes import MANIFEST
from semsynth.trust.verify import verify
from stand_in_hub import hub, serving
from verify_bundles import find_bundles
from zoo_checks import check_zoo, run_there, unit_test

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = find_bundles(ROOT / "bundles")
WITH_WEIGHTS = [bundle for bundle in BUNDLES if (bundle / WEIGHTS).is_file()]
LA_UNET = ROOT / "bundles" / "la_unet"
MEGABYTE = 1_000_000

COMPARE = """
import huggingface_hub, torch

stored = torch.load("la_unet/models/model.pt", map_location="cpu", weights_only=True)
loaded = network.state_dict()
assert set(loaded) == set(stored)
assert all(torch.equal(loaded[key].cpu(), stored[key].to(loaded[key].dtype)) for key in stored)
assert "scripts.semsynth" in sys.modules and "semsynth" not in sys.modules
huggingface_hub.snapshot_download("someone/la_unet", revision=sys.argv[1], local_dir="snapshot")
"""


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def copy_of(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / bundle.name))


# -------------------------------------------------------------------------------------------------------------- links


def dead_links(contents: dict[str, bytes]) -> list[str]:
    """By a rule of its own: the packer's is not asked."""
    pages = {name: content.decode() for name, content in contents.items() if name.endswith(".md")}
    pages = {name: re.sub(r"(?ms)^```.*?^```|`[^`\n]+`", "", text) for name, text in pages.items()}
    anchors = {
        name: {
            re.sub(r"[^\w -]", "", line.lstrip("#").strip().lower()).replace(" ", "-")
            for line in re.sub(r"(?ms)^```.*?^```", "", contents[name].decode()).splitlines()
            if line.startswith("#")
        }
        for name in pages
    }
    found = []
    for name, text in pages.items():
        for target in re.findall(r"\]\(([^)\s]+)[^)]*\)|(?:src|href)=\"([^\"]+)\"|^\[[^\]]+\]:\s*(\S+)", text, re.M):
            path, _, anchor = "".join(target).partition("#")
            if re.match(r"[a-z]+:", path):
                continue
            there = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
            if there not in contents or (anchor and anchor not in anchors[there]):
                found.append(f"{name}: {''.join(target)}")
    return found


@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
def test_no_packed_page_has_a_dead_link_and_the_pages_stay_light(bundle: Path) -> None:
    contents = collect(bundle)
    assert dead_links(contents) == []
    assert sum(len(content) for name, content in contents.items() if name.startswith("docs/")) < 6 * MEGABYTE


def test_pages_come_along_with_what_they_link_to_in_turn() -> None:
    contents = collect(LA_UNET)
    assert "(unseen.md)" in contents["docs/experiments.md"].decode()
    for name in ("docs/unseen.md", "docs/data_sets.md", "docs/same_patient.png"):
        assert contents.get(name)
    page = "docs/experiments.md"
    assert len(links(contents[page].decode())) == len(links((LA_UNET / page).read_text())) - 2
    assert 'med_lsdm (its commands, section "Data"))' in contents[page].decode()
    assert "](experiments.md)" in contents["docs/unseen.md"].decode()  # to this bundle's own page


@pytest.mark.parametrize(
    ("added", "match"),
    [
        ("[a](../../../docs/absent.md)", r"docs/absent\.md: is linked to, and is no file of the project"),
        ("[a](../../../docs/unseen.md#absent)", r"docs/README\.md: the link to unseen\.md#absent leads nowhere"),
        ("[a](../../med_lsdm/docs/README.md#absent)", r"README\.md#absent leads nowhere: no such heading"),
        ("![a](absent.png)", r"the link to absent\.png leads nowhere"),
        ("[a](#absent)", r"the link to #absent leads nowhere"),
        ("[a](../../../../secret.md)", "no file of the project"),
    ],
)
def test_dead_links_are_named_and_nothing_packed(added: str, match: str, tmp_path: Path) -> None:
    bundle = copy_of(LA_UNET, tmp_path)
    with (bundle / "docs" / "README.md").open("a") as page:
        page.write(f"\n{added}\n")
    with pytest.raises(ValueError, match=match):
        collect(bundle)


def test_a_page_of_the_project_takes_no_page_of_the_bundle(tmp_path: Path) -> None:
    bundle = copy_of(LA_UNET, tmp_path)
    (bundle / "docs" / "unseen.md").write_text("# Ours\n")
    with pytest.raises(
        ValueError, match=r"docs/unseen\.md cannot come along, there is bundles/la_unet/docs/unseen\.md"
    ):
        collect(bundle)


def test_links_in_code_are_no_links_and_others_keep_what_they_say() -> None:
    text = 'a `[x](no.md)` [one `b]`](a.md#c "title")\n```\n[y](no.md)\n```\n![p](p.png) [h](https://h/i.md)\n'
    found = links(text)
    assert [link.target for link in found] == ["a.md#c", "p.png", "https://h/i.md"]
    assert (found[0].text, found[0].path, found[0].anchor) == ("one `b]`", "a.md", "c")
    assert [link.picture for link in found] == [False, True, False]
    assert relink(text, lambda _: None) == text
    assert relink("x [a](b) y", lambda link: link.text) == "x a y"


def test_anchors_are_those_of_the_hosts() -> None:
    text = "# The `code` (a, b)\n## Twice\n## Twice\n```\n# none\n```\n### 3.1 Größe & Ort ###\n"
    assert list(headings(text)) == ["the-code-a-b", "twice", "twice-1", "31-größe--ort"]


# ----------------------------------------------------------------------------------------------- patients and machines


@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
def test_nothing_of_a_case_or_of_a_machine_is_published(bundle: Path) -> None:
    for name, content in collect(bundle).items():
        if not name.endswith((".pt", ".png", ".gz")):
            text = content.decode()
            assert str(ROOT) not in text and str(Path.home()) not in re.sub(r"\.home\(\)", "", text), name
            # cases of the data sets that weights were trained on: 20 letters and digits, pt_123
            assert not re.search(r"\b(?=\w*\d)(?=\w*[A-Z])[A-Z0-9]{20}\b|\bpt_\d{2,}", text), name


def test_text_that_names_a_folder_of_a_machine_is_refused(tmp_path: Path) -> None:
    bundle = copy_of(LA_UNET, tmp_path)
    config = config_path(bundle, "duke")
    config.write_text(config.read_text().replace("{", '{\n "dataset_dir": "/home/jane/scans",', 1))
    with pytest.raises(ValueError, match=r"1 files name folders of a machine, .*\n  - configs/duke\.json$"):
        collect(bundle)


# ------------------------------------------------------------------------------------------------------ the model zoo


def test_zoo_unit_test_trains_and_infers_from_the_zoos_root(tmp_path: Path) -> None:
    folder, _, note = write_zoo(LA_UNET, tmp_path / "zoo")
    assert folder == tmp_path / "zoo" / "models" / "la_unet"
    assert tree(folder) == collect(LA_UNET)
    assert "Nothing has to be added to ci/bundle_custom_data.py" in note.read_text()
    done = run_there(LA_UNET, tmp_path / "zoo", [unit_test("la_unet")])
    assert done.returncode == 0 and "Ran 2 tests" in done.stderr, done.stderr[-3000:]
    assert tree(folder) == collect(LA_UNET), "the test wrote into the bundle"


@pytest.mark.slow
def test_zoo_unit_test_of_a_broken_bundle_fails(tmp_path: Path) -> None:
    folder, test, _ = write_zoo(LA_UNET, tmp_path / "zoo")
    for name in ("logging.conf", "train.json"):
        (folder / "configs" / name).write_text("{}")
    done = run_there(LA_UNET, tmp_path / "zoo", [test.relative_to(tmp_path / "zoo").as_posix()])
    assert done.returncode == 1 and "FAILED" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("bundle", WITH_WEIGHTS, ids=name_of)
def test_zoo_finds_nothing_wrong_with_any_bundle(bundle: Path, tmp_path: Path) -> None:
    assert check_zoo(bundle, tmp_path) == []


def test_zoo_is_told_of_bundles_without_torchscript_and_so_is_the_reader(tmp_path: Path) -> None:
    exempt = [bundle for bundle in WITH_WEIGHTS if "export_exemption" in read(bundle, "metadata")]
    assert exempt
    note = write_zoo(exempt[0], tmp_path)[2].read_text()
    assert f'add to exclude_verify_torchscript_list:\n    "{exempt[0].name}",\n' in note
    bundle = copy_of(exempt[0], tmp_path)
    page = bundle / "docs" / "README.md"
    assert verify_bundles.check_exemption(bundle) == []
    page.write_text(page.read_text().replace("TorchScript is not supported", "TorchScript is"))
    found = verify_bundles.check_exemption(bundle)
    assert len(found) == 1 and "docs/README.md: must say 'TorchScript is not supported: " in found[0]


@pytest.mark.parametrize("bundle", WITH_WEIGHTS, ids=name_of)
def test_zoo_unit_test_covers_every_training(bundle: Path, tmp_path: Path) -> None:
    text = write_zoo(bundle, tmp_path)[1].read_text()
    compile(text, "test", "exec")
    trainings = [p.stem for p in bundle.glob("configs/train*.json") if "imports" in json.loads(p.read_text())]
    assert all(f"['{name}'" in text for name in trainings)


@pytest.mark.parametrize("write", [write_zoo, write_hf], ids=["zoo", "hf"])
def test_bundle_without_weights_is_not_published(write, tmp_path: Path) -> None:
    bundle = copy_of(LA_UNET, tmp_path)
    (bundle / WEIGHTS).unlink()
    (bundle / "models" / "model.json").unlink()
    with pytest.raises(ValueError, match=r"models/model\.pt,? .*is not there"):
        write(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------------- large files


@pytest.fixture
def heavy(tmp_path: Path) -> Path:
    """la_unet with weights of 26 MB."""
    bundle = copy_of(LA_UNET, tmp_path)
    with (bundle / WEIGHTS).open("ab") as file:
        file.write(os.urandom(26 * MEGABYTE - file.tell()))
    return bundle


def test_large_files_are_listed_for_the_zoo_and_monai_gets_them_back(heavy: Path, tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(heavy)))
    with serving(server) as address:
        folder, _, note = write_zoo(heavy, tmp_path / "zoo", f"{address}/")
        assert not (folder / WEIGHTS).exists() and (folder / "models" / "model.json").is_file()
        expected = sha256((heavy / WEIGHTS).read_bytes()).hexdigest()
        row = {"path": WEIGHTS, "url": f"{address}/{WEIGHTS}", "hash_val": expected, "hash_type": "sha256"}
        assert yaml.safe_load((folder / LARGE_FILES).read_text()) == {"large_files": [row]}
        assert f"{WEIGHTS} to {address}/{WEIGHTS}" in note.read_text()
        assert write_zoo(heavy, tmp_path / "zoo", address)[0] == folder  # again, over what was written
        download_large_files(str(folder))
    assert (folder / WEIGHTS).read_bytes() == (heavy / WEIGHTS).read_bytes()


def test_large_files_without_an_address_are_refused_by_the_zoo_and_taken_by_the_hub(
    heavy: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"files over 25 MB, .* models/model\.pt; upload them and give --large-files-url"
    ):
        write_zoo(heavy, tmp_path / "zoo")
    with pytest.raises(ValueError, match=r"must be an address such as .*, got server/folder"):
        write_zoo(heavy, tmp_path / "zoo", "server/folder")
    assert not (tmp_path / "zoo").exists()
    assert (write_hf(heavy, tmp_path / "hf") / WEIGHTS).read_bytes() == (heavy / WEIGHTS).read_bytes()


# ------------------------------------------------------------------------------------------------------- Hugging Face


@pytest.mark.parametrize("bundle", WITH_WEIGHTS, ids=name_of)
def test_model_card_says_what_the_metadata_say_and_its_links_work(bundle: Path, tmp_path: Path) -> None:
    folder, about = write_hf(bundle, tmp_path), read(bundle, "metadata")
    contents = tree(folder)
    assert {n: content for n, content in contents.items() if n not in (CARD, MANIFEST)} == collect(bundle)
    assert not verify(folder).refused
    assert dead_links(contents) == []
    card = ModelCard(contents[CARD].decode())
    assert (card.data.license, card.data.library_name, card.data.model_name) == ("apache-2.0", "monai", bundle.name)
    assert {"medical", "monai"} <= set(card.data.tags)
    results = card.data.eval_results
    assert sorted(result.metric_value for result in results) == sorted(about["eval_metrics"].values())
    for result in results:
        count = re.match(r"\d+", result.dataset_split or "")
        assert result.metric_type + (f"_unseen_{count[0]}" if count else "") in about["eval_metrics"]
        assert result.dataset_name in about["data_source"]
    assert any(link.picture for link in links(card.text))
    assert about["intended_use"] in card.text and "docs/data_license.txt" in card.text


def test_metric_goes_with_the_data_of_its_weights() -> None:
    sources = "Atria (X et al.); model_ct.pt: OpenKBP (Y et al.)"
    assert data_of("ct_dice", sources) == "OpenKBP (Y et al.)"
    assert data_of("dice", sources) == data_of("ctx_dice", sources) == "Atria (X et al.)"


def test_monai_downloads_and_loads_the_repository_as_its_page_says(tmp_path: Path) -> None:
    folder, version = write_hf(LA_UNET, tmp_path / "hf"), read(LA_UNET, "metadata")["version"]
    example = re.search(r"```python\n(.+?)```", (folder / CARD).read_text(), re.DOTALL)
    (tmp_path / "cwd").mkdir()
    with hub("someone/la_unet", folder, version) as address:
        known = kept_out({"semsynth"}, tmp_path / "kept_out")
        known |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        known |= {"NO_PROXY": "127.0.0.1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, "-c", example[1].replace("OWNER", "someone") + COMPARE, version],
            cwd=tmp_path / "cwd", env=os.environ | known, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for place in ("snapshot", "la_unet"):
        taken = tree(tmp_path / "cwd" / place).items()
        assert {name: content for name, content in taken if not re.search(r"^\.cache/|__pycache__/", name)} == tree(
            folder
        )


# -------------------------------------------------------------------------------------------- whole, and whose they are


@pytest.mark.parametrize(("write", "place"), [(write_zoo, "models/la_unet"), (write_hf, "la_unet")], ids=["zoo", "hf"])
def test_folders_of_somebody_else_are_not_replaced(write, place: str, tmp_path: Path) -> None:
    folder = tmp_path / place
    write(LA_UNET, tmp_path)
    before = tree(folder)
    (folder / "configs" / "train.json").write_text("{}")
    write(LA_UNET, tmp_path)  # what was made here is replaced
    assert tree(folder) == before

    (folder / "notes.docx").write_text("mine")
    with pytest.raises(ValueError, match=r"1 files were not packed here, and nothing is written; .*\n  - notes\.docx$"):
        write(LA_UNET, tmp_path)
    assert (folder / "notes.docx").read_text() == "mine"

    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there and is no packed la_unet; move it away"):
        write(LA_UNET, tmp_path)
    shutil.rmtree(folder)
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is there and is no folder"):
        write(LA_UNET, tmp_path)


def test_unit_test_of_somebody_else_is_not_replaced_and_nothing_written(tmp_path: Path) -> None:
    path = tmp_path / "ci" / "unit_tests" / "test_la_unet.py"
    path.parent.mkdir(parents=True)
    path.write_text("# somebody's\n")
    with pytest.raises(ValueError, match="is there and was not made here"):
        write_zoo(LA_UNET, tmp_path)
    assert path.read_text() == "# somebody's\n" and not (tmp_path / "models").exists()


def test_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_hf(LA_UNET, tmp_path)
    before, write, calls = tree(folder), Path.write_bytes, []

    def full(path: Path, content: bytes) -> int:
        calls.append(path)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_hf(LA_UNET, tmp_path)
    assert tree(folder) == before and list(tmp_path.iterdir()) == [folder]


def test_command_writes_what_it_is_asked_for_and_no_zip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pack_bundle.py", "la_unet", "--output", str(tmp_path / "dist")]
    monkeypatch.setattr(sys, "argv", [*command, "--zoo", str(tmp_path / "zoo"), "--hf", str(tmp_path / "hf")])
    assert pack_bundle.main() == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4 and all(Path(path).exists() for path in printed)
    assert not (tmp_path / "dist").exists()
    monkeypatch.setattr(sys, "argv", [*command, "--large-files-url", "https://server"])
    with pytest.raises(SystemExit, match="2"):
        pack_bundle.main()
    assert "--large-files-url goes with --zoo" in capsys.readouterr().err


def test_pages_are_read_as_from_the_project_wherever_the_bundle_is(tmp_path: Path) -> None:
    bundle = copy_of(LA_UNET, tmp_path)
    assert pack_docs.bring_docs("la_unet", tree(bundle)) == pack_docs.bring_docs("la_unet", tree(LA_UNET))


def audit_of(folder: Path, weights: list[str]) -> Path:
    """An audit, as ``semsynth audit`` writes it."""
    folder.mkdir()
    content = {"verdict": "copies found", "reasons": ["a reason"], "volumes_sha256": [], "weights_sha256": weights}
    (folder / "audit.json").write_text(json.dumps(content))
    return folder


def test_the_verdict_of_an_audit_is_packed_and_blocks_nothing(tmp_path: Path) -> None:
    own = sha256((LA_UNET / WEIGHTS).read_bytes()).hexdigest()
    with zipfile.ZipFile(pack_bundle.pack(LA_UNET, tmp_path, audit_of(tmp_path / "audit", [own]))) as archive:
        said = json.loads(archive.read("la_unet/docs/audit.json"))
        assert "docs/audit.json" in archive.read("la_unet/manifest.sha256").decode()
    assert said["verdict"] == "copies found" and said["reasons"] == ["a reason"]


def test_an_audit_of_other_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is an audit of volumes of other weights than la_unet's"):
        pack_bundle.pack(LA_UNET, tmp_path, audit_of(tmp_path / "audit", ["0" * 64]))
