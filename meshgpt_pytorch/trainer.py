"""Train a MeshAutoencoder, then a MeshTransformer on its codes.

Both trainers share one loop (meshgpt_pytorch.training.loop) on accelerate, and add how a batch
becomes a loss. Upstream's arguments keep their names, order and defaults.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from types import MappingProxyType
from typing import Any

from einops import reduce
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from meshgpt_pytorch.data import MeshDataset
from meshgpt_pytorch.data.fingerprints import fingerprint_weights
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.training.batches import TEXT_KEYS, require_arguments
from meshgpt_pytorch.training.loop import MeshTrainer
from meshgpt_pytorch.training.options import SchedulerFactory, StepHook, TrainerOptions
from meshgpt_pytorch.transformer.model import MeshTransformer

__all__ = ["MeshAutoencoderTrainer", "MeshTransformerTrainer"]

MESH_KEYS = ("vertices", "faces", "face_edges")
AUTOENCODER_EMA: Mapping[str, Any] = MappingProxyType({"use_foreach": True})


class MeshAutoencoderTrainer(MeshTrainer):
    """Train an autoencoder, and a moving average of it that validates and tokenizes.

    Samples are dicts with ``vertices``, ``faces`` and perhaps ``face_edges``, or tuples and lists
    that ``data_kwargs`` names; whatever else is in a dict (texts, names) is left out. The loss of
    a step is the mean over all its faces, in however many batches they came.

    Args:
        model: autoencoder to train, in place.
        dataset: samples to train on, each seen once an epoch in a new order.
        num_train_steps: optimizer steps.
        batch_size: meshes in a batch, for each process.
        grad_accum_every: batches in an optimizer step.
        val_dataset: samples to validate with.
        val_every: steps between validations.
        val_num_batches: most batches of a validation, the same each time; None reads all.
        learning_rate: of AdamW, reached at the end of the warm-up.
        weight_decay: on matrices only.
        max_grad_norm: clips the gradient of all parameters together.
        ema_kwargs: arguments of ``ema_pytorch.EMA``.
        scheduler: class of torch.optim.lr_scheduler; the learning rate is constant without.
        scheduler_kwargs: its arguments.
        accelerator_kwargs: arguments of ``accelerate.Accelerator``.
        optimizer_kwargs: further arguments of ``torch.optim.AdamW``.
        checkpoint_every: steps between checkpoints, ``mesh-autoencoder.ckpt.<step>``.
        checkpoint_folder: folder for checkpoints and ``mesh-autoencoder.history.jsonl``.
        data_kwargs: names of the entries of a tuple; a data set's own ``data_kwargs`` come first.
        warmup_steps: steps in which the learning rate rises linearly.
        use_wandb_tracking: log to wandb inside ``with trainer.wandb_tracking(project):``.
        progress: show a progress bar.
        time_limit: seconds after which a call of ``train`` ends, between two steps.
        seed: seeds the order of the data, and all of training's randomness from its first step.
        on_step: called with each step's record; training ends if it returns True.
        quantizer_warmup_steps: steps, from the first, in which the decoder reads vertices
            unquantised. An encoder and decoder that agree already learn a codebook much sooner
            than all three from nothing.

    Raises:
        ValueError: an option outside its range, or a data set smaller than a batch.
        ImportError: wandb is asked for and not installed.
    """

    checkpoint_name = "mesh-autoencoder"

    def __init__(
        self,
        model: MeshAutoencoder,
        dataset: Dataset[Any],
        num_train_steps: int,
        batch_size: int,
        grad_accum_every: int,
        val_dataset: Dataset[Any] | None = None,
        val_every: int = 100,
        val_num_batches: int | None = 5,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
        ema_kwargs: Mapping[str, Any] = AUTOENCODER_EMA,
        scheduler: SchedulerFactory | None = None,
        scheduler_kwargs: Mapping[str, Any] | None = None,
        accelerator_kwargs: Mapping[str, Any] | None = None,
        optimizer_kwargs: Mapping[str, Any] | None = None,
        checkpoint_every: int = 1000,
        checkpoint_folder: str | PathLike[str] = "./checkpoints",
        data_kwargs: Sequence[str] = MESH_KEYS,
        warmup_steps: int = 1000,
        use_wandb_tracking: bool = False,
        *,
        progress: bool = True,
        time_limit: float | None = None,
        seed: int | None = None,
        on_step: StepHook | None = None,
        quantizer_warmup_steps: int = 0,
    ) -> None:
        if quantizer_warmup_steps < 0:
            raise ValueError(
                f"quantizer_warmup_steps must be 0 or more, got {quantizer_warmup_steps}; 0 trains "
                "with the quantizer from the first step"
            )
        self.quantizer_warmup_steps = quantizer_warmup_steps
        options = TrainerOptions(
            num_train_steps=num_train_steps,
            batch_size=batch_size,
            grad_accum_every=grad_accum_every,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            optimizer_kwargs=optimizer_kwargs,
            scheduler=scheduler,
            scheduler_kwargs=scheduler_kwargs,
            warmup_steps=warmup_steps,
            ema_kwargs=ema_kwargs,
            accelerator_kwargs=accelerator_kwargs,
            val_every=val_every,
            val_num_batches=val_num_batches,
            checkpoint_every=checkpoint_every,
            checkpoint_folder=checkpoint_folder,
            data_kwargs=data_kwargs,
            use_wandb_tracking=use_wandb_tracking,
            progress=progress,
            time_limit=time_limit,
            seed=seed,
            on_step=on_step,
        )
        self.pad_id = model.pad_id
        super().__init__(model, dataset, val_dataset, options, pad_id=model.pad_id)

    def accepted_arguments(self) -> frozenset[str]:
        """Return the names of the entries of a batch that the model takes."""
        return frozenset(MESH_KEYS)

    def check_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Check that a batch holds meshes."""
        require_arguments(arguments, "vertices", "faces")
        return dict(arguments)

    def compute_losses(self, model: Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the total loss, and its reconstruction and commitment parts."""
        loss, (recon_loss, commit_loss) = model(
            **arguments,
            return_loss_breakdown=True,
            skip_quantizer=self.step < self.quantizer_warmup_steps,
        )
        return {"loss": loss, "recon_loss": recon_loss, "commit_loss": commit_loss.sum()}

    def count_faces(self, arguments: Mapping[str, Any]) -> Tensor:
        """Return the number of faces in a batch."""
        return count_faces(arguments["faces"], self.pad_id)

    def count_targets(self, arguments: Mapping[str, Any]) -> Tensor:
        """Return the number of faces: each has the same number of coordinates."""
        return self.count_faces(arguments)

    @property
    def ema_tokenizer(self) -> MeshAutoencoder:
        """The averaged autoencoder.

        Raises:
            RuntimeError: asked of another process than the main one, which alone has it.
        """
        if self.average is None:
            raise RuntimeError(
                "the averaged autoencoder lives on the main process; tokenize there, or use "
                "trainer.unwrapped_model"
            )
        model = self.average.model
        assert isinstance(model, MeshAutoencoder), "an average is a copy of the model"
        return model

    def tokenize(self, vertices: Tensor, faces: Tensor, face_edges: Tensor | None = None) -> Tensor:
        """Turn meshes into codes with the averaged autoencoder; as ``MeshAutoencoder.tokenize``."""
        return self.ema_tokenizer.tokenize(vertices, faces, face_edges)


class MeshTransformerTrainer(MeshTrainer):
    """Train a transformer on meshes, or on their codes.

    Samples are dicts with ``codes``, or else ``vertices`` and ``faces``; with ``text_encodings``,
    ``text_embeds`` or ``texts`` for a model that is conditioned on text. Where a sample has both,
    codes are taken before meshes and encodings before texts; entries that the model does not take
    are left out. The loss of a step is the mean over all its codes and ends of meshes.

    Args:
        model: transformer to train, in place; its autoencoder stays as it is.
        dataset: samples to train on, each seen once an epoch in a new order.
        num_train_steps: optimizer steps.
        batch_size: meshes in a batch, for each process.
        grad_accum_every: batches in an optimizer step.
        learning_rate: of AdamW, reached at the end of the warm-up.
        weight_decay: on matrices only.
        max_grad_norm: clips the gradient of all parameters together; None for no clipping.
        val_dataset: samples to validate with.
        val_every: steps between validations.
        val_num_batches: most batches of a validation, the same each time; None reads all.
        scheduler: class of torch.optim.lr_scheduler; the learning rate is constant without.
        scheduler_kwargs: its arguments.
        ema_kwargs: arguments of ``ema_pytorch.EMA``; a moving average is kept if they are given.
        accelerator_kwargs: arguments of ``accelerate.Accelerator``.
        optimizer_kwargs: further arguments of ``torch.optim.AdamW``.
        checkpoint_every: steps between checkpoints, ``mesh-transformer.ckpt.<step>``.
        checkpoint_folder: folder for checkpoints and ``mesh-transformer.history.jsonl``.
        data_kwargs: names of the entries of a tuple; a data set's own ``data_kwargs`` come first.
        warmup_steps: steps in which the learning rate rises linearly.
        use_wandb_tracking: log to wandb inside ``with trainer.wandb_tracking(project):``.
        progress: show a progress bar.
        time_limit: seconds after which a call of ``train`` ends, between two steps.
        seed: seeds the order of the data, and all of training's randomness from its first step.
        on_step: called with each step's record; training ends if it returns True.

    Raises:
        ValueError: an option outside its range, a data set smaller than a batch, meshes longer
            than the model's max_seq_len, or codes of another autoencoder.
        ImportError: wandb is asked for and not installed.
    """

    checkpoint_name = "mesh-transformer"

    def __init__(
        self,
        model: MeshTransformer,
        dataset: Dataset[Any],
        num_train_steps: int,
        batch_size: int,
        grad_accum_every: int,
        learning_rate: float = 2e-4,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = 0.5,
        val_dataset: Dataset[Any] | None = None,
        val_every: int = 1,
        val_num_batches: int | None = 5,
        scheduler: SchedulerFactory | None = None,
        scheduler_kwargs: Mapping[str, Any] | None = None,
        ema_kwargs: Mapping[str, Any] | None = None,
        accelerator_kwargs: Mapping[str, Any] | None = None,
        optimizer_kwargs: Mapping[str, Any] | None = None,
        checkpoint_every: int = 1000,
        checkpoint_folder: str | PathLike[str] = "./checkpoints",
        data_kwargs: Sequence[str] = (*MESH_KEYS, "texts"),
        warmup_steps: int = 1000,
        use_wandb_tracking: bool = False,
        *,
        progress: bool = True,
        time_limit: float | None = None,
        seed: int | None = None,
        on_step: StepHook | None = None,
    ) -> None:
        options = TrainerOptions(
            num_train_steps=num_train_steps,
            batch_size=batch_size,
            grad_accum_every=grad_accum_every,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            optimizer_kwargs=optimizer_kwargs,
            scheduler=scheduler,
            scheduler_kwargs=scheduler_kwargs,
            warmup_steps=warmup_steps,
            ema_kwargs=ema_kwargs,
            accelerator_kwargs=accelerator_kwargs,
            val_every=val_every,
            val_num_batches=val_num_batches,
            checkpoint_every=checkpoint_every,
            checkpoint_folder=checkpoint_folder,
            data_kwargs=data_kwargs,
            use_wandb_tracking=use_wandb_tracking,
            progress=progress,
            time_limit=time_limit,
            seed=seed,
            on_step=on_step,
        )
        self.pad_id = model.pad_id
        self.max_seq_len = model.max_seq_len
        self.codes_a_face = model.num_codes_per_face
        self.is_conditioned = model.condition_on_text
        for each in (dataset, val_dataset):
            self._check_dataset(each, model)
        super().__init__(model, dataset, val_dataset, options, pad_id=model.pad_id)

    def _check_dataset(self, dataset: Dataset[Any] | None, model: MeshTransformer) -> None:
        """Check what a data set knows of its meshes without reading them."""
        if not isinstance(dataset, MeshDataset):
            return
        self._check_lengths(dataset.num_faces * self.codes_a_face, "mesh {} of the data set")
        takes_codes = "codes" in dataset.item_keys
        if takes_codes and dataset.codes_fingerprint != fingerprint_weights(model.autoencoder):
            raise ValueError(
                "the codes of the data set must come from the transformer's autoencoder, got "
                "codes of another one, or of other weights; call "
                "dataset.cache_codes(transformer.autoencoder)"
            )

    def _check_lengths(self, lengths: Tensor, place: str) -> None:
        longest = int(lengths.argmax())
        length = int(lengths[longest])
        if length > self.max_seq_len:
            raise ValueError(
                f"a mesh must have at most max_seq_len = {self.max_seq_len} codes "
                f"({self.max_seq_len // self.codes_a_face} faces), got {length} "
                f"({length // self.codes_a_face} faces) in {place.format(longest)}; leave it out, "
                f"simplify it, or build the transformer with a larger max_seq_len"
            )

    def accepted_arguments(self) -> frozenset[str]:
        """Return the names of the entries of a batch that the model takes."""
        text_keys = TEXT_KEYS if self.is_conditioned else frozenset()
        return frozenset((*MESH_KEYS, "codes")) | text_keys

    def check_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Check that a batch holds codes or meshes that fit; of two forms keep the derived one."""
        dropped: set[str] = set()
        if "codes" in arguments:
            dropped.update(MESH_KEYS)
        else:
            require_arguments(arguments, "vertices", "faces")
        if arguments.keys() & {"text_embeds", "text_encodings"}:
            dropped.add("texts")
        kept = {name: entry for name, entry in arguments.items() if name not in dropped}
        # padded to the longest, so that no value need be read unless one is too long
        length = kept["codes"][0].numel() if "codes" in kept else kept["faces"].shape[1]
        if length * (1 if "codes" in kept else self.codes_a_face) > self.max_seq_len:
            self._check_lengths(self._count_codes(kept), "mesh {} of a batch")
        return kept

    def compute_losses(self, model: Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the cross entropy of the codes."""
        return {"loss": model(**arguments)}

    def _count_codes(self, arguments: Mapping[str, Any]) -> Tensor:
        """Return the number of codes of each mesh, "b"."""
        if "codes" in arguments:
            return (arguments["codes"] != self.pad_id).flatten(start_dim=1).sum(dim=1)
        is_face = reduce(arguments["faces"] != self.pad_id, "b nf nvf -> b nf", "all")
        return is_face.sum(dim=1) * self.codes_a_face

    def count_faces(self, arguments: Mapping[str, Any]) -> Tensor:
        """Return the number of faces in a batch."""
        return self._count_codes(arguments).sum() / self.codes_a_face

    def count_targets(self, arguments: Mapping[str, Any]) -> Tensor:
        """Return the number of codes, and of the end that follows them in each mesh."""
        codes = self._count_codes(arguments)
        return codes.sum() + len(codes)


def count_faces(faces: Tensor, pad_id: int) -> Tensor:
    """Return the number of faces "b nf nvf" that are not padding."""
    return reduce(faces != pad_id, "b nf nvf -> b nf", "all").sum()
