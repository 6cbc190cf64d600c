"""How often a study's 95 % interval covers the truth: simulated studies whose arms do not differ.

    python ci/interval_coverage.py    # some seconds

Values are patient + seed + what a seed does to a patient, all normal; the table has one line per simulated study.
"""

import json

import numpy as np
from semsynth.study.statistics import interval

STUDIES, DRAWS = 1000, 2000
SPREADS = (("patients alone", 0.02, 0.0, 0.001), ("all alike", 0.02, 0.01, 0.01), ("seeds most", 0.005, 0.01, 0.01))


def coverage(patients: int, seeds: int, spread: tuple[float, float, float]) -> float:
    """Share of the intervals that hold 0.

    Args:
        patients, seeds: numbers of them.
        spread: standard deviation of a patient's true difference, of a seed, and of a seed in one patient.
    """
    random, held = np.random.default_rng(0), 0
    of_patient, of_seed, rest = spread
    for number in range(STUDIES):
        sides = [
            random.standard_normal((seeds, 1)) * of_seed + random.standard_normal((seeds, patients)) * rest
            for _ in range(2)
        ]
        truly = random.standard_normal(patients) * of_patient
        low, high = interval(sides[0] + truly, sides[1], draws=DRAWS, seed=number)  # by seed, as a study's arms
        assert low is not None and high is not None
        held += low <= 0 <= high
    return held / STUDIES


def main() -> None:
    """Print the table, and as last line one JSON object."""
    found = {}
    print("| patients | seeds | " + " | ".join(name for name, *_ in SPREADS) + " |")
    print("|---:|---:|" + "---:|" * len(SPREADS))
    for patients in (5, 8, 20):
        for seeds in (3, 5):
            shares = {name: coverage(patients, seeds, tuple(rest)) for name, *rest in SPREADS}
            found[f"{patients} patients, {seeds} seeds"] = shares
            print(f"| {patients} | {seeds} | " + " | ".join(f"{share:.1%}" for share in shares.values()) + " |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
