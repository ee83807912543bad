"""Steps that were skipped because a number was not finite, and when to give up."""

from pathlib import Path
from typing import Any

from meshgpt_pytorch.training.options import Record


class SkippedSteps:
    """Count skipped steps in a row."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_a_row = 0

    def are_too_many(self, record: Record, scaler: Any | None) -> bool:
        """Count a step, and tell whether it was one skipped step too many.

        Args:
            record: the step's; "skipped" is in it if it was.
            scaler: scaler of half precision, or None. It finds its scale by steps that overflow,
                so these count only where the scale cannot be the reason.
        """
        if "skipped" not in record:
            self.in_a_row = 0
            return False
        if scaler is None or record["loss"] != record["loss"] or scaler.get_scale() <= 1:
            self.in_a_row += 1
        return self.in_a_row >= self.limit

    def error(self, record: Record, indices: list[int], checkpoint: Path | None) -> RuntimeError:
        """Make the error that ends training.

        Args:
            record: of the last step.
            indices: items of its batch.
            checkpoint: the last good one, None if there is none.
        """
        where = (
            "no checkpoint was written before" if checkpoint is None else f"go on from {checkpoint}"
        )
        norm = record.get("grad_norm", float("nan"))
        return RuntimeError(
            f"the loss and the gradient must be finite, got loss {record['loss']:g} and gradient "
            f"norm {norm:g} at step {record['step']}, the last of {self.in_a_row} skipped steps in "
            f"a row; its batch held the items {indices} of the data set. Lower learning_rate or "
            f"max_grad_norm, or look at these items; {where}"
        )
