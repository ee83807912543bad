"""Train a MeshAutoencoder, then a MeshTransformer on its codes.

Both trainers share one loop (meshgpt_pytorch.training.loop) on accelerate, and add how a batch
becomes a loss. Upstream's arguments keep their names, order and defaults.
"""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.utils.data import Dataset

from meshgpt_pytorch.modes import evaluating
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.tokenizers.quantizer import require_initialized
from meshgpt_pytorch.training.acceleration import without_compilation
from meshgpt_pytorch.training.batches import (
    TEXT_KEYS,
    collate_for,
    require_arguments,
    require_texts,
)
from meshgpt_pytorch.training.inputs import TransformerInputs, check_sample_texts, count_faces
from meshgpt_pytorch.training.loop import MeshTrainer
from meshgpt_pytorch.training.options import (
    OptimizerFactory,
    SchedulerFactory,
    StepHook,
    TrainerOptions,
)
from meshgpt_pytorch.training.sampling import Samples, generate_samples, reconstruct_samples
from meshgpt_pytorch.training.validation import AutoencoderMeter, TransformerMeter
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
        num_train_steps: optimizer steps; or give num_epochs.
        batch_size: meshes in a batch, for each process.
        grad_accum_every: batches in an optimizer step.
        val_dataset: samples to validate with.
        val_every: steps between validations.
        val_num_batches: most batches of a validation, the same each time; None reads all.
        learning_rate: of the optimizer, reached at the end of the warm-up.
        weight_decay: on matrices only.
        max_grad_norm: clips the gradient of all parameters together; None for no clipping.
        ema_kwargs: arguments of ``ema_pytorch.EMA``.
        scheduler: class of torch.optim.lr_scheduler; the learning rate is constant without.
        scheduler_kwargs: its arguments.
        accelerator_kwargs: arguments of ``accelerate.Accelerator``.
        optimizer_kwargs: further arguments of the optimizer's class, ``torch.optim.AdamW``.
        checkpoint_every: steps between checkpoints, ``mesh-autoencoder.ckpt.<step>``.
        checkpoint_folder: folder for checkpoints and ``mesh-autoencoder.history.jsonl``.
        data_kwargs: names of the entries of a tuple; a data set's own ``data_kwargs`` come first.
        warmup_steps: steps in which the learning rate rises linearly.
        use_wandb_tracking: log to wandb inside ``with trainer.wandb_tracking(project):``.
        progress: show a progress bar.
        time_limit: seconds after which a call of ``train`` saves and ends, between two steps.
        seed: seeds the order of the data, and all of training's randomness from its first step.
        on_step: called with each step's record; training ends if it returns True.
        keep_checkpoints: how many of the newest are kept, beside the one with the lowest validation
            loss; None keeps all.
        num_epochs: in place of num_train_steps, how often the data set is read.
        optimizer: class of torch.optim to use instead of AdamW, or a ready optimizer of the
            model's parameters, whose own learning rate and weight decay count.
        max_skipped_steps: steps in a row, skipped since a number was not finite, that end training.
        num_workers: processes that read the data set ahead, for each process that trains.
        bucket_by_length: batch meshes of similar size; the data set must have ``num_faces``.
        compile: compile the parts of the model that take the time.
        sample_every: steps between samples: the first meshes of the validation set (or else of
            the data set) and their reconstructions, in ``mesh-autoencoder.samples.<step>``.
        num_samples: how many.
        quantizer_warmup_steps: steps, from the first, in which the decoder reads vertices
            unquantised. An encoder and decoder that agree already learn a codebook much sooner
            than all three from nothing.

    Raises:
        ValueError: an option outside its range, or a data set smaller than a batch or without
            meshes.
        ImportError: wandb is asked for and not installed.
    """

    checkpoint_name = "mesh-autoencoder"

    def __init__(
        self,
        model: MeshAutoencoder,
        dataset: Dataset[Any],
        num_train_steps: int | None = None,
        batch_size: int = 16,
        grad_accum_every: int = 1,
        val_dataset: Dataset[Any] | None = None,
        val_every: int = 100,
        val_num_batches: int | None = 5,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = 1.0,
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
        keep_checkpoints: int | None = None,
        num_epochs: int | None = None,
        optimizer: Optimizer | OptimizerFactory | None = None,
        max_skipped_steps: int = 10,
        num_workers: int = 0,
        bucket_by_length: bool = False,
        compile: bool = False,
        sample_every: int | None = None,
        num_samples: int = 4,
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
            keep_checkpoints=keep_checkpoints,
            num_epochs=num_epochs,
            optimizer=optimizer,
            max_skipped_steps=max_skipped_steps,
            num_workers=num_workers,
            bucket_by_length=bucket_by_length,
            compile=compile,
            sample_every=sample_every,
            num_samples=num_samples,
        )
        self.pad_id = model.pad_id
        super().__init__(
            model,
            dataset,
            val_dataset,
            options,
            collate=collate_for(model, model.pad_id),
            # the quantizer's, while it waits
            may_skip_parameters=quantizer_warmup_steps > 0,
        )

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

    def new_meter(self) -> AutoencoderMeter:
        """Return what measures a validation: losses, right faces, use of the codebooks."""
        # the quantizer has to have trained one step: the first one initialises a learned codebook
        is_quantizer_new = 0 < self.quantizer_warmup_steps >= self.step
        return AutoencoderMeter(skip_quantizer=is_quantizer_new)

    def make_samples(self, model: Any, arguments: Mapping[str, Any]) -> Samples:
        """Return meshes and their reconstructions."""
        skip_quantizer = self.new_meter().skip_quantizer
        return reconstruct_samples(model, arguments, skip_quantizer=skip_quantizer)

    def compiled_parts(self, model: MeshAutoencoder) -> list[Module]:
        """Return the graph convolutions and the decoder."""
        convolutions = [model.init_sage_conv, model.init_encoder_act_and_norm, *model.encoders]
        return [*convolutions, model.init_decoder_conv, *model.decoders, model.to_coor_logits]

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
        num_train_steps: optimizer steps; or give num_epochs.
        batch_size: meshes in a batch, for each process.
        grad_accum_every: batches in an optimizer step.
        learning_rate: of the optimizer, reached at the end of the warm-up.
        weight_decay: on matrices only.
        max_grad_norm: clips the gradient of all parameters together; None for no clipping.
        val_dataset: samples to validate with.
        val_every: steps between validations.
        val_num_batches: most batches of a validation, the same each time; None reads all.
        scheduler: class of torch.optim.lr_scheduler; the learning rate is constant without.
        scheduler_kwargs: its arguments.
        ema_kwargs: arguments of ``ema_pytorch.EMA``; a moving average is kept if they are given.
        accelerator_kwargs: arguments of ``accelerate.Accelerator``.
        optimizer_kwargs: further arguments of the optimizer's class, ``torch.optim.AdamW``.
        checkpoint_every: steps between checkpoints, ``mesh-transformer.ckpt.<step>``.
        checkpoint_folder: folder for checkpoints and ``mesh-transformer.history.jsonl``.
        data_kwargs: names of the entries of a tuple; a data set's own ``data_kwargs`` come first.
        warmup_steps: steps in which the learning rate rises linearly.
        use_wandb_tracking: log to wandb inside ``with trainer.wandb_tracking(project):``.
        progress: show a progress bar.
        time_limit: seconds after which a call of ``train`` saves and ends, between two steps.
        seed: seeds the order of the data, and all of training's randomness from its first step.
        on_step: called with each step's record; training ends if it returns True.
        keep_checkpoints: how many of the newest are kept, beside the one with the lowest validation
            loss; None keeps all.
        num_epochs: in place of num_train_steps, how often the data set is read.
        optimizer: class of torch.optim to use instead of AdamW, or a ready optimizer of the
            model's parameters, whose own learning rate and weight decay count.
        max_skipped_steps: steps in a row, skipped since a number was not finite, that end training.
        num_workers: processes that read the data set ahead, for each process that trains.
        bucket_by_length: batch meshes of similar size; the data set must have ``num_faces``.
        compile: compile the parts of the model that take the time.
        sample_every: steps between samples, generated into ``mesh-transformer.samples.<step>``.
        num_samples: how many.
        sample_texts: texts to generate for; by default those of the first items of the validation
            set (or else of the data set), whose meshes are drawn beside.

    Raises:
        ValueError: an option outside its range, a data set smaller than a batch or without what
            the model reads, meshes longer than its max_seq_len, or codes of another autoencoder.
        RuntimeError: the autoencoder has a learned codebook that was never initialised.
        ImportError: wandb is asked for and not installed.
    """

    checkpoint_name = "mesh-transformer"

    def __init__(
        self,
        model: MeshTransformer,
        dataset: Dataset[Any],
        num_train_steps: int | None = None,
        batch_size: int = 16,
        grad_accum_every: int = 1,
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
        keep_checkpoints: int | None = None,
        num_epochs: int | None = None,
        optimizer: Optimizer | OptimizerFactory | None = None,
        max_skipped_steps: int = 10,
        num_workers: int = 0,
        bucket_by_length: bool = False,
        compile: bool = False,
        sample_every: int | None = None,
        num_samples: int = 4,
        sample_texts: Sequence[str] | None = None,
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
            keep_checkpoints=keep_checkpoints,
            num_epochs=num_epochs,
            optimizer=optimizer,
            max_skipped_steps=max_skipped_steps,
            num_workers=num_workers,
            bucket_by_length=bucket_by_length,
            compile=compile,
            sample_every=sample_every,
            num_samples=num_samples,
        )
        with evaluating(model.autoencoder):
            require_initialized(model.autoencoder.quantizer)
        self.is_conditioned = model.condition_on_text
        self.sample_texts = check_sample_texts(sample_texts, model.condition_on_text)
        self.inputs = TransformerInputs(
            max_seq_len=model.max_seq_len,
            num_quantizers=model.num_quantizers,
            codes_a_face=model.num_codes_per_face,
            pad_id=model.pad_id,
        )
        for each in (dataset, val_dataset):
            self.inputs.check_dataset(each, model.autoencoder)
            if model.conditioner is not None:
                self.inputs.check_text_encodings(each, model.conditioner.encoders)
        collate = collate_for(model.autoencoder, model.pad_id)
        super().__init__(model, dataset, val_dataset, options, collate=collate)

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
        elif self.is_conditioned:
            require_texts(arguments)
        kept = {name: entry for name, entry in arguments.items() if name not in dropped}
        self.inputs.check(kept)
        return kept

    def compute_losses(self, model: Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the cross entropy of the codes."""
        return {"loss": model(**arguments)}

    def new_meter(self) -> TransformerMeter:
        """Return what measures a validation: loss and accuracy, overall and by place."""
        return TransformerMeter()

    def make_samples(self, model: Any, arguments: Mapping[str, Any]) -> Samples:
        """Return generated meshes, beside those whose texts they are for."""
        return generate_samples(model, arguments, self.sample_texts, self.options.num_samples)

    @property
    def generate(self) -> Callable[..., Any]:
        """Sampling with the averaged model, or else the model: ``MeshTransformer.generate``."""
        model = self.averaged_model
        assert isinstance(model, MeshTransformer), "an average is a copy of the model"
        return without_compilation()(model.generate)

    def compiled_parts(self, model: MeshTransformer) -> list[Module]:
        """Return the attention layers of both stages."""
        return [model.decoder, model.fine_decoder]

    def count_faces(self, arguments: Mapping[str, Any]) -> Tensor:
        """Return the number of faces in a batch."""
        return self.inputs.count_codes(arguments).sum() / self.inputs.codes_a_face

    def count_targets(self, arguments: Mapping[str, Any]) -> Tensor:
        """Return the number of codes, and of the end that follows them in each mesh."""
        codes = self.inputs.count_codes(arguments)
        return codes.sum() + len(codes)
