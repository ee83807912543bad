"""Between meshes and the codes a transformer is trained on and generates."""

from typing import Any

from jaxtyping import Int
from torch import Tensor

from meshgpt_pytorch.mesh import check_mesh_shapes
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.tokenizers.outputs import DecodedFaces


class MeshCodes:
    """The part of ``MeshTransformer``, which inherits it, that asks the autoencoder."""

    autoencoder: MeshAutoencoder
    num_vertices_per_face: int
    pad_id: int

    def tokenize(
        self, vertices: Tensor, faces: Tensor, face_edges: Tensor | None = None
    ) -> Int[Tensor, "b n q"]:
        """Turn a batch of meshes into codes as this model takes them.

        Args:
            vertices, faces, face_edges: a batch, as for ``MeshAutoencoder.tokenize``.

        Returns:
            codes ``b (nf nvf) q``, this model's ``pad_id`` behind the last of a row, wherever
            padded faces stood.

        Raises:
            ValueError: no batch, or bad meshes.
        """
        check_mesh_shapes(vertices, faces, num_vertices_per_face=self.num_vertices_per_face)
        codes = self.autoencoder.tokenize(vertices, faces, face_edges)
        codes = move_padding_last(codes, self.autoencoder.pad_id)
        return codes.masked_fill(codes == self.autoencoder.pad_id, self.pad_id)

    def detokenize(self, codes: Tensor, *, vertex_consistent: bool | None = None) -> DecodedFaces:
        """Turn codes of this model back into faces.

        Args:
            codes: ``b n`` or ``b n q``, with this model's ``pad_id``; one mesh as ``codes[None]``.
            vertex_consistent: let corners with equal codes coincide; the autoencoder's own option
                by default.

        Returns:
            face coordinates ``b nf nvf 3``, nan where padded, and face mask ``b nf``.

        Raises:
            ValueError: codes out of range, or of another shape.
        """
        codes = codes.masked_fill(codes == self.pad_id, self.autoencoder.pad_id)
        decoded: Any = self.autoencoder.decode_from_codes_to_faces(
            codes, vertex_consistent=vertex_consistent
        )
        return decoded


def move_padding_last(codes: Int[Tensor, "b n q"], pad_id: int) -> Int[Tensor, "b n q"]:
    """Move the vertices of padded faces behind all others; the order stays otherwise."""
    is_padding = (codes == pad_id).all(dim=-1)
    order = is_padding.int().argsort(dim=1, stable=True)
    return codes.take_along_dim(order[..., None], dim=1)
