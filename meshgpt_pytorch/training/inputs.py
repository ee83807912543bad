"""Whether meshes and codes fit a transformer, seen before the first step where it can be."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from einops import reduce
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from meshgpt_pytorch.data import MeshDataset
from meshgpt_pytorch.data.fingerprints import (
    describes_itself,
    fingerprint_encoder,
    fingerprint_weights,
)
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder


def check_sample_texts(texts: Sequence[str] | None, is_conditioned: bool) -> list[str] | None:
    """Return the texts to sample for as a list, before a long run finds out that they are none.

    Raises:
        ValueError: no texts, one text in place of several, or a model that reads none.
    """
    if texts is None:
        return None
    if not is_conditioned:
        raise ValueError(
            "sample_texts need a transformer with condition_on_text=True, got one without text; "
            "leave them out"
        )
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"sample_texts must be a list of one text or more, got {texts!r}; pass "
            f"sample_texts=['a chair'], or None for the texts of the data"
        )
    return list(texts)


@dataclass(frozen=True)
class TransformerInputs:
    """What a transformer reads: codes, whole faces of them, and no more than max_seq_len."""

    max_seq_len: int
    num_quantizers: int
    codes_a_face: int
    pad_id: int

    def check_dataset(self, dataset: Dataset[Any] | None, autoencoder: MeshAutoencoder) -> None:
        """Check what a data set knows of its meshes without reading them.

        Raises:
            ValueError: a mesh is too long, or the codes are of another autoencoder.
        """
        if not isinstance(dataset, MeshDataset):
            return
        self.check_lengths(dataset.num_faces * self.codes_a_face, "mesh {} of the data set")
        takes_codes = "codes" in dataset.item_keys
        if takes_codes and dataset.codes_fingerprint != fingerprint_weights(autoencoder):
            raise ValueError(
                "the codes of the data set must come from the transformer's autoencoder, got "
                "codes of another one, or of other weights; call "
                "dataset.cache_codes(transformer.autoencoder, rebuild=True)"
            )

    def check_text_encodings(self, dataset: Dataset[Any] | None, encoders: Sequence[Any]) -> None:
        """Check that a data set's text encodings are of the transformer's encoder.

        Warns:
            UserWarning: they are of another one, as far as the two can be told apart.
        """
        if not (isinstance(dataset, MeshDataset) and "text_encodings" in dataset.item_keys):
            return
        (encoder, *more) = encoders
        if more or not (isinstance(encoder, Module) or describes_itself(encoder)):
            return
        made_by, wanted = dataset.text_encodings_fingerprint, fingerprint_encoder(encoder)
        if made_by != wanted:
            warnings.warn(
                f"the text encodings of the data set were made by {made_by}, and the transformer "
                f"encodes texts with {wanted}; unless they are the same, call "
                f"dataset.cache_text_encodings with the transformer's encoder",
                stacklevel=3,
            )

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Check the codes or faces of a batch, as far as shapes tell.

        Raises:
            ValueError: codes of another number of quantizers, parts of faces, or too many.
        """
        if "codes" not in arguments:
            num_codes = arguments["faces"].shape[1] * self.codes_a_face
        else:
            codes = arguments["codes"]
            if codes.ndim == 3 and codes.shape[-1] != self.num_quantizers:
                raise ValueError(
                    f"codes must have the autoencoder's {self.num_quantizers} quantizers, got "
                    f"{codes.shape[-1]}; tokenize the meshes with transformer.autoencoder"
                )
            num_codes = codes[0].numel()
            if num_codes % self.codes_a_face:
                raise ValueError(
                    f"codes must be whole faces, {self.codes_a_face} each, got {num_codes}; "
                    f"tokenize the meshes with transformer.autoencoder"
                )
        # padded to the longest, so that no value need be read unless one is too long
        if num_codes > self.max_seq_len:
            self.check_lengths(self.count_codes(arguments), "mesh {} of a batch")

    def check_lengths(self, lengths: Tensor, place: str) -> None:
        """Check the numbers of codes of some meshes; `place` names one of them, for the error."""
        longest = int(lengths.argmax())
        length = int(lengths[longest])
        if length > self.max_seq_len:
            raise ValueError(
                f"a mesh must have at most max_seq_len = {self.max_seq_len} codes "
                f"({self.max_seq_len // self.codes_a_face} faces), got {length} "
                f"({length // self.codes_a_face} faces) in {place.format(longest)}; leave it out, "
                f"simplify it, or build the transformer with a larger max_seq_len"
            )

    def count_codes(self, arguments: Mapping[str, Any]) -> Tensor:
        """Return the number of codes of each mesh, "b"."""
        if "codes" in arguments:
            return (arguments["codes"] != self.pad_id).flatten(start_dim=1).sum(dim=1)
        is_face = reduce(arguments["faces"] != self.pad_id, "b nf nvf -> b nf", "all")
        return is_face.sum(dim=1) * self.codes_a_face


def count_faces(faces: Tensor, pad_id: int) -> Tensor:
    """Return the number of faces "b nf nvf" that are not padding."""
    return reduce(faces != pad_id, "b nf nvf -> b nf", "all").sum()
