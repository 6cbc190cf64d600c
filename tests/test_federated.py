"""Federated learning with MONAI's own client: two hospitals, three rounds, the weights averaged in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bundle_runs
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import FlStatistics, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from semsynth.prepare.phantom import write_phantom_cases
from semsynth.training.checkpoints import newest_checkpoint

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
ROUNDS = 3


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A data set of each client; the second has more cases."""
    folder = tmp_path_factory.mktemp("hospitals")
    found = []
    for number, cases in enumerate((4, 6)):
        data = folder / str(number)
        write_phantom_cases(data, cases, size=(32, 32, 32), spacing=(3.0, 3.0, 3.0), k=2, seed=number, progress=False)
        found.append(data)
    return found


def client(bundle: str, data: Path, run: Path, **options: Any) -> MonaiAlgo:
    """One hospital's, with the bundle's tiny networks."""
    folder = BUNDLES / bundle
    settings = {"bundle_root": str(folder), "dataset_dir": str(data), "run_dir": str(run), "num_workers": 0} | options
    made = MonaiAlgo(
        bundle_root=str(folder),
        local_epochs=1,
        send_weight_diff=False,
        config_train_filename=[str(folder / "configs" / f"{name}.json") for name in ("train", "tiny")],
        train_kwargs=settings,
        config_evaluate_filename=None,
    )
    made.initialize()
    return made


def averaged(clients: list[MonaiAlgo]) -> tuple[dict[str, Any], list[int]]:
    """FedAvg: weights by the number of iterations; what is no floating-point number is the first client's."""
    sent = [one.get_weights() for one in clients]
    assert all(one.weight_type == WeightType.WEIGHTS for one in sent)
    steps = [int(one.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS]) for one in sent]
    shares = np.array(steps) / sum(steps)
    weights: dict[str, Any] = {}
    for name, first in sent[0].weights.items():
        parts = [one.weights[name] for one in sent]
        mixed = torch.is_floating_point(first)
        weights[name] = sum(share * part for share, part in zip(shares, parts, strict=True)) if mixed else first
    return weights, steps


def rates(one: MonaiAlgo) -> list[float]:
    """The learning rate of every step, as the optimizer has it."""
    found: list[float] = []
    optimizer = one.trainer.optimizer
    one.trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: found.append(optimizer.param_groups[0]["lr"])
    )
    return found


def loss_of(one: MonaiAlgo) -> float:
    """Of the last step."""
    output: Any = one.trainer.state.output
    return float((output[0] if isinstance(output, list) else output)["loss"])


def autoencoder_of(hospital: Path, folder: Path) -> dict[str, Any]:
    """What stage 2 of spade_ldm builds on."""
    made = bundle_runs.run_earlier_stages(BUNDLES / "spade_ldm", hospital, folder)
    return {name: str(path) for name, path in made.items()}


BUNDLE = [
    "la_unet",
    pytest.param("pix2pix3d", marks=pytest.mark.slow),
    pytest.param("spade_ldm", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("bundle", BUNDLE)
@pytest.mark.parametrize("rounds", [ROUNDS, pytest.param(1, marks=pytest.mark.slow)])
def test_two_clients_train_for_three_rounds(bundle: str, rounds: int, hospitals: list[Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"rounds": rounds}
    options |= autoencoder_of(hospitals[0], tmp_path / "earlier") if bundle == "spade_ldm" else {}
    clients = [client(bundle, data, tmp_path / f"client_{i}", **options) for i, data in enumerate(hospitals)]
    seen = [rates(one) for one in clients]
    weights = {name: tensor.clone() for name, tensor in clients[0].trainer.network.state_dict().items()}
    losses = []
    for number in range(ROUNDS):
        for one in clients:
            one.train(ExchangeObject(weights=weights, weight_type=WeightType.WEIGHTS))
            assert one.trainer.state.epoch == number + 1
        before, (weights, steps) = weights, averaged(clients)
        assert min(steps) >= 1
        moved = [n for n in weights if torch.is_floating_point(weights[n]) and not torch.equal(before[n], weights[n])]
        assert moved, f"round {number + 1} has changed nothing"
        losses.append([loss_of(one) for one in clients])
    assert np.isfinite(losses).all()
    for own in seen:
        assert min(own) > 0, "a round with a learning rate of 0 learns nothing"
        epochs = np.array_split(np.array(own), ROUNDS)
        if rounds == 1:
            assert np.allclose(epochs[0], epochs[1]) and np.allclose(epochs[1], epochs[2])
        else:
            assert epochs[2].min() < epochs[0].max()
    for i in range(2):
        folder = tmp_path / f"client_{i}"
        assert newest_checkpoint(folder / "checkpoints") is not None and (folder / "model_final.pt").is_file()
        assert not list(folder.glob("checkpoints_before_*"))


def test_the_average_of_a_round_is_of_the_servers_weights_and_not_of_those_before(
    hospitals: list[Path], tmp_path: Path
) -> None:
    one = client("la_unet", hospitals[0], tmp_path / "client", rounds=2, **{"average#momentum": 0.5})
    zero = {name: torch.zeros_like(tensor) for name, tensor in one.trainer.network.state_dict().items()}
    one.train(ExchangeObject(weights={n: t + 5 for n, t in zero.items()}, weight_type=WeightType.WEIGHTS))
    one.train(ExchangeObject(weights=zero, weight_type=WeightType.WEIGHTS))
    average = one.train_workflow.parser.get_parsed_content("average")
    assert max(float(t.abs().max()) for t in average.ema_model.state_dict().values()) < 1
