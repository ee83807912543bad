"""The loop that both trainers share: train -> step -> validate -> save."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device, set_seed
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.utils.data import Dataset

from meshgpt_pytorch.checkpoint import SavedModule
from meshgpt_pytorch.modes import evaluating
from meshgpt_pytorch.training.acceleration import (
    build_accelerator,
    common_seed,
    compile_parts,
    prepare_stepping,
    without_compilation,
)
from meshgpt_pytorch.training.averaging import AveragedModel
from meshgpt_pytorch.training.batches import (
    Collate,
    TrainingBatches,
    build_validation_loader,
    forward_arguments,
)
from meshgpt_pytorch.training.checkpointing import Checkpointing
from meshgpt_pytorch.training.interruption import EXIT_CODE, Interruption, noting_sigterm
from meshgpt_pytorch.training.optimizer import LearningRate, build_optimizer
from meshgpt_pytorch.training.options import Record, TrainerOptions
from meshgpt_pytorch.training.random_state import seeded
from meshgpt_pytorch.training.reporting import Reporter
from meshgpt_pytorch.training.sampling import FirstItems, Samples, require_pictures
from meshgpt_pytorch.training.skipping import SkippedSteps
from meshgpt_pytorch.training.validation import Meter
from meshgpt_pytorch.training.whole_model import WholeModel


class MeshTrainer(Checkpointing):
    """Train one model on one data set; the public trainers say how a batch becomes a loss."""

    def __init__(
        self,
        model: SavedModule,
        dataset: Dataset[Any],
        val_dataset: Dataset[Any] | None,
        options: TrainerOptions,
        *,
        collate: Callable[..., Any],
        may_skip_parameters: bool = False,
    ) -> None:
        """Check options and data, and set up everything but the random generators.

        Args:
            model: model to train, in place.
            dataset: samples to train on.
            val_dataset: samples to validate with.
            options: options of the run.
            collate: ``custom_collate``, told what the model reads.
            may_skip_parameters: whether a step may leave parameters without a gradient.

        Raises:
            ValueError: an option or a data set that training cannot work with.
            TypeError: the model was built with an argument that no checkpoint can hold.
            ImportError: wandb is asked for and not installed.
        """
        model.checked_description()
        self.options = options
        self.step = 0
        self.last_checkpoint: Path | None = None
        self.accelerator = build_accelerator(
            options.accelerator_kwargs,
            use_wandb_tracking=options.use_wandb_tracking,
            find_unused_parameters=may_skip_parameters,
        )
        self.checkpoint_folder = Path(options.checkpoint_folder)
        self.data_kwargs = tuple(getattr(dataset, "data_kwargs", None) or options.data_kwargs)
        collate = partial(collate, data_kwargs=self.data_kwargs)

        self.batches = TrainingBatches(
            dataset,
            self.accelerator,
            batch_size=options.batch_size,
            collate=collate,
            seed=common_seed(options.seed),
            num_workers=options.num_workers,
            bucket_by_length=options.bucket_by_length,
            grad_accum_every=options.grad_accum_every,
        )
        self.num_train_steps = options.num_train_steps or self.batches.steps_in_epochs(
            options.num_epochs or 0
        )
        self._check_first_item(dataset, collate)
        self.first_items = FirstItems(
            dataset if val_dataset is None else val_dataset, options.num_samples, collate
        )
        if options.sample_every is not None:
            require_pictures()
        self.val_loader = None
        if val_dataset is not None:
            self.val_loader = build_validation_loader(
                val_dataset,
                batch_size=options.batch_size,
                collate=collate,
                num_workers=options.num_workers,
            )
            self._check_first_item(val_dataset, collate)

        if self.accelerator.device_placement:
            model.to(self.accelerator.device)  # before the optimizer, whose kernels may ask
        self.whole = WholeModel(self.accelerator, model)
        self.average: AveragedModel | None = None
        if options.ema_kwargs is not None and self.is_main:
            self.average = AveragedModel(self.whole.model, options.ema_kwargs)

        optimizer = self._build_optimizer(model)
        self.skipped = SkippedSteps(options.max_skipped_steps)
        if options.compile:
            compile_parts(self.compiled_parts(model))
        self.stepping = prepare_stepping(
            self.accelerator,
            model,
            optimizer,
            max_grad_norm=options.max_grad_norm,
            batch_size=options.batch_size,
        )
        self.model, self.optimizer = self.stepping.model, self.stepping.optimizer
        if self.accelerator.mixed_precision != "no":
            # steps choose their precision themselves; the model computes as its file does
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.reporter = Reporter(
            self.accelerator,
            self.checkpoint_folder,
            name=self.checkpoint_name,
            progress=options.progress,
        )

    def _build_optimizer(self, model: Module) -> Optimizer:
        """Make the optimizer, and attach to it what sets its learning rate."""
        options = self.options
        optimizer = build_optimizer(
            model,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            optimizer_kwargs=options.optimizer_kwargs,
            optimizer=options.optimizer,
        )
        self.learning_rate = LearningRate(
            optimizer,
            scheduler=options.scheduler,
            scheduler_kwargs=options.scheduler_kwargs,
            warmup_steps=options.warmup_steps,
        )
        return optimizer

    # what a trainer adds

    def accepted_arguments(self) -> frozenset[str]:
        """Return the names of the entries of a batch that the model takes."""
        raise NotImplementedError

    def check_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Check what the model is about to be given, and choose where there is a choice."""
        raise NotImplementedError

    def compute_losses(self, model: Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return scalars, averaged over the batch; "loss" is trained."""
        raise NotImplementedError

    def count_faces(self, arguments: Mapping[str, Any]) -> Tensor:
        """Return the number of faces in a batch, a scalar."""
        raise NotImplementedError

    def count_targets(self, arguments: Mapping[str, Any]) -> Tensor:
        """Return the number of predictions that the loss averages over, or its like."""
        raise NotImplementedError

    def make_samples(self, model: Any, arguments: Mapping[str, Any]) -> Samples:
        """Return what a model, in eval mode, makes of some items."""
        raise NotImplementedError

    def new_meter(self) -> Meter:
        """Return what measures a validation."""
        raise NotImplementedError

    def compiled_parts(self, model: Any) -> list[Module]:
        """Return the parts of a model that `compile` is for."""
        raise NotImplementedError

    # the loop

    def train(self) -> None:
        """Train until the step count, the time limit, or a hook ends it; may be called again.

        A checkpoint of the last step is left, however it ends.

        Raises:
            SystemExit: the process was sent SIGTERM; the checkpoint was written before.
            RuntimeError: too many steps in a row were skipped, of which there is no checkpoint.
        """
        self.checkpoint_folder.mkdir(parents=True, exist_ok=True)
        if self.is_main:
            self.checkpoints.put_in_order()
        if self.options.seed is not None and self.step == 0:
            set_seed(self.options.seed, device_specific=True)
        if not self.model.training:
            self.model.train()

        self.stepping.take_up_weights()

        started = time.monotonic()
        batches = iter(self.batches)
        saved_step = self.step
        is_save_due = False
        with noting_sigterm() as sigterm, self.reporter.running(self.step, self.num_train_steps):
            while self.step < self.num_train_steps and not self._is_late(started):
                record = self._train_step(batches)
                is_ending = self._is_ending(sigterm)
                # who sends SIGTERM does not wait for a validation, nor for the step after one
                if not is_ending and self._validate_and_sample(record):
                    is_ending = self._is_ending(sigterm)
                self.reporter.report(record)
                self._stop_if_diverged(record)
                is_save_due |= self.step % self.options.checkpoint_every == 0
                # what is saved in a row of skipped steps might be what makes them fail
                if is_save_due and not self.skipped.in_a_row:
                    self.save_step()
                    saved_step, is_save_due = self.step, False
                if is_ending or (self.options.on_step is not None and self.options.on_step(record)):
                    break
            if self.step != saved_step and (
                not self.skipped.in_a_row or self._has_finite_buffers()
            ):
                self.save_step()
            if self._is_ending(sigterm):
                raise SystemExit(EXIT_CODE)
        self.whole.gather()
        self.print(f"{self.checkpoint_name}: {self.step} of {self.num_train_steps} steps")

    __call__ = forward = train

    def _train_step(self, batches: Iterator[Any]) -> Record:
        """Take one optimizer step over `grad_accum_every` batches."""
        started = time.monotonic()
        micro_batches = [
            self._forward_arguments(next(batches)) for _ in range(self.options.grad_accum_every)
        ]
        weights = self._weights(micro_batches)

        totals: dict[str, Tensor] = {}
        for index, arguments in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            with self.stepping.accumulating(is_last=is_last), self.accelerator.autocast():
                losses = self.compute_losses(self.model, arguments)
                self.stepping.backward(losses["loss"] * weights[index])
            for name, loss in losses.items():
                totals.setdefault(name, loss.new_zeros((), dtype=torch.float32))
                totals[name] += loss.detach() * weights[index]

        totals["grad_norm"] = self.stepping.clip_gradients()
        faces = [self.count_faces(arguments).float() for arguments in micro_batches]
        totals["faces"] = torch.stack(faces).sum()
        numbers = self._read(totals)
        total_faces = numbers.pop("faces") * self.accelerator.num_processes
        numbers["learning_rate"] = self.learning_rate.value
        if not self._optimizer_step(is_finite=all(map(isfinite, numbers.values()))):
            numbers["skipped"] = 1.0

        numbers["faces_per_second"] = total_faces / (time.monotonic() - started)
        return {"step": self.step, **numbers}

    def _optimizer_step(self, *, is_finite: bool) -> bool:
        """Update the weights, their average and the schedule; return whether the step was taken.

        A step whose loss or gradient is not finite is skipped, in all processes alike.
        """
        is_taken = self.stepping.step(is_finite=is_finite)
        self.step += 1
        if is_taken:
            self.learning_rate.step()
            if self.options.ema_kwargs is not None:
                self.whole.gather()
            if self.average is not None:
                self.average.update()
        return is_taken

    def _validate_and_sample(self, record: Record) -> bool:
        """Do what is due at this step, add it to the record, and tell whether anything was."""
        is_val_due = self.val_loader is not None and self.step % self.options.val_every == 0
        is_sample_due = self.step % (self.options.sample_every or inf) == 0
        if is_val_due:
            record |= self.validate()
        if is_sample_due:
            self.sample()
        return is_val_due or is_sample_due

    @torch.no_grad()
    def sample(self) -> Path:
        """Write what the averaged model, or else the model, makes now; return the folder.

        To be called by every process; the main one samples. The random numbers of training are
        not touched.

        Raises:
            RuntimeError: Pillow is not installed.
        """
        self.wait()
        self.whole.gather()
        folder = self.checkpoint_folder / f"{self.checkpoint_name}.samples.{self.step}"
        if self.is_main:
            self.checkpoint_folder.mkdir(parents=True, exist_ok=True)
            batch = send_to_device(self.first_items.read(), self.device)
            model = self.averaged_model
            with without_compilation(), evaluating(model), self.accelerator.autocast():
                samples = self.make_samples(model, self._forward_arguments(batch))
            samples.write(folder)
        self.wait()
        return folder

    def _stop_if_diverged(self, record: Record) -> None:
        """Count steps that were skipped, and end training after too many in a row."""
        if self.skipped.are_too_many(record, self.accelerator.scaler):
            raise self.skipped.error(record, self.batches.recent_indices(), self.last_checkpoint)

    def _has_finite_buffers(self) -> bool:
        """Tell whether skipped steps left every learned codebook a codebook, in all processes."""
        is_broken = not all(bool(each.isfinite().all()) for each in self.whole.trained.buffers())
        return self._read({"broken": torch.tensor(float(is_broken))})["broken"] == 0

    def _weights(self, micro_batches: list[dict[str, Any]]) -> list[Tensor | float]:
        """Share the step among its batches by their targets, as one large batch would.

        The mean over processes that follows in the backward pass is undone, since it would weigh
        processes alike.
        """
        processes = self.accelerator.num_processes
        if len(micro_batches) == 1 and processes == 1:
            return [1.0]
        counts = torch.stack([self.count_targets(arguments) for arguments in micro_batches]).float()
        total = self.accelerator.reduce(counts.sum(), reduction="sum")
        return list(counts * processes / total)

    def _read(self, totals: Mapping[str, Tensor]) -> Record:
        """Average scalars over processes, and wait for the device once for all of them."""
        values = torch.stack([value.float().to(self.device) for value in totals.values()])
        values = self.accelerator.reduce(values, reduction="mean")
        return dict(zip(totals, values.tolist(), strict=True))

    def _is_late(self, started: float) -> bool:
        """Tell whether the time limit has passed, for all processes alike."""
        if self.options.time_limit is None:
            return False
        if self.is_main and time.monotonic() - started > self.options.time_limit:
            self.accelerator.set_trigger()
        return bool(self.accelerator.check_trigger())

    def _is_ending(self, sigterm: Interruption) -> bool:
        """Tell whether any process was asked to end, for all processes alike."""
        if self.accelerator.num_processes == 1:
            return sigterm.is_requested
        if sigterm.is_requested:
            self.accelerator.set_trigger()
        return bool(self.accelerator.check_trigger())

    def _check_first_item(self, dataset: Dataset[Any], collate: Collate) -> None:
        """Check what the items of a data set are, before anything is built for them."""
        with seeded(0):
            batch = collate([dataset[0]])
        self._forward_arguments(batch)

    def _forward_arguments(self, batch: Any) -> dict[str, Any]:
        arguments = forward_arguments(batch, self.data_kwargs, self.accepted_arguments())
        return self.check_arguments(arguments)

    @torch.no_grad()
    def validate(self) -> Record:
        """Measure the averaged model, or else the model, on the validation set.

        Up to `val_num_batches` batches are read, always the same ones, by the main process. Every
        part of the model is left in the mode it was in.
        """
        if self.val_loader is None:
            raise ValueError("validate needs a val_dataset, got None; pass one to the trainer")
        self.wait()
        self.whole.gather()
        meter = self.new_meter()
        model = self.averaged_model
        batches = islice(self.val_loader, self.options.val_num_batches) if self.is_main else ()
        with without_compilation(), evaluating(model):
            for batch in batches:
                arguments = self._forward_arguments(send_to_device(batch, self.device))
                with self.accelerator.autocast():
                    meter.add(model, arguments)
        self.wait()
        return {f"val_{name}": value for name, value in meter.result().items()}
