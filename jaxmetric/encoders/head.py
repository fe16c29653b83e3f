"""The embedding head of encoders: pools a feature map, projects it, and normalizes the result."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmetric.numerics import safe_normalize

POOLINGS = ("average", "max", "gem", "average+max")


class EmbeddingHead(nn.Module):
    """Maps a feature map `[B, h, w, C]` to embeddings `[B, dim]`, always in float32.

    Attributes:
      dim: size of the embedding.
      pooling: "average", "max", their sum "average+max", or "gem": the generalized mean `mean(x^p)^(1/p)` of
        Radenović, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019, whose
        power p is learned and starts at 3. It treats negative features as 0. A feature map of one position is returned
        unchanged.
      normalize: whether to return vectors of norm 1. A zero vector stays zero.
    """

    dim: int
    pooling: str = "average"
    normalize: bool = True

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Pools, projects and normalizes."""
        features = features.astype(jnp.float32)
        embeddings = nn.Dense(self.dim, name="projection")(self._pool(features))
        return safe_normalize(embeddings) if self.normalize else embeddings

    def _pool(self, features: jax.Array) -> jax.Array:
        positions = (1, 2)
        match self.pooling:
            case "average":
                return features.mean(positions)
            case "max":
                return features.max(positions)
            case "average+max":
                return features.mean(positions) + features.max(positions)
            case "gem":
                power = self.param("power", nn.initializers.constant(3.0), ())
                if features.shape[1] * features.shape[2] == 1:
                    return features[:, 0, 0]
                # x^p and its gradient in p need x > 0.
                return jnp.mean(jnp.maximum(features, 1e-6) ** power, positions) ** (1 / power)
        raise ValueError(f"pooling is {self.pooling!r}, expected one of {', '.join(POOLINGS)}")
