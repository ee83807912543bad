"""Stage 6 of the flow: text, a prompt or nothing -> codes, and with the autoencoder faces."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm
from x_transformers.autoregressive_wrapper import top_k

from meshgpt_pytorch.modes import evaluating
from meshgpt_pytorch.tokenizers.outputs import DecodedFaces
from meshgpt_pytorch.transformer.checks import check_codes
from meshgpt_pytorch.transformer.codes import MeshCodes
from meshgpt_pytorch.transformer.conditioning import match_batch
from meshgpt_pytorch.transformer.drawing import CodeDrawer, FaceDrawer
from meshgpt_pytorch.transformer.guidance import check_guidance
from meshgpt_pytorch.transformer.prediction import CodeModel, choose_predictor
from meshgpt_pytorch.transformer.sampling import Sampling
from meshgpt_pytorch.transformer.step_linear import Precision
from meshgpt_pytorch.transformer.text import EncodedText
from meshgpt_pytorch.typing import typecheck

NO_KWARGS: Mapping[str, Any] = MappingProxyType({})


class GeneratedFace(NamedTuple):
    """A face that has just been generated.

    row: which mesh of the batch.
    face: which face of the mesh, those of its prompt counted.
    codes: ``nvf q``, the codes of the face, which are final.
    mesh_codes: ``n q``, the codes of the mesh up to and with the face.
        ``model.detokenize(mesh_codes[None])`` turns them into coordinates. It looks at faces before
        and behind, so that the last faces may still move.
    """

    row: int
    face: int
    codes: Int[Tensor, "nvf q"]
    mesh_codes: Int[Tensor, "n q"]


class MeshGeneration(CodeModel, MeshCodes):
    """The sampling part of ``MeshTransformer``, which inherits it and predicts the logits."""

    @typecheck
    @torch.no_grad()
    def generate(
        self,
        prompt: Int[Tensor, "..."] | None = None,
        batch_size: int | None = None,
        filter_logits_fn: Callable[..., Tensor] = top_k,
        filter_kwargs: Mapping[str, Any] = NO_KWARGS,
        temperature: float | int = 1.0,
        return_codes: bool = False,
        texts: Sequence[str] | None = None,
        text_embeds: Tensor | None = None,
        cond_scale: float | int = 1.0,
        cache_kv: bool = True,
        max_seq_len: int | None = None,
        face_coords_to_file: Callable[[Tensor], Any] | None = None,
        *,
        text_encodings: Tensor | Sequence[Tensor] | None = None,
        text_mask: Tensor | Sequence[Tensor] | None = None,
        remove_parallel_component: bool = False,
        keep_parallel_frac: float | int = 0.0,
        rescale_phi: float | int = 0.0,
        generator: torch.Generator | None = None,
        progress: bool = True,
        dtype: torch.dtype | None = None,
        quantize: str | None = None,
        on_face: Callable[[GeneratedFace], Any] | None = None,
        cuda_graphs: bool = False,
        vertex_consistent: bool | None = None,
        distinct_faces: bool = False,
    ) -> DecodedFaces | Int[Tensor, "b n q"] | list[Any]:
        """Sample meshes, in eval mode; each part's own mode returns afterwards.

        A mesh ends at the end of a face, the first face at the earliest, or at the last whole face
        that ``max_seq_len`` has room for.

        Args:
            prompt: codes to go on from, without padding: ``b n``, ``b n q``, or ``n q`` for one
                mesh (so two axes whose last is ``num_quantizers`` are one mesh).
            batch_size: how many meshes; one prompt or text is repeated to it.
            filter_logits_fn: what is drawn from, logits ``b c`` -> logits ``b c``.
            filter_kwargs: its options, e.g. ``dict(k=50)`` for ``top_k``.
            temperature: 0 takes the likeliest code, 1 draws as modelled.
            return_codes: return codes instead of faces.
            texts: a text for each mesh, or one for all.
            text_embeds, text_encodings, text_mask: see ``forward_on_codes``.
            cond_scale: guidance, 1 or more; without a text it has no effect.
            cache_kv: keep keys and values (the same codes, sooner). Decoder options under which a
                cache is not exact are generated without.
            max_seq_len: most codes of a mesh, rounded down to whole faces; the model's by default.
            face_coords_to_file: called with the faces ``nf nvf 3`` of each mesh; what it returns
                is returned in a list.
            remove_parallel_component, keep_parallel_frac, rescale_phi: see ``guided_logits``.
            generator: source of randomness, on the model's device.
            progress: show a progress bar.
            dtype: what to keep the weights in meanwhile: torch.bfloat16, or torch.float16, which on
                the CPU is closer and for few meshes faster; all between products stays in float32.
            quantize: 'int8' keeps them in 8 bits, on the CPU.
            on_face: called with each face as soon as its codes are drawn, mesh by mesh.
            cuda_graphs: start the work of a whole face at once, on CUDA. Starting its operations
                one by one is what small models and batches wait for. It takes a moment to record
                at first, and again when the room for keys and values doubles or meshes that have
                ended are left out; the codes are the same. Off by default, since it has not run
                on hardware yet.
            vertex_consistent: let corners with equal codes coincide, see
                ``decode_from_codes_to_faces``; the autoencoder's own option by default.
            distinct_faces: draw no face with less than 3 vertices, and none with the vertices of
                another, which the two sides of a thin wall have; as far as codes tell vertices
                apart, and allow another. Not with ``cuda_graphs``.

        Returns:
            face coordinates ``b nf nvf 3`` (nan where padded) and the mask ``b nf``; or codes
            ``b n q``, ``pad_id`` where padded; or the list of ``face_coords_to_file``.

        Raises:
            ValueError: a prompt that is too long, padded or not of this codebook; texts missing,
                twice given or of another batch size; a temperature below 0; options that ``top_k``
                does not have, or that keep nothing; a limit that the model does not have; guidance
                below 1; a precision, or CUDA graphs, that the device or the options of the decoders
                do not have; CUDA graphs with a filter of the caller, or with distinct faces.
            RuntimeError: logits that are not finite, as broken weights make them; int8 where torch
                has no kernels for it.
        """
        if distinct_faces and cuda_graphs:
            raise ValueError(
                "cuda_graphs=True cannot look at earlier faces, got distinct_faces=True too; leave "
                "one of the two out"
            )
        sampling = Sampling(filter_logits_fn, filter_kwargs, float(temperature), generator)
        precision = Precision(dtype, quantize)
        limit = self._limit_of(max_seq_len)
        text = self._read_text(texts, text_embeds, text_encodings, text_mask)
        start = self._start_of(prompt, batch_size, text, limit)
        guidance = {
            "cond_scale": float(cond_scale) if text is not None else 1.0,
            "rescale_phi": rescale_phi,
            "remove_parallel_component": remove_parallel_component,
            "keep_parallel_frac": keep_parallel_frac,
        }
        with evaluating(self):
            check_guidance(self, float(cond_scale), rescale_phi, keep_parallel_frac)
            codes = self._sample(
                start,
                match_batch(text, len(start)),
                limit,
                sampling,
                guidance,
                precision,
                with_cache=cache_kv,
                with_graphs=cuda_graphs,
                distinct_faces=distinct_faces,
                progress=progress,
                on_face=on_face,
            )
        if return_codes:
            return rearrange(codes, "b (n q) -> b n q", q=self.num_quantizers)

        decoded = self.detokenize(codes, vertex_consistent=vertex_consistent)
        if face_coords_to_file is None:
            return decoded
        return [face_coords_to_file(coords[mask]) for coords, mask in zip(*decoded, strict=True)]

    def _limit_of(self, max_seq_len: int | None) -> int:
        """Read the most codes of a mesh, in whole faces."""
        if max_seq_len is None:
            return self.max_seq_len
        per_face = self.num_codes_per_face
        if not per_face <= max_seq_len <= self.max_seq_len:
            raise ValueError(
                f"max_seq_len must be from one face's {per_face} codes to the model's "
                f"{self.max_seq_len}, got {max_seq_len}; leave it out for the model's"
            )
        return max_seq_len // per_face * per_face

    def _start_of(
        self, prompt: Tensor | None, batch_size: int | None, text: EncodedText | None, limit: int
    ) -> Int[Tensor, "b n"]:
        """Read the codes that each mesh starts from, one row a mesh."""
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        num_texts = 1 if text is None else len(text.mask)
        if prompt is None:
            rows = max(num_texts, 1) if batch_size is None else batch_size
            return torch.empty((rows, 0), dtype=torch.long, device=self.device)

        if prompt.ndim == 2 and prompt.shape[-1] == self.num_quantizers:
            prompt = prompt[None]
        if prompt.ndim not in (2, 3) or (
            prompt.ndim == 3 and prompt.shape[-1] != self.num_quantizers
        ):
            raise ValueError(
                f"prompt must have the shape (b, n), (b, n, {self.num_quantizers}) or "
                f"(n, {self.num_quantizers}), got {tuple(prompt.shape)}; add a batch axis with "
                "prompt[None]"
            )
        codes = prompt.flatten(start_dim=1).long().to(self.device)
        if codes.shape[1] > limit:
            raise ValueError(
                f"prompt must be at most max_seq_len = {limit} codes long, got {codes.shape[1]}; "
                "cut it, or allow longer meshes"
            )
        check_codes(
            codes, num_ids=self.codebook_size, pad_id=self.pad_id, max_seq_len=self.max_seq_len
        )
        if bool((codes == self.pad_id).any()):
            raise ValueError(
                f"prompt must not hold padding ({self.pad_id}): all meshes of a batch go on from "
                "the same length; cut the prompts to the shortest, or generate one by one"
            )
        rows = max(len(codes), num_texts) if batch_size is None else batch_size
        if len(codes) not in (1, rows):
            raise ValueError(
                f"prompts must be one for each of the {rows} meshes, or one for all, got "
                f"{len(codes)}; leave batch_size out, or give as many prompts"
            )
        return repeat(codes, "1 n -> b n", b=rows) if len(codes) != rows else codes

    def _sample(
        self,
        start: Int[Tensor, "b n"],
        text: EncodedText | None,
        limit: int,
        sampling: Sampling,
        guidance: Mapping[str, Any],
        precision: Precision,
        *,
        with_cache: bool,
        with_graphs: bool,
        distinct_faces: bool,
        progress: bool,
        on_face: Callable[[GeneratedFace], Any] | None,
    ) -> Int[Tensor, "b n"]:
        """Draw codes until every mesh has ended; cut behind the last whole face of any."""
        batch, length = start.shape
        per_face = self.num_codes_per_face
        codes = start.new_zeros(batch, limit)
        codes[:, :length] = start
        # where each mesh ends: what is drawn behind it becomes padding at last
        ends = torch.full((batch,), limit, device=start.device)
        predictor = choose_predictor(self, text, guidance, precision, with_cache=with_cache)
        if with_graphs:
            drawer: CodeDrawer = FaceDrawer(self, predictor, sampling, batch, limit)
        else:
            drawer = CodeDrawer(self, predictor, sampling, batch, distinct_faces=distinct_faces)
        with tqdm(
            total=limit - length, desc="generate", unit="code", disable=not progress, leave=False
        ) as bar:
            while length < limit:
                drawn = drawer.draw(codes[:, :length])
                num_whole = length // per_face
                bar.update(drawn.shape[1])
                codes[:, length : length + drawn.shape[1]].index_copy_(0, drawer.rows, drawn)
                length += drawn.shape[1]
                if on_face is not None and length // per_face > num_whole:
                    whole = length // per_face * per_face
                    self._report_faces(codes[:, :whole], ends >= whole, on_face)
                # eos can only be drawn behind a face, so rows need looking at there alone
                if length > 1 and length % per_face == 1:
                    ends_now = torch.where(drawn[:, -1] == self.eos_token_id, length - 1, limit)
                    ends[drawer.rows] = ends[drawer.rows].minimum(ends_now)
                    left = (ends[drawer.rows] >= length).nonzero()[:, 0]
                    if len(left) == 0:
                        codes = codes[:, : length - 1]
                        break
                    if len(left) <= len(drawer.rows) // 2:
                        drawer.select(left)
        positions = torch.arange(codes.shape[1], device=codes.device)
        return codes.masked_fill(positions >= ends[:, None], self.pad_id)

    def _report_faces(
        self,
        codes: Int[Tensor, "b n"],
        is_growing: Bool[Tensor, " b"],
        on_face: Callable[[GeneratedFace], Any],
    ) -> None:
        """Hand on the last face of each mesh that goes on."""
        num_faces = codes.shape[1] // self.num_codes_per_face
        for row in is_growing.nonzero()[:, 0].tolist():
            mesh_codes = rearrange(codes[row].clone(), "(n q) -> n q", q=self.num_quantizers)
            face_codes = mesh_codes[-self.num_vertices_per_face :]
            on_face(GeneratedFace(row, num_faces - 1, face_codes, mesh_codes))
