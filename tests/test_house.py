"""The house keeps its order: who imports whom, and no bundle is known by name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "common" / "semsynth"
BUNDLES = {path.name for path in (ROOT / "bundles").iterdir() if path.is_dir()}


REFUSED = "of|that|whose|by|from|what|how|whether|where|which|when|why|if|who|until"
"""Words with which no description of an argument begins."""


def test_imports_go_one_way() -> None:
    """The contract is in pyproject.toml; a room that it does not name breaks it too.

    In a process of its own: import-linter's logging switches off the loggers that other tests read.
    """
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_imports_itself_relatively() -> None:
    """A packed bundle holds the package under another name."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[0] == "semsynth" for name in names), path


def test_tests_mirror_the_rooms() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == rooms | {"bundles", "robust"}  # the latter: what holds for all commands


def test_options_have_hyphens_in_semsynth_and_underscores_in_bundles() -> None:
    """What users read names options as they are typed: ``semsynth --judge-classes``, ``--num_samples`` of a bundle."""
    from semsynth.cli.main import COMMANDS

    for command in COMMANDS.values():
        assert "_" not in " ".join(word for word in (command.__doc__ or "").split() if word.startswith("--"))


def test_descriptions_of_arguments_begin_with_what_the_argument_is() -> None:
    """``seed: seed of the draws``, not ``seed: of the draws`` or ``seed: what …``: a reader may see it alone."""
    bare = []
    for path in sorted([*PACKAGE.rglob("*.py"), *(ROOT / "ci").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            inside = False
            for line in (ast.get_docstring(node) or "").splitlines():
                inside = line in ("Args:", "Attributes:") or (inside and not re.match(r"\S", line))
                found = re.match(rf" {{4}}\w[\w, *]*: ({REFUSED})\b", line) if inside else None
                bare += [f"{path.name}: {node.name}: {line.strip()}"] if found else []
    assert bare == []
