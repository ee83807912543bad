"""What a validation measures: numbers of a whole set, gathered batch by batch."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from meshgpt_pytorch.evaluation.metrics import count_codes, triangle_accuracy, usage_of_counts
from meshgpt_pytorch.training.batches import TEXT_KEYS
from meshgpt_pytorch.training.options import Record
from meshgpt_pytorch.training.sampling import gather_faces, read_codes
from meshgpt_pytorch.transformer.model import append_id

# of a transformer, held at a time: 256 MB in float32
NUM_LOGITS_AT_ONCE = 2**26


class Meter(Protocol):
    """Gathers what a model does on the batches of a validation."""

    def add(self, model: Any, arguments: Mapping[str, Any]) -> None:
        """Run the model, in eval mode, on one batch."""

    def result(self) -> Record:
        """Return the numbers over all batches so far; none without a batch."""


class WeightedMeans:
    """Means of named numbers, each batch weighted by what it counts."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.weight = 0.0

    def add(self, weight: float, values: Mapping[str, Tensor | float]) -> None:
        """Take in the means of a batch."""
        self.weight += weight
        for name, value in values.items():
            self.sums[name] += float(value) * weight

    def result(self) -> Record:
        """Return the means."""
        return {name: total / self.weight for name, total in self.sums.items()}


class AutoencoderMeter:
    """Losses, right faces and coordinates, and how evenly each quantizer's codes are used.

    Usage and perplexity count the codes of corners, as a transformer reads them; without the
    quantizer there are none.
    """

    def __init__(self, *, skip_quantizer: bool = False) -> None:
        self.skip_quantizer = skip_quantizer
        self.means = WeightedMeans()
        self.code_counts: Tensor | None = None

    def add(self, model: Any, arguments: Mapping[str, Any]) -> None:
        """Reconstruct a batch of meshes."""
        coords, loss, (recon_loss, commit_loss) = model(
            **arguments,
            return_recon_faces=True,
            return_loss_breakdown=True,
            skip_quantizer=self.skip_quantizer,
        )
        target, face_mask = gather_faces(arguments["vertices"], arguments["faces"], model.pad_id)
        accuracy = triangle_accuracy(
            coords.to(target.dtype),
            target,
            face_mask,
            num_discrete_coors=model.num_discrete_coors,
            coor_continuous_range=model.coor_continuous_range,
        )
        values = {
            "loss": loss,
            "recon_loss": recon_loss,
            "commit_loss": commit_loss.sum(),
            "triangle_accuracy": accuracy.triangle,
            "coordinate_accuracy": accuracy.coordinate,
        }
        self.means.add(float(face_mask.sum()), values)
        if not self.skip_quantizer:
            codes = model.tokenize(**arguments)
            counts = count_codes(codes.masked_fill(codes == model.pad_id, -1), model.codebook_size)
            self.code_counts = counts if self.code_counts is None else self.code_counts + counts

    def result(self) -> Record:
        """Return means over all faces, and a usage and a perplexity for each quantizer."""
        record = self.means.result()
        if self.code_counts is not None:
            usage = usage_of_counts(self.code_counts)
            for name, values in (
                ("codebook_usage", usage.used_fraction),
                ("codebook_perplexity", usage.perplexity),
            ):
                record |= {f"{name}_{index}": v for index, v in enumerate(values.tolist())}
        return record


class TransformerMeter:
    """Loss and accuracy over all codes and ends, and by place.

    Places are those of the codes inside a face, for the first face and for all later ones, and the
    end of a mesh. The codes of the first face are hard to guess and easily not learned, and among
    many more later ones that does not show in the mean.
    """

    def __init__(self) -> None:
        # losses, right answers and targets of each place
        self.sums: Tensor | None = None
        self.names: list[str] = []

    def add(self, model: Any, arguments: Mapping[str, Any]) -> None:
        """Predict the codes of a batch of meshes, as many at once as their logits have room."""
        codes = read_codes(model, arguments)
        text = {name: entry for name, entry in arguments.items() if name in TEXT_KEYS}
        logits_of_a_row = (codes.shape[1] + 1) * (model.codebook_size + 1)
        num_rows = max(1, NUM_LOGITS_AT_ONCE // logits_of_a_row)
        for start in range(0, len(codes), num_rows):
            rows = slice(start, start + num_rows)
            text_of_rows = {name: take_entries(entry, rows) for name, entry in text.items()}
            self._add_codes(model, codes[rows], text_of_rows)

    def _add_codes(self, model: Any, codes: Int[Tensor, "b n"], text: Mapping[str, Any]) -> None:
        logits = model.forward_on_codes(codes, return_loss=False, append_eos=False, **text)
        labels = append_id(codes, model.eos_token_id, model.pad_id)
        losses = F.cross_entropy(
            rearrange(logits, "b n c -> b c n").float(),
            labels,
            ignore_index=model.pad_id,
            reduction="none",
        )
        is_right = logits.argmax(dim=-1) == labels

        per_face = model.num_codes_per_face
        position = torch.arange(labels.shape[1], device=labels.device)
        place = position % per_face + torch.where(position < per_face, 0, per_face)
        place = torch.where(labels == model.eos_token_id, 2 * per_face, place)
        numbers = torch.stack((losses, is_right, torch.ones_like(losses)))
        is_target = labels != model.pad_id
        if self.sums is None:
            self.names = [f"first_face_{i}" for i in range(per_face)]
            self.names += [f"later_faces_{i}" for i in range(per_face)] + ["end"]
            self.sums = torch.zeros(3, len(self.names), dtype=torch.float64)
        sums = numbers.new_zeros(3, len(self.names))
        self.sums += sums.index_add_(1, place[is_target], numbers[:, is_target]).cpu()

    def result(self) -> Record:
        """Return loss and accuracy, of all targets and of each place that occurs."""
        if self.sums is None:
            return {}
        loss, right, count = self.sums.sum(dim=1).tolist()
        record = {"loss": loss / count, "accuracy": right / count}
        for name, (loss, right, count) in zip(self.names, self.sums.T.tolist(), strict=True):
            if count:
                record |= {f"loss_{name}": loss / count, f"accuracy_{name}": right / count}
        return record


def take_entries(entry: Tensor | Sequence[Any], rows: slice) -> Any:
    """Return rows of texts, or of what one or several encoders made of them."""
    if not isinstance(entry, Tensor) and all(isinstance(each, Tensor) for each in entry):
        return [each[rows] for each in entry]
    return entry[rows]
