"""What a config may name and say: what our bundles use is allowed, and what does more is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from semsynth.trust.configs import problems_in
from semsynth.trust.expressions import is_allowed
from semsynth.trust.logs import check_logging
from semsynth.trust.targets import problem
from semsynth.trust.texts import MOST_DEPTH, NotPlainError, read_plain


@pytest.mark.parametrize(
    "target",
    ["UNet", "LoadImaged", "torch.optim.Adam", "torch.nn.Linear", "monai.handlers.from_engine", "monai.data.DataLoader",
     "semsynth.handlers.LoadWeights", "scripts.semsynth.networks.pix2pix.Pix2PixGenerator",
     "semsynth.synthesis.drawing.Finishing.of", "semsynth.provenance.frozen.load_segmenter"],
)  # fmt: skip
def test_components_are_allowed(target: str) -> None:
    assert problem(target) is None


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("torch.utils.cpp_extension.load", "no class or function of what is installed"),
        ("monai.utils.module.instantiate", "a function that no config needs"),
        ("monai.apps.download_and_extract", "a function that no config needs"),
        ("download_and_extract", "a function that no config needs"),
        ("monai.transforms.Lambda", "calls whatever it is given"),
        ("PersistentDataset", "unpickles files"),
        ("PerceptualLoss", "fetches code or weights"),
        ("torch.package.PackageImporter", "which no config needs"),
        ("torch.jit.load", "a function that no config needs"),
        ("semsynth.files.write_text", "a function that no config needs"),
        ("semsynth.ownership.Outputs", "which no config needs"),
        ("semsynth.study.plan.Plan", "which no config needs"),
        ("semsynth.synthesis.workflow.run_inference", "a function that no config needs"),
        ("semsynth.handlers.Attach.attach", "a method"),
        ("monai.data.utils.os.system", "no class or function of what is installed"),
        ("monai.networks.nets.unet.nn.Linear", "no class or function of what is installed"),
        ("semsynth.handlers.weights.shutil.rmtree", "no class or function of what is installed"),
        ("semsynth.handlers.weights.Path", "which is not of semsynth"),
        ("semsynth.__main__.main", "no plain name"),
        ("eval", "no name of MONAI's"),
        ("builtins.eval", "is not of semsynth, monai, torch"),
        ("@network", "no plain name"),
        (["os.system"], "no plain name"),
        (None, "no plain name"),
    ],
)
def test_what_does_more_is_not(target: Any, why: str) -> None:
    assert why in str(problem(target))


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"preprocessing#transforms#0#reader": "os.system"}, "is the name of no reader"),
        ({"a": {"_target_": "LoadImaged", "keys": "x", "reader": "@r"}, "r": "os.system"}, "'@r' is the name of no"),
        (
            {"a": {"_target_": "LoadImaged", "keys": "x", "reader": ["NibabelReader", "exec"]}},
            "'exec' is the name of no",
        ),
        ({"a": {"_target_": "SaveImaged", "keys": "x", "writer": "os.system"}}, "is the name of no writer"),
        ({"+network_def#_target_": "os.system"}, "the target 'os.system'"),
        ({"a": [{"b": [{"_target_": "os.system"}]}]}, "a#0#b#0#_target_: the target"),
        ({"a": {"_target_": "UNet", "_mode_": "debug"}}, "the mode 'debug'"),
        ({"a": {"_target_": "UNet", "_disabled_": "$open('x')"}}, "the expression"),
        ({"a": {"_target_": "UNet", "pretrained": True}}, "which asks a network"),
        ({"a": "C:\\secret"}, "is absolute"),
        ({"a": "~/secret"}, "is absolute"),
        ({"a": "FILE:///etc/passwd"}, "is absolute"),
        ({"a": "x/../../y"}, "leads out of the bundle"),
        ({"a": "..\\y"}, "leads out of the bundle"),
        ({"a": "$@root + '/../' + @name"}, "leads out of the bundle"),
        ({"a": "%/etc/x.YAML#key"}, "brings in another file"),
        ({"a": " "}, ""),
    ],
)
def test_values_in_configs(config: dict[str, Any], found: str) -> None:
    said = "; ".join(problems_in(config))
    assert (found in said) if found else not said


def test_texts_that_are_no_paths_are_left_alone():
    config = {
        "_desc_": "see ../README.md, or /etc; $ is money",
        "a": ["1.0..2.0", "a / b", "…/x", "https://example.org/a/../b".replace("/../", "/"), "half"],
        "run": {"_target_": "semsynth.synthesis.jobs.run", "writer": "@writer"},
        "judge": "$@bundle_root + '/../la_unet/models/judge_1.pt'",
    }
    assert problems_in(config) == []
    assert problems_in({"judge": config["judge"]}, packed=True)


def test_expressions_of_absurd_size_end(tmp_path):
    for text in ("(" * 5000 + ")" * 5000, "+".join(["@a"] * 5000), "@a." + "b." * 5000 + "c", "-" * 900 + "1", "\0"):
        assert not is_allowed(f"${text}")


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.json", "[" * 100_000, "cannot be read as data"),
        ("a.json", "[" * (MOST_DEPTH + 2) + "]" * (MOST_DEPTH + 2), "levels deep"),
        ("a.json", '{"a": 1, "a": 2}', "says 'a' twice"),
        ("a.yaml", "a: 1\na: 2\n", "says 'a' twice"),
        ("a.yaml", "a: !!python/name:os.system ''", "a tag of YAML"),
        ("a.yml", "a: !evil x", "a tag of YAML"),
        ("a.yaml", "a: &x [1]\nb: *x", "references of YAML"),
        ("a.yaml", "? [1]\n: 2\n", "a key that is no text"),
        ("a.yaml", "a: [", "cannot be read as data"),
        ("a.yaml", "a: 1\n---\nb: 2\n", "cannot be read as data"),
    ],
)  # fmt: skip
def test_texts_are_read_as_data_alone(name: str, text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(NotPlainError, match=why):
        read_plain(tmp_path / name)


def test_logging_of_pythons_own_is_allowed_and_nothing_that_is_computed(tmp_path):
    path, start = tmp_path / "logging.conf", "[handler_a]\nclass={}\nargs={}\n"
    for kind, args in (("StreamHandler", "(sys.stderr,)"), ("logging.FileHandler", "('logs/a.log', 'a')"),
                       ("handlers.RotatingFileHandler", "('a.log',)"), ("StreamHandler", "")):  # fmt: skip
        path.write_text(start.format(kind, args))
        assert check_logging(path, "x") == []
    for kind, args, why in (
        ("handlers.SMTPHandler", "('mail.example.org',)", "none of"), ("StreamHandler", "(os.environ,)", "no literal"),
        ("FileHandler", "('../a.log',)", "leads out"), ("StreamHandler", "%(evil)s", "takes in other"),
        ("StreamHandler", "(f'{1}',)", "no literal"), ("StreamHandler", "({'a': exit()},)", "no literal"),
    ):  # fmt: skip
        path.write_text(start.format(kind, args))
        assert [why in finding.text for finding in check_logging(path, "x")] == [True], (kind, args)
    path.write_text("[DEFAULT]\nargs=(exit(),)\n[handler_a]\nclass=StreamHandler\n")
    assert check_logging(path, "x")
    path.write_text(start.format("StreamHandler", "-" * 5000 + "1"))
    assert check_logging(path, "x")
    path.write_text("no ini")
    assert "cannot be read as a logging configuration" in check_logging(path, "x")[0].text
