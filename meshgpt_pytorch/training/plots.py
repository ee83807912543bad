"""The curves of a run, for notebooks and reports."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from meshgpt_pytorch.training.options import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# what is drawn together, one panel each; names that the history lacks are left out
PANELS = (
    ("loss", ("loss", "recon_loss", "val_loss", "val_recon_loss")),
    ("accuracy of faces", ("val_triangle_accuracy", "val_coordinate_accuracy")),
    ("accuracy of codes", ("val_accuracy", "val_accuracy_first_face_0", "val_accuracy_end")),
    ("learning rate", ("learning_rate",)),
)


def plot_history(history: Sequence[Record], *, title: str) -> "Figure":
    """Draw losses, accuracies and the learning rate over the steps.

    Args:
        history: a record for each step.
        title: written above the panels.

    Returns:
        a matplotlib figure, which a notebook shows and ``savefig`` writes.

    Raises:
        RuntimeError: matplotlib is not installed.
        ValueError: nothing was trained yet.
    """
    if not history:
        raise ValueError("a plot needs at least one step, got an empty history; train first")
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise RuntimeError(
            "plot needs matplotlib, which is not installed; "
            "install it with `pip install 'meshgpt-pytorch[plots]'`"
        ) from error

    known = {name for record in history for name in record}
    panels = [(label, [name for name in names if name in known]) for label, names in PANELS]
    panels = [(label, names) for label, names in panels if names]
    figure, all_axes = pyplot.subplots(
        len(panels),
        sharex=True,
        squeeze=False,
        figsize=(8, 2.4 * len(panels)),
        layout="constrained",
    )
    for axes, (label, names) in zip(all_axes[:, 0], panels, strict=True):
        for name in names:
            records = [record for record in history if name in record]
            steps, values = zip(
                *((record["step"], record[name]) for record in records), strict=True
            )
            # few points of a validation are lost as a thin line
            marker = "o" if len(records) < 30 else None
            axes.plot(steps, values, label=name, linewidth=1, marker=marker, markersize=3)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize="small")
    all_axes[-1, 0].set_xlabel("step")
    figure.suptitle(title)
    # else a notebook shows it twice
    pyplot.close(figure)
    return figure
