"""The model zoo's checks and unit test on the folder that ``pack_bundle.py --zoo`` writes.

Used by ``python ci/verify_bundles.py --zoo``. Both run in processes of their own, from the zoo's root, without the
installed ``semsynth``. Two modules that the zoo has are stood in for: its ``utils`` and the package ``parameterized``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bundle_configs import read
from bundle_packages import kept_out, modules_beyond
from pack_zoo import write_zoo

LIMIT = 1800  # seconds for one process
SHOWN = 600  # letters of what it said last
NEEDED = {"jsonschema", "jsonschema_specifications", "referencing", "rpds", "attr", "attrs", "yaml"}
"""Modules that the zoo's checks need besides what the metadata names."""

STAND_INS = {
    "utils.py": """
def check_workflow(workflow, check_properties=False):
    workflow.initialize()
    wrong = workflow.check_properties() if check_properties else None
    if wrong:
        raise ValueError(f"wrong or missing: {wrong}")
    workflow.run()
    workflow.finalize()
""",
    "parameterized.py": """
import sys

class parameterized:
    @staticmethod
    def expand(cases):
        def spread(test):
            names = sys._getframe(1).f_locals
            for number, case in enumerate(cases):
                names[f"{test.__name__}_{number}"] = lambda self, case=case: test(self, *case)
        return spread
""",
}


def check_zoo(bundle: Path, folder: Path) -> list[str]:
    """Write the folder of a pull request, and make the zoo's checks on it.

    Args:
        bundle: its folder.
        folder: stands for a clone of the zoo; made if needed.
    """
    try:
        write_zoo(bundle, folder)
    except ValueError as error:
        return [str(error)]
    exempt = ["exempt"] if "export_exemption" in read(bundle, "metadata") else []
    steps = str(Path(__file__).resolve().parent / "zoo_steps.py")
    found = []
    for what, arguments in (("checks", [steps, bundle.name, *exempt]), ("unit test", [unit_test(bundle.name)])):
        done = run_there(bundle, folder, arguments)
        if done.returncode:
            found.append(f"{what}: {' '.join((done.stderr or done.stdout).split())[-SHOWN:]}")
    return found


def unit_test(name: str) -> str:
    """The path of a bundle's unit test in the zoo."""
    return f"ci/unit_tests/test_{name}.py"


def run_there(bundle: Path, zoo: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run Python from the zoo's root with what the bundle's metadata names, and the stand-ins.

    Args:
        bundle: its folder, for its metadata.
        zoo: the zoo's root.
        arguments: arguments of Python.
    """
    with tempfile.TemporaryDirectory() as folder:
        modules = {"semsynth", *modules_beyond(read(bundle, "metadata"))} - NEEDED
        known = kept_out(modules, Path(folder))
        for name, text in STAND_INS.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        known |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        command = [sys.executable, *arguments]
        try:
            return subprocess.run(command, cwd=zoo, env=os.environ | known, capture_output=True, text=True,
                                  timeout=LIMIT, check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 1, "", f"not ended after {LIMIT} s")
