"""Drawing the next codes of a batch: one code at a time, or a face as one CUDA graph."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from meshgpt_pytorch.transformer.distinct_faces import forbid_repeats
from meshgpt_pytorch.transformer.graphs import GraphedFunction, has_cuda_graphs
from meshgpt_pytorch.transformer.prediction import CodeModel, Predictor, SteppingPredictor
from meshgpt_pytorch.transformer.sampling import Sampling

# faces for which a static buffer has room at first; afterwards for as many more as there are
FIRST_ROOM = 128


class CodeDrawer:
    """Draw the next code of each mesh that is left of a batch.

    Args:
        model: the model.
        predictor: predicts its codes.
        sampling: how a code is drawn.
        batch: meshes at first.
        distinct_faces: forbid codes that would repeat a face, see ``forbid_repeats``.

    Attributes:
        rows: which meshes are left; those that have ended are left out by and by.
    """

    def __init__(
        self,
        model: CodeModel,
        predictor: Predictor,
        sampling: Sampling,
        batch: int,
        *,
        distinct_faces: bool = False,
    ) -> None:
        self.predictor = predictor
        self.sampling = sampling
        self.distinct_faces = distinct_faces
        self.face_size = {
            "num_vertices_per_face": model.num_vertices_per_face,
            "num_quantizers": model.num_quantizers,
        }
        self.batch = batch
        self.eos_token_id = model.eos_token_id
        self.per_face = model.num_codes_per_face
        self.rows: Int[Tensor, " rows"] = torch.arange(batch, device=model.device)

    def draw(self, codes: Int[Tensor, "b n"]) -> Int[Tensor, "rows drawn"]:
        """Draw what follows after ``codes``: all that was drawn before is in them."""
        position = codes.shape[1]
        can_end = position > 0 and position % self.per_face == 0
        logits = self.predictor.predict(codes).float()
        if self.distinct_faces:
            logits = forbid_repeats(logits, codes[self.rows], **self.face_size)
        return self._draw_code(logits, can_end=can_end)[:, None]

    def _draw_code(self, logits: Float[Tensor, "rows c"], *, can_end: bool) -> Int[Tensor, " rows"]:
        if not can_end:
            logits[:, self.eos_token_id].fill_(-torch.finfo(logits.dtype).max)
        if len(self.rows) == self.batch or self.sampling.takes_each_row_alone:
            return self.sampling.draw(logits)
        whole = logits.new_zeros(self.batch, logits.shape[1]).index_copy(0, self.rows, logits)
        return self.sampling.draw(whole)[self.rows]

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Go on with some rows of those that are left."""
        self.predictor.select(rows)
        self.rows = self.rows[rows]


class FaceDrawer(CodeDrawer):
    """Draw from the first code of a face to the first of the next, as one CUDA graph.

    Graphs begin behind a first code, because whether a mesh ends is looked at there, outside of
    them. So codes are drawn in the order in which ``CodeDrawer`` draws them, with the same random
    numbers; those before the first face, and those of the last, are drawn one by one.

    Args:
        limit: most codes of a mesh.

    Raises:
        ValueError: a device without CUDA graphs; a model that cannot be stepped; a filter of the
            caller, which might look at values.
    """

    predictor: SteppingPredictor

    def __init__(
        self,
        model: CodeModel,
        predictor: Predictor,
        sampling: Sampling,
        batch: int,
        limit: int,
    ) -> None:
        if not has_cuda_graphs(model.device):
            raise ValueError(
                f"cuda_graphs=True works on CUDA, got a model on {model.device}; leave it out, or "
                "move the model with model.to('cuda')"
            )
        if not isinstance(predictor, SteppingPredictor):
            raise ValueError(
                "cuda_graphs=True needs cache_kv=True and decoder options that can be stepped, got "
                "cache_kv=False or other options; leave it out"
            )
        if not sampling.takes_each_row_alone:
            raise ValueError(
                "cuda_graphs=True records the default filter_logits_fn, top_k, got "
                f"{sampling.filter_logits_fn}, which may look at values; leave one of the two out"
            )
        super().__init__(model, predictor, sampling, batch)
        self.limit = limit
        self.room = 0
        # the first code of a face, from which a graph goes on
        self.code = torch.zeros_like(self.rows)
        self.face = GraphedFunction(model.device, sampling.generator)

    def draw(self, codes: Int[Tensor, "b n"]) -> Int[Tensor, "rows drawn"]:
        """Draw what follows after ``codes``: a code, or as many as a face has."""
        length = codes.shape[1]
        is_behind_first_code = self.predictor.network is not None and length % self.per_face == 1
        if not is_behind_first_code or length + self.per_face > self.limit:
            return super().draw(codes)
        if self.room == 0:
            num_faces = length // self.per_face
            self.room = min(max(FIRST_ROOM, num_faces), self.limit // self.per_face - num_faces)
            self.predictor.make_static(self.room)
            self.face.forget()
        self.room -= 1
        self.code.copy_(codes[:, -1].index_select(0, self.rows))
        return self.face(self._draw_face)

    def _draw_face(self) -> Int[Tensor, "rows per_face"]:
        code, drawn = self.code, []
        for place in range(1, self.per_face + 1):
            logits = self.predictor.step(code).float()
            code = self._draw_code(logits, can_end=place == self.per_face)
            drawn.append(code)
        return torch.stack(drawn, dim=1)

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Go on with some rows of those that are left."""
        super().select(rows)
        self.code = self.code[rows]
        self.face.forget()
