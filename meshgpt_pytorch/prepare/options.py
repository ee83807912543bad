"""What `prepare_meshes` was asked for, as the workers get it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Captions", "PrepareOptions"]

Captions = Literal["name", "folder", "sidecar", "csv", "catalogue"]

# part of the key of what is kept between runs: raise it where the same file gives another mesh
RECIPE_VERSION = 1


@dataclass(frozen=True)
class PrepareOptions:
    """Options that decide what becomes of one mesh; see `prepare_meshes`."""

    max_faces: int = 800
    adaptive: bool = False
    quads: bool = False
    merge_triangles: bool = False
    max_hausdorff: float = 0.10
    max_chamfer: float = 0.010
    num_discrete_coors: int = 128
    up_axis: int = 1
    max_input_faces: int = 2_000_000
    max_file_bytes: int = 1_000_000_000

    def __post_init__(self) -> None:
        if self.max_faces < 4:
            raise ValueError(f"max_faces must be at least 4, got {self.max_faces}")
        if self.merge_triangles and not self.quads:
            raise ValueError("merge_triangles=True makes quads; pass quads=True with it")
        if self.up_axis not in (0, 1, 2):
            raise ValueError(f"up_axis must be 0, 1 or 2, got {self.up_axis}")
        for name in ("max_hausdorff", "max_chamfer", "max_input_faces", "max_file_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.num_discrete_coors < 2:
            raise ValueError(
                f"num_discrete_coors must be at least 2, got {self.num_discrete_coors}"
            )

    @property
    def fingerprint(self) -> str:
        """Hash of the options and of the recipe."""
        values: dict[str, Any] = {"recipe": RECIPE_VERSION, **asdict(self)}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
