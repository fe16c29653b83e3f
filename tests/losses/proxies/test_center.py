import jax
import numpy as np

import jaxmetric


def test_is_half_the_squared_distance_with_the_gradients_of_the_paper():
    rng = np.random.default_rng(0)
    embeddings, labels, centers = rng.normal(size=(8, 3)), rng.integers(0, 4, 8), rng.normal(size=(4, 3))
    with jax.enable_x64(True):
        call = jax.value_and_grad(lambda x, c: jaxmetric.center_loss(x, labels, c, reduction="sum"), argnums=(0, 1))
        loss, (of_embeddings, of_centers) = jax.jit(call)(embeddings, centers)
    expected, towards = 0.0, np.zeros_like(centers)
    for x, y in zip(embeddings, labels, strict=True):
        expected += ((x - centers[y]) ** 2).sum() / 2
        towards[y] += centers[y] - x
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(of_embeddings, embeddings - centers[labels], rtol=1e-12)
    np.testing.assert_allclose(of_centers, towards, rtol=1e-12, atol=1e-15)


def test_class_weights_and_masks():
    embeddings, labels = np.float32([[3, 4], [1, 0], [9, 9]]), np.array([0, 1, 7])
    loss = jaxmetric.center_loss(
        embeddings, labels, np.zeros((2, 2), np.float32), class_weights=np.array([2.0, 1.0]), where=labels < 2
    )
    np.testing.assert_allclose(loss, (2 * 12.5 + 0.5) / 3, rtol=1e-6)
