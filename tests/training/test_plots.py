"""The curves of a run."""

import sys
from typing import Any

import pytest

from tests.training.runs import Samples


def test_plot_shows_what_the_history_holds(make_trainer: Any) -> None:
    trainer = make_trainer(val_dataset=Samples(), val_every=2)
    trainer()
    figure = trainer.plot()
    assert figure.get_suptitle() == trainer.checkpoint_name
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    assert {"loss", "val_loss"} <= lines.keys()
    steps, losses = lines["loss"].get_data()
    assert list(steps) == [1, 2, 3, 4]
    assert list(losses) == [record["loss"] for record in trainer.history]
    assert list(lines["val_loss"].get_xdata()) == [2, 4]
    assert [axes.get_ylabel() for axes in figure.axes][::2] == ["loss", "learning rate"]


def test_plot_needs_a_history(make_trainer: Any) -> None:
    with pytest.raises(ValueError, match="at least one step, got an empty history; train first"):
        make_trainer().plot()


def test_plot_needs_matplotlib(make_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(num_train_steps=1)
    trainer()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RuntimeError, match=r"pip install 'meshgpt-pytorch\[plots\]'"):
        trainer.plot()
