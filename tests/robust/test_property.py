"""One property of every command: whatever it is given, it ends in time with a word to the user, and harms nothing.

Changed datalists, headers, weights and options, drawn by hypothesis, for twenty seconds; for longer with
``SEMSYNTH_FUZZ_SECONDS=1800`` (each of its runs is another one).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest
from attack_checks import Arena, Outcome
from attack_draws import attacks
from attack_examples import EXAMPLES, Attack
from attack_inputs import write_inputs
from hypothesis import HealthCheck, Phase, given, seed, settings
from semsynth.cli.main import COMMANDS

SECONDS = float(os.environ.get("SEMSYNTH_FUZZ_SECONDS", "0"))
START = int(os.environ.get("SEMSYNTH_FUZZ_SEED", random.randrange(1 << 30) if SECONDS else 0))
BATCH = 20


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    found = Arena(write_inputs(tmp_path_factory.mktemp("inputs")), tmp_path_factory.mktemp("arena"))
    yield found
    found.close()


def test_no_input_ends_in_a_traceback_a_hang_or_harm(arena: Arena) -> None:
    found: dict[str, tuple[Attack, Outcome]] = {}
    end, number = time.monotonic() + (SECONDS or 20), 0

    def meet(attack: Attack) -> None:
        if time.monotonic() > end:
            return
        outcome = arena.run(attack)
        kind = outcome.kind(attack.command) if outcome.faults else ""
        if kind and kind not in found:
            found[kind] = arena.smallest(attack, kind), outcome

    while time.monotonic() < end:
        batch = settings(max_examples=BATCH, database=None, deadline=None, phases=[Phase.generate],
                         suppress_health_check=list(HealthCheck))(given(attacks(arena.inputs))(meet))  # fmt: skip
        seed(START + number)(batch)()
        number += 1
    assert not found, f"{len(found)} faults, {number} times {BATCH} examples from seed {START}:\n" + "\n\n".join(
        f"{kind}\n{attack}\n    {'; '.join(outcome.faults)}\n    {outcome.errors[-1500:]}"
        for kind, (attack, outcome) in found.items()
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_attacked_works(arena: Arena, command: str) -> None:
    if command == "export":
        pytest.skip("it takes twenty seconds, and tests/synthesis/test_export.py has it")
    for number in range(len(EXAMPLES[command])):
        attack = Attack(command, number)
        outcome = arena.run(attack)
        assert not outcome.faults and outcome.status == 0, f"{attack}\n{outcome}"
