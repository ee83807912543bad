"""Models as folders, on disk and on the Hugging Face hub: config.json and model.safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import device as Device
from torch.nn import Module

from meshgpt_pytorch.checkpoint.atomic import PathLike
from meshgpt_pytorch.checkpoint.upstream import HUB_FILES

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

AnyHubModel = TypeVar("AnyHubModel", bound="HubModel")


class HubModel(
    ModelHubMixin,
    Module,
    library_name="meshgpt-pytorch",
    paper_url="https://arxiv.org/abs/2311.15475",
    tags=["mesh-generation", "3d"],
):
    """The part of ``SavedModule`` that knows folders; saving into them is huggingface-hub's."""

    def save(self, path: PathLike, overwrite: bool = True) -> None:
        """Write weights and constructor arguments into one file."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """Return what a person wants to know of the model's file, as plain JSON values."""
        raise NotImplementedError

    @classmethod
    def init_and_load(
        cls: type[AnyHubModel],
        path: PathLike,
        strict: bool = True,
        *,
        overrides: Mapping[str, Any] | None = None,
    ) -> AnyHubModel:
        """Build the model that a file describes, and load its weights."""
        raise NotImplementedError

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory / WEIGHTS_FILE)
        write_config(save_directory, self.summary())

    # the mixin's takes any further options, for a method that does not know them
    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[AnyHubModel],
        pretrained_model_name_or_path: PathLike,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: PathLike | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        map_location: str | Device = "cpu",
        strict: bool = True,
        overrides: Mapping[str, Any] | None = None,
    ) -> AnyHubModel:
        """Build a model from a folder or from the hub, and load its weights.

        Args:
            pretrained_model_name_or_path: folder that `save_pretrained` or a trainer wrote, or the
                name of a repository on the hub. What meshgpt-pytorch 1.x put there is read too
                (``mesh-autoencoder.bin``, ``mesh-transformer.bin``); nothing in it is executed.
            force_download: download also what is in the cache.
            token: token of the hub; the one that was logged in with by default.
            cache_dir: where downloads are kept.
            local_files_only: download nothing.
            revision: branch, tag or commit of the repository.
            map_location: device of the model.
            strict: whether every key must be in both model and file, with one shape.
            overrides: constructor arguments that replace those of the file, or that it cannot hold
                (a text encoder).

        Raises:
            FileNotFoundError: the folder holds no model of this class.
            CheckpointError: the file is damaged, holds another class, or an argument is missing.
        """
        upstream = [HUB_FILES[each.__name__] for each in cls.__mro__ if each.__name__ in HUB_FILES]
        names = (WEIGHTS_FILE, *upstream)
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            path = find_file(folder, names)
        else:
            path = download_first(
                names,
                repo_id=str(pretrained_model_name_or_path),
                force_download=force_download,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                revision=revision,
            )
        model = cls.init_and_load(path, strict, overrides=overrides)
        model.to(map_location)
        return model


def write_config(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write what a model is, for people and for the hub; it is read from the weights' file."""
    (folder / CONFIG_FILE).write_text(f"{json.dumps(summary, indent=2)}\n")


def find_file(folder: Path, names: tuple[str, ...]) -> Path:
    """Return the first of some files that is in a folder."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{folder} must hold {' or '.join(names)}, got {sorted(p.name for p in folder.iterdir())}; "
        f"write the folder with save_pretrained"
    )


def download_first(names: tuple[str, ...], **options: Any) -> Path:
    """Download the first of some files that a repository has, or find it in the cache."""
    for name in names[:-1]:
        try:
            return Path(hf_hub_download(filename=name, **options))
        except EntryNotFoundError:
            continue
    return Path(hf_hub_download(filename=names[-1], **options))
