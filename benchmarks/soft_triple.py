"""SoftTriple against pytorch-metric-learning, with and without the regulariser that merges centres.

`python -m benchmarks.soft_triple`
"""

from functools import partial

import jax
import numpy as np

from benchmarks.measure import HAVE_PEERS, Candidate, compare, compiled, print_environment, torch_step
from jaxmetric import init_centers, soft_triple_loss

B, C, K, DIM = 128, 1000, 10, 128


def example() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(B, DIM))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    centers = np.asarray(init_centers(jax.random.key(0), C, K, DIM))
    return embeddings.astype(np.float32), rng.integers(0, C, B).astype(np.int32), centers


def in_torch(embeddings: np.ndarray, labels: np.ndarray, centers: np.ndarray, tau: float) -> Candidate:
    import torch
    from pytorch_metric_learning import losses, regularizers

    options = {"num_classes": C, "embedding_size": DIM, "centers_per_class": K, "la": 20, "gamma": 0.1, "margin": 0.01}
    if tau:
        options["weight_regularizer"] = regularizers.SparseCentersRegularizer(C, K)
        options["weight_reg_weight"] = tau
    loss = losses.SoftTripleLoss(**options)
    loss.fc.data = torch.tensor(centers.reshape(C * K, DIM).T.copy())
    x, y = torch.tensor(embeddings, requires_grad=True), torch.tensor(labels, dtype=torch.int64)
    return torch_step(f"pytorch-metric-learning, tau = {tau:g}", lambda: loss(x, y), [x, loss.fc])


def main() -> None:
    embeddings, labels, centers = example()
    for tau in (0.0, 0.2):
        loss = jax.value_and_grad(partial(soft_triple_loss, tau=tau), argnums=(0, 2))
        candidates = [compiled(f"soft_triple_loss, tau = {tau:g}", loss, embeddings, labels, centers)]
        if HAVE_PEERS:
            candidates.append(in_torch(embeddings, labels, centers, tau))
            ours, theirs = (candidate.run() for candidate in candidates)
            np.testing.assert_allclose(ours[0], theirs, rtol=1e-4)  # the same number, before it is timed
        regularizer = "with" if tau else "without"
        compare(
            f"SoftTriple, value and gradients, {regularizer} regulariser, B = {B}, C = {C}, K = {K}, D = {DIM}",
            candidates,
        )


if __name__ == "__main__":
    print_environment()
    main()
