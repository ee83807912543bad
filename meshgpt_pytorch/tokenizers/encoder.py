"""Stage 4, first half: faces -> face features, by graph convolutions over neighbouring faces."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import pi
from typing import Any

import torch
from einops import pack, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import ModuleList

from meshgpt_pytorch.mesh import discretize, get_derived_face_features
from meshgpt_pytorch.recompute import PartRunner
from meshgpt_pytorch.tokenizers.checks import check_is_positive
from meshgpt_pytorch.tokenizers.face_convolution import FaceConvolution
from meshgpt_pytorch.tokenizers.layers import order_padding_last
from meshgpt_pytorch.tokenizers.outputs import EncodedFaces
from meshgpt_pytorch.tokenizers.row_groups import group_rows, take_rows
from meshgpt_pytorch.typing import typecheck


class FaceEncoder(PartRunner):
    """The encoder part of ``MeshAutoencoder``, which inherits it so that weights keep their names.

    Reads ``num_vertices_per_face``, ``num_discrete_coors`` and ``coor_continuous_range`` of the
    whole; ``encoder_attn_blocks`` may be empty.
    """

    num_vertices_per_face: int
    num_discrete_coors: int
    coor_continuous_range: tuple[float, float]
    encoder_attn_blocks: ModuleList

    def _build_features(
        self,
        *,
        num_discrete: Mapping[str, int],
        dim_embed: Mapping[str, int],
        dim_codebook: int,
    ) -> None:
        check_is_positive(
            num_discrete_coors=self.num_discrete_coors,
            num_discrete_area=num_discrete["area"],
            num_discrete_normals=num_discrete["normal"],
            num_discrete_angle=num_discrete["angle"],
            dim_codebook=dim_codebook,
        )
        lo, hi = self.coor_continuous_range
        # normals take the range of the coordinates, not -1 to 1: upstream's weights depend on it
        ranges = {"angle": (0.0, pi), "area": (0.0, (hi - lo) ** 2), "normal": (lo, hi)}
        self.discretize_face_coords = partial(
            discretize, num_discrete=self.num_discrete_coors, continuous_range=(lo, hi)
        )
        self.discretize_feature = {
            name: partial(discretize, num_discrete=num_discrete[name], continuous_range=ends)
            for name, ends in ranges.items()
        }
        self.coor_embed = nn.Embedding(self.num_discrete_coors, dim_embed["coor"])
        self.angle_embed = nn.Embedding(num_discrete["angle"], dim_embed["angle"])
        self.area_embed = nn.Embedding(num_discrete["area"], dim_embed["area"])
        self.normal_embed = nn.Embedding(num_discrete["normal"], dim_embed["normal"])
        nvf = self.num_vertices_per_face
        count = {"coor": 3 * nvf, "angle": nvf, "area": 1, "normal": 3}
        dim_face = sum(count[name] * dim_embed[name] for name in count)
        self.project_in = nn.Linear(dim_face, dim_codebook)

    def _build_encoder(
        self, dim: int, dims: Sequence[int], sageconv_kwargs: Mapping[str, Any]
    ) -> None:
        check_is_positive(encoder_dims_through_depth=dims)
        self.init_sage_conv = FaceConvolution(dim, dims[0], **sageconv_kwargs)
        self.init_encoder_act_and_norm = nn.Sequential(nn.SiLU(), nn.LayerNorm(dims[0]))
        self.encoders = ModuleList(
            FaceConvolution(dim_in, dim_out, **sageconv_kwargs)
            for dim_in, dim_out in pairwise(dims)
        )

    @typecheck
    def encode(
        self,
        *,
        vertices: Float[Tensor, "b nv 3"],
        faces: Int[Tensor, "b nf nvf"],
        face_edges: Int[Tensor, "b e 2"],
        face_mask: Bool[Tensor, "b nf"],
        face_edges_mask: Bool[Tensor, "b e"],
        return_face_coordinates: bool = False,
    ) -> Float[Tensor, "b nf d"] | EncodedFaces:
        """Read faces and their neighbours into one feature a face.

        Args:
            vertices: coordinates.
            faces: vertex indices; padded faces anywhere in a row.
            face_edges: pairs of neighbouring faces, counted as in ``faces``.
            face_mask: True where a face exists.
            face_edges_mask: True where a pair exists.
            return_face_coordinates: return the bins of the coordinates too.

        Returns:
            features ``b nf d``, zero where padded; with the bins ``b nf (nvf 3)``, if asked for.
        """
        no_face = ~rearrange(face_mask, "b nf -> b nf 1")
        batch, num_faces = face_mask.shape
        corner = faces.masked_fill(no_face, 0).long()
        row = torch.arange(batch, device=faces.device)
        face_coords = vertices[rearrange(row, "b -> b 1 1"), corner]
        discrete_coords = rearrange(
            self.discretize_face_coords(face_coords), "b nf nvf c -> b nf (nvf c)"
        )

        face_embed = self.project_in(self._embed_features(face_coords, discrete_coords))

        # all meshes as one graph; pairs that do not exist go to a node of their own, the last
        offset = rearrange(row * num_faces, "b -> b 1 1")
        edges = (face_edges + offset).masked_fill(
            ~rearrange(face_edges_mask, "b e -> b e 1"), batch * num_faces
        )
        edges = rearrange(edges, "b e ij -> ij (b e)").long()
        nodes = rearrange(face_embed, "b nf d -> (b nf) d")
        nodes = torch.cat((nodes, nodes.new_zeros(1, nodes.shape[-1])))
        neighbours = group_rows(edges, num_rows=len(nodes), num_groups=len(nodes))
        nodes = self.run_part(self.init_sage_conv, nodes, neighbours)
        nodes = self.init_encoder_act_and_norm(nodes)
        for conv in self.encoders:
            nodes = self.run_part(conv, nodes, neighbours)

        face_embed = rearrange(nodes[:-1], "(b nf) d -> b nf d", b=batch)
        face_embed = self._attend(face_embed, face_mask).masked_fill(no_face, 0.0)

        if not return_face_coordinates:
            return face_embed
        return EncodedFaces(face_embed, discrete_coords)

    def _attend(
        self, face_embed: Float[Tensor, "b nf d"], face_mask: Bool[Tensor, "b nf"]
    ) -> Float[Tensor, "b nf d"]:
        if not self.encoder_attn_blocks:
            return face_embed
        order = order_padding_last(face_mask)
        mask = face_mask.gather(1, order)
        x = take_rows(face_embed, order)
        for attention in self.encoder_attn_blocks:
            x = self.run_part(attention, x, mask)
        return take_rows(x, order.argsort(dim=1))

    def _embed_features(
        self, face_coords: Float[Tensor, "b nf nvf 3"], discrete_coords: Int[Tensor, "b nf c"]
    ) -> Float[Tensor, "b nf d"]:
        derived = get_derived_face_features(face_coords)
        features = (
            self.coor_embed(discrete_coords),
            self.angle_embed(self.discretize_feature["angle"](derived["angles"])),
            self.area_embed(self.discretize_feature["area"](derived["area"])),
            self.normal_embed(self.discretize_feature["normal"](derived["normals"])),
        )
        flat = [rearrange(feature, "b nf c d -> b nf (c d)") for feature in features]
        return pack(flat, "b nf *")[0]
