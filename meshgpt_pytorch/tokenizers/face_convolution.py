"""The graph convolution of the encoder: a face and the mean of its neighbours."""

from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch_geometric.nn.conv import SAGEConv

from meshgpt_pytorch.tokenizers.row_groups import RowGroups, mean_of_groups


class FaceConvolution(SAGEConv):
    """``SAGEConv`` (Hamilton et al., 1706.02216) over neighbours that were grouped before.

    The library sorts out the neighbours in each layer anew; here all layers share the groups. Takes
    the options of ``SAGEConv``, and leaves all means but the plain one to it.
    """

    def propagate(
        self, edge_index: RowGroups, size: tuple[int, int] | None = None, **inputs: Any
    ) -> Float[Tensor, "nodes d"]:
        """Average over the neighbours of each node."""
        if self.aggr == "mean" and self.flow == "source_to_target":
            return mean_of_groups(inputs["x"][0], edge_index)
        return super().propagate(edge_index.pairs, size=size, **inputs)
