"""No volume from a network that computes NaN: integers on disk would show it as zeros."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys

from ..errors import InputError


def refuse_not_finite(engine: Engine, weights: Path) -> None:
    """Raise at the first output of ``engine`` that holds NaN or infinite values, before postprocessing clips them.

    Args:
        engine: an inference engine with the network's output under ``pred``.
        weights: weights of the network, for the message.
    """
    # before postprocessing where the engine tells of it, as MONAI's do
    event: Any = IterationEvents.FORWARD_COMPLETED
    event = event if event in engine._allowed_events else Events.ITERATION_COMPLETED

    def check(engine: Engine) -> None:
        batch, output = engine.state.batch, engine.state.output
        items: Sequence[Any] = output if isinstance(output, list) else [output]
        for number, item in enumerate(items):
            pred = item[Keys.PRED] if isinstance(item, dict) else item
            if not bool(pred.isfinite().all()):
                share = 100 * float((~pred.isfinite()).float().mean())
                raise InputError(
                    f"{_cases(batch, number, len(items))}: the network's output is not finite ({share:.3g} % of its "
                    f"values are NaN or infinite), so nothing is written; weights {weights}. Replace weights of a "
                    "training that diverged; with sound ones set amp to False, where the bundle has it"
                )

    engine.add_event_handler(event, check)


def _cases(batch: Any, number: int, items: int) -> str:
    """The names of the cases of an output, where the batch has them."""
    entries = batch if isinstance(batch, list) else [batch]
    found = [entry.get("case") for entry in entries if isinstance(entry, dict)]
    names = [str(name) for case in found for name in (case if isinstance(case, list | tuple) else [case])]
    names = names[number : number + 1] if items == len(names) else names
    return f"case {', '.join(names)}" if names else "a case"
