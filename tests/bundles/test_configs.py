"""Configs: no positions, a small grammar of expressions, one evaluation for all generators."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bundle_configs
import pytest
from config_expressions import ID, check_expressions, has_position
from monai.bundle import ConfigParser
from semsynth.trust.expressions import is_allowed
from verify_bundles import find_bundles

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = find_bundles(ROOT / "bundles")
GENERATORS = [b for b in BUNDLES if "SyntheticWriter" in (b / "configs" / "inference.json").read_text()]
LISTS = ("train#handlers", "validate#handlers", "handlers", "train#preprocessing#transforms",
         "validate#preprocessing#transforms", "preprocessing#transforms", "loading", "run", "training")  # fmt: skip
EXTRA = {"_target_": "semsynth.handlers.ProgressHandler", "title": "inserted"}


def test_the_generators_are_evaluated_by_one_and_the_same_config() -> None:
    assert len(GENERATORS) == 5
    texts = {(bundle / "configs" / "evaluate.json").read_text() for bundle in GENERATORS}
    assert len(texts) == 1 and "@_meta_#bundle" in texts.pop()


def inserted(content: dict[str, Any]) -> Iterator[list[Any]]:
    """Puts a further entry in front of every list of handlers and transforms, and gives these lists."""
    for where in LISTS:
        place: Any = content
        for key in where.split("#"):
            place = place.get(key, {}) if isinstance(place, dict) else {}
        if isinstance(place, list):
            place.insert(0, dict(EXTRA))
            yield place


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_a_handler_that_is_inserted_breaks_nothing(bundle: Path, tmp_path: Path) -> None:
    """Everything merges as before, but for the entry itself."""
    found = 0
    for base, *overlays in bundle_configs.combinations(bundle):
        files = [str(bundle_configs.config_path(bundle, name)) for name in overlays]
        content = json.loads(bundle_configs.config_path(bundle, base).read_text())
        before = ConfigParser.load_config_files([str(bundle_configs.config_path(bundle, base)), *files])
        found += len(list(inserted(content)))
        (tmp_path / "base.json").write_text(json.dumps(content))
        after = ConfigParser.load_config_files([str(tmp_path / "base.json"), *files])
        for _, value in list(bundle_configs.walk(after)):
            if isinstance(value, list) and EXTRA in value:
                value.remove(EXTRA)
        assert after == before, (base, *overlays)
        for _, value in bundle_configs.walk(after):
            named = ID.findall(value) if isinstance(value, str) and value[:1] in ("@", "%", "$") else []
            assert not any(map(has_position, named)), f"{value} means another entry after the insertion"
    assert found >= 2


@pytest.mark.parametrize(
    "expression",
    [
        "$import torch", "$@network_def.to(@device, memory_format=torch.channels_last_3d)", "$@network.parameters()",
        "$@average.ema_model", "$@network_def.denoiser.parameters()", "$@train#trainer.run()", "$@run_dir + '/m.pt'",
        "$@bundle_root + '/../la_unet/models/judge_1.pt'", "$len(@train#dataloader)", "$0.3 * @contrast_changes",
        "$operator.lt", "$monai.utils.set_determinism(seed=@seed)", "$@root + '/' + @name + '.pt'", "$@x * 0.5",
        "$-1.5 * @x", "$@root + '/case_' + @name",
    ],
)  # fmt: skip
def test_expressions_within_the_rule(expression: str) -> None:
    assert is_allowed(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "$import os, sys", "$from os import system", "$__import__('os').system('x')", "$@network.__class__",
        "$os.system('x')", "$open('x')", "$@a if @b else @c", "$[x for x in @a]", "$lambda x: x", "$@a.save('x')",
        "$@run_dir + @name.run()", "$eval('1')", "$@a[0]", "$f'{@a}'", "$@a or @b", "$@network.to(open('x'))", "$1 +",
        "$torch.load('x')", "$@a * @b", "$import os", "$import torch.hub", "$component__.run()", "$len()",
        "$len('abc')",
        "$@a.to(**@b)", "$@a.run('x')", "$True * @a", "$@a.to()", "$@a.parameters(@b)", "$'x' + @a.run()", "$@a + 1",
        "$-1 * @x", "$0 * @x", "$@x * 10000000", "$@a.b + '/x'", "$@a + @b", "$@a + './x'", "$@a + '.'", "$@a + ''",
        "$@a + '/.' + @b", "$@a + 'x @f {y}'", "$@a + '{y}'", "$@a + 'it\\'s'", "$@a + '#'",
    ],
)  # fmt: skip
def test_expressions_beyond_it(expression: str) -> None:
    assert not is_allowed(expression)


def test_positions_and_other_expressions_are_found(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    content = {
        "average": "@train#handlers#5",
        "train#handlers#4#_disabled_": True,
        "a": "%list#0#name",
        "b": "$open('x')",
        "fine": ["@train#handlers", "%loading", "$@x2.run()", "#4 in a text"],
        "run2#x": 1,
        "c": "@train::handlers::5",
        "d": "@handlers#-1",
        "+handlers#0": [],
        "train::handlers::4::_disabled_": True,
    }
    (tmp_path / "configs" / "train.json").write_text(json.dumps(content))
    found = check_expressions(tmp_path)
    assert len(found) == 8 and all(text.startswith("train.json: ") for text in found)
    assert sum("position" in text for text in found) == 7 and sum("is not allowed" in text for text in found) == 1
