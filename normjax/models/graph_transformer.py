r"""Graph transformer layers (Dwivedi and Bresson 2020): attention along edges, norms after the residual sums.

$$h = N_1(x + W_O\, a),\qquad y = N_2(h + W_2\,\mathrm{ReLU}(W_1 h))$$

$$a_i = \frac{\sum_{j \to i} w_{ij}\, v_j}{\sum_{j \to i} w_{ij}},\qquad
w_{ij} = \exp\operatorname{clip}\!\left(\tfrac{1}{\sqrt d}\, q_i \cdot k_j,\ \pm 5\right)$$

The paper's point is that $N$ is batch normalization over all nodes of a batch of graphs; here it is any transform. A
batch of graphs is one array of nodes and one of edges; where they are padded to fixed shapes, masks keep the padding
out of sums and statistics. With features on the edges these gate the scores, and have a residual stream of their own.

Left out: dropout, and Laplacian or Weisfeiler-Lehman position encodings, which belong to the data.
"""

import jax
from flax import nnx

from normjax.models._graph import EdgeAttention, PostNorm, check_graph, cleared
from normjax.transform import NormTransform


class GraphTransformerLayer(nnx.Module):
    """A graph transformer layer on nodes: edge-wise attention and a feed-forward network, each followed by a norm.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> layer = nj.models.GraphTransformerLayer(8, 2, norm=nj.layer_norm(), rngs=nnx.Rngs(0))
      >>> src, dst = jnp.array([0, 1, 2]), jnp.array([1, 2, 0])
      >>> layer(jnp.ones((3, 8)), src, dst).shape
      (3, 8)

    References:
      Dwivedi and Bresson 2020,
      [A Generalization of Transformer Networks to Graphs](https://arxiv.org/abs/2012.09699).
    """

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        norm: NormTransform | None = None,
        mlp_ratio: int = 2,
        clip: float = 5.0,
        rngs: nnx.Rngs,
    ):
        """Makes parameters and state.

        Args:
          features: Width of a node.
          heads: Number of attention heads; divides `features`.
          norm: The norm after each sublayer; `None` is the paper's batch normalization.
          mlp_ratio: Width of the feed-forward network over `features`.
          clip: Bound of the scores before the exponential, which takes no maximum off.
          rngs: Random streams; `params` is used.
        """
        self.attention = EdgeAttention(features, heads, clip, rngs)
        self.nodes = PostNorm(features, norm, mlp_ratio, rngs)

    def __call__(
        self,
        x: jax.Array,
        src: jax.Array,
        dst: jax.Array,
        *,
        node_mask: jax.Array | None = None,
        edge_mask: jax.Array | None = None,
    ) -> jax.Array:
        """Maps nodes to nodes.

        Args:
          x: Nodes of all graphs, `(nodes, features)`.
          src: Integer `(edges,)`, the node that each edge comes from.
          dst: Integer `(edges,)`, the node that each edge goes to; a node that no edge reaches attends to nothing.
          node_mask: `(nodes,)`, zero at padded nodes; they do not enter the statistics.
          edge_mask: `(edges,)`, zero at padded edges; where these point does not matter.

        Returns:
          Nodes, shaped like `x`.
        """
        check_graph(x, src, dst, node_mask, edge_mask)
        x = cleared(x, node_mask)
        attended, _ = self.attention(x, src, dst, edge_mask)
        return self.nodes(x, attended, node_mask)


class EdgeGraphTransformerLayer(nnx.Module):
    r"""A graph transformer layer on nodes and edges: the edges gate the scores and keep the gated ones.

    $$s_{ij} = \tfrac{1}{\sqrt d}\, q_i \odot k_j \odot W_E e_{ij},\qquad
    w_{ij} = \exp\operatorname{clip}(\mathbf 1 \cdot s_{ij},\ \pm 5)$$

    The concatenated $s_{ij}$ of the heads are what the edges' own sublayers get.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> layer = nj.models.EdgeGraphTransformerLayer(8, 2, rngs=nnx.Rngs(0))
      >>> src, dst = jnp.array([0, 1, 2, 0]), jnp.array([1, 2, 0, 2])
      >>> nodes, edges = layer(jnp.ones((3, 8)), jnp.ones((4, 8)), src, dst)
      >>> nodes.shape, edges.shape
      ((3, 8), (4, 8))

    References:
      Dwivedi and Bresson 2020,
      [A Generalization of Transformer Networks to Graphs](https://arxiv.org/abs/2012.09699).
    """

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        norm: NormTransform | None = None,
        mlp_ratio: int = 2,
        clip: float = 5.0,
        epsilon: float = 1e-6,
        rngs: nnx.Rngs,
    ):
        """Makes parameters and state; arguments as in `GraphTransformerLayer`.

        Args:
          features: Width of a node and of an edge.
          heads: Number of attention heads; divides `features`.
          norm: The norm after each sublayer; `None` is the paper's batch normalization.
          mlp_ratio: Width of the feed-forward networks over `features`.
          clip: Bound of the scores before the exponential.
          epsilon: Added to the sum of a node's weights; the authors' code has it in this form only.
          rngs: Random streams; `params` is used.
        """
        self.attention = EdgeAttention(features, heads, clip, rngs, epsilon)
        self.edge_gate = nnx.Linear(features, features, use_bias=False, rngs=rngs)
        self.nodes = PostNorm(features, norm, mlp_ratio, rngs)
        self.edges = PostNorm(features, norm, mlp_ratio, rngs)

    def __call__(
        self,
        x: jax.Array,
        edges: jax.Array,
        src: jax.Array,
        dst: jax.Array,
        *,
        node_mask: jax.Array | None = None,
        edge_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Maps nodes and edges to nodes and edges.

        Args:
          x: Nodes of all graphs, `(nodes, features)`.
          edges: Features of the edges, `(edges, features)`.
          src: As in `GraphTransformerLayer`, and so are `dst`, `node_mask` and `edge_mask`.
          dst: Integer `(edges,)`.
          node_mask: `(nodes,)` or `None`.
          edge_mask: `(edges,)` or `None`.

        Returns:
          Nodes and edges, shaped like `x` and `edges`.
        """
        check_graph(x, src, dst, node_mask, edge_mask)
        if edges.shape != (*src.shape, x.shape[-1]):
            expected = (*src.shape, x.shape[-1])
            raise ValueError(f"edges has shape {edges.shape}, expected one row of features for each edge, {expected}.")
        x, edges = cleared(x, node_mask), cleared(edges, edge_mask)
        attended, scores = self.attention(x, src, dst, edge_mask, self.edge_gate(edges))
        return self.nodes(x, attended, node_mask), self.edges(edges, scores, edge_mask)
