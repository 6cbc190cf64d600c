"""Pictures of fixed cases while a generator trains."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys

from ..distributed import rank
from ..paths import as_path
from ..report.pictures import Panel, Row, centre_of, save_planes

logger = logging.getLogger(__name__)


class PreviewHandler:
    """Attached to a validation engine: writes label map, synthetic and real image of the first cases in three planes.

    A picture that cannot be drawn or written is a warning: it never ends a training.

    Args:
        output_dir: folder of the pictures, ``epoch_0010.png`` and so on.
        cases: number of validation cases (always the first ones, so that the pictures can be compared).
        label_maps: True where the network's input is a label map; else it is the image itself, to be reconstructed.

    Examples:
        >>> import torch
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from monai.data import MetaTensor
        >>> volume = MetaTensor(torch.rand(1, 16, 16, 16), affine=torch.eye(4))
        >>> label = MetaTensor(torch.zeros(1, 16, 16, 16), affine=torch.eye(4))
        >>> validation = Engine(lambda engine, batch: [{"image": label, "pred": volume, "label": volume}])
        >>> with TemporaryDirectory() as folder:
        ...     PreviewHandler(folder).attach(validation)
        ...     _ = validation.run([0])
        ...     [path.name for path in Path(folder).glob("*.png")]
        ['epoch_0001.png']
    """

    def __init__(self, output_dir: str | Path, cases: int = 2, *, label_maps: bool = True) -> None:
        self.output_dir, self.cases, self.label_maps = as_path(output_dir, "run_dir"), cases, label_maps
        self.rows: list[Row] = []

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, an evaluator; decollated output: ``image`` label map, ``label`` real, ``pred``."""
        if rank() != 0:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._draw)

    def _clear(self, engine: Engine) -> None:
        self.rows = []

    def _collect(self, engine: Engine) -> None:
        items: Any = engine.state.output
        for item in items:
            if len(self.rows) < self.cases:
                self.rows.append(self._row(item))

    def _row(self, item: dict[str, Any]) -> Row:
        given = _array(item[Keys.IMAGE])
        centre = centre_of(given.astype(int)) if self.label_maps else [length // 2 for length in given.shape]
        panels = [Panel("synthetic" if self.label_maps else "reconstruction", _array(item[Keys.PRED]))]
        if self.label_maps:
            panels.insert(0, Panel("label map", given.astype(int), is_label=True))
        if item.get(Keys.LABEL) is not None:
            panels.append(Panel("real", _array(item[Keys.LABEL])))
        pixdim = getattr(item[Keys.IMAGE], "pixdim", torch.ones(3))
        name = Path(str(getattr(item[Keys.IMAGE], "meta", {}).get("filename_or_obj", ""))).parent.name
        return Row(name, panels, [float(p) for p in pixdim], centre)

    def _draw(self, engine: Engine) -> None:
        epoch = engine.state.epoch  # MONAI's validation runs under the trainer's epoch
        if not self.rows:
            return
        path = self.output_dir / f"epoch_{epoch:04d}.png"
        try:
            save_planes(path, self.rows, title=f"epoch {epoch}")
        except Exception as error:  # a full disk, a missing font …: a picture must not end a training of days
            logger.warning("preview %s: not drawn (%s); the training goes on", path, error)
        else:
            logger.info("preview: %s", path)


def _array(x: torch.Tensor) -> Any:
    return x.detach().float().cpu().numpy()[0]
