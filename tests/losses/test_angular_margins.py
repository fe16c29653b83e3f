import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmetric

B, C, K, D = 9, 4, 3, 5


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def example(seed=0, num_centers=None):
    rng = np.random.default_rng(seed)
    shape = (C, D) if num_centers is None else (C, num_centers, D)
    return 2 * rng.normal(size=(B, D)), rng.integers(0, C, B), rng.normal(size=shape)


def computed(loss, embeddings, labels, vectors, **options):
    with jax.enable_x64(True):
        call = jax.jit(lambda x, w: loss(x, labels, w, reduction="none", **options))
        return np.asarray(call(embeddings, vectors))


def angles(embeddings, proxies):
    return np.arccos(np.clip(unit(embeddings) @ unit(proxies).T, -1, 1))


def cross_entropy(logits, labels):
    return [-np.log(np.exp(row[y]) / np.exp(row).sum()) for row, y in zip(logits, labels, strict=True)]


def arcface_in_numpy(theta, labels, scale, margin):
    logits = np.cos(theta)
    for row, of_example, y in zip(logits, theta, labels, strict=True):
        t = of_example[y]
        row[y] = math.cos(t + margin) if t <= math.pi - margin else math.cos(t) - margin * math.sin(margin)
    return cross_entropy(scale * logits, labels)


@pytest.mark.parametrize("options", [{"scale": 64.0, "margin": 0.5}, {"scale": 3.0, "margin": 1.6}], ids=str)
def test_arcface_is_its_formula(options):
    embeddings, labels, proxies = example()
    theta = angles(embeddings, proxies)
    if options["margin"] > 1:
        assert (theta[np.arange(B), labels] > math.pi - options["margin"]).any()
    actual = computed(jaxmetric.arcface_loss, embeddings, labels, proxies, **options)
    np.testing.assert_allclose(actual, arcface_in_numpy(theta, labels, **options), rtol=1e-9, atol=1e-13)


def test_sub_center_arcface_takes_the_smallest_angle():
    embeddings, labels, centers = example(num_centers=K)
    theta = np.min([angles(embeddings, centers[:, k]) for k in range(K)], axis=0)
    actual = computed(jaxmetric.sub_center_arcface_loss, embeddings, labels, centers, scale=8.0, margin=0.7)
    np.testing.assert_allclose(actual, arcface_in_numpy(theta, labels, 8.0, 0.7), rtol=1e-9)


def test_cosface_is_its_formula():
    embeddings, labels, proxies = example()
    logits = 9.0 * (np.cos(angles(embeddings, proxies)) - 0.35 * np.eye(C)[labels])
    actual = computed(jaxmetric.cosface_loss, embeddings, labels, proxies, scale=9.0)
    np.testing.assert_allclose(actual, cross_entropy(logits, labels), rtol=1e-9)


def psi_in_numpy(theta, m):
    k = min(math.floor(m * theta / math.pi), m - 1)
    return (-1) ** k * math.cos(m * theta) - 2 * k


@pytest.mark.parametrize("margin", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("name", ["sphereface", "large_margin_softmax"])
def test_multiplied_angles_are_their_formula(name, margin):
    embeddings, labels, proxies = example()
    theta = angles(embeddings, proxies)
    values = np.cos(theta)
    values[np.arange(B), labels] = [psi_in_numpy(t, margin) for t in theta[np.arange(B), labels]]
    lengths = np.linalg.norm(embeddings, axis=1)[:, None]
    if name == "large_margin_softmax":
        lengths = lengths * np.linalg.norm(proxies, axis=1)[None, :]
    actual = computed(getattr(jaxmetric, f"{name}_loss"), embeddings, labels, proxies, margin=margin, scale=0.7)
    np.testing.assert_allclose(actual, cross_entropy(0.7 * lengths * values, labels), rtol=1e-9)


MARGINS = {
    "arcface": (jaxmetric.arcface_loss, {"scale": 2.0, "margin": 1.2}),
    "cosface": (jaxmetric.cosface_loss, {"scale": 2.0}),
    "sphereface": (jaxmetric.sphereface_loss, {"margin": 4}),
    "large-margin softmax": (jaxmetric.large_margin_softmax_loss, {"margin": 3}),
}


@pytest.mark.parametrize("name", MARGINS)
def test_the_loss_grows_with_the_angle_from_0_to_pi(name):
    loss, options = MARGINS[name]
    theta = np.linspace(0, np.pi, 400)
    embeddings = np.stack([np.cos(theta), np.sin(theta), np.zeros(400)], axis=1)
    # The other class lies at a right angle to all embeddings.
    losses = computed(loss, embeddings, np.zeros(400, int), np.array([[1.0, 0, 0], [0, 0, 1.0]]), **options)
    assert (np.diff(losses) > 0).all()


@pytest.mark.parametrize("name", MARGINS)
def test_gradients_at_angles_of_0_and_pi_are_finite(name):
    loss, options = MARGINS[name]
    rng = np.random.default_rng(0)
    proxies = rng.normal(size=(200, 16)).astype(np.float32)
    for sign in (1, -1):
        # Rounding takes the cosines of these to either side of 1.
        embeddings = np.float32(sign * proxies * rng.uniform(0.1, 10, (200, 1)))

        def total(x, w):
            return loss(x, np.arange(200), w, reduction="sum", **options)

        gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(embeddings, proxies)
        for gradient in gradients:
            assert np.isfinite(gradient).all()
            assert np.abs(gradient).max() < 1e4


def test_p2sgrad_is_half_the_sum_of_squares():
    embeddings, labels, proxies = example()
    expected = ((np.cos(angles(embeddings, proxies)) - np.eye(C)[labels]) ** 2).sum(axis=1) / 2
    np.testing.assert_allclose(computed(jaxmetric.p2sgrad_loss, embeddings, labels, proxies), expected, rtol=1e-9)


def test_the_gradient_of_p2sgrad_is_the_papers():
    """Equation 11: the gradient in w_c is (cos theta_c - [c = y]) times that of cos theta_c."""
    embeddings, labels, proxies = example()
    embeddings, label, x = embeddings[:1], labels[0], unit(embeddings[0])
    expected = []
    for c, w in enumerate(proxies):
        direction = unit(w)
        cosine = x @ direction
        expected.append((cosine - (c == label)) * (x - cosine * direction) / np.linalg.norm(w))
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda w: jaxmetric.p2sgrad_loss(embeddings, labels[:1], w)))(proxies)
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)


def test_margins_may_be_traced():
    embeddings, labels, proxies = example()
    traced = jax.jit(lambda m: jaxmetric.arcface_loss(embeddings, labels, proxies, margin=m))(0.3)
    np.testing.assert_allclose(traced, jaxmetric.arcface_loss(embeddings, labels, proxies, margin=0.3), rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "changes", "error", "message"),
    [
        ("arcface", {"margin": 28.6}, ValueError, "margin is 28.6, expected radians of at least 0 and of at most 3.14"),
        ("arcface", {"margin": -0.1}, ValueError, "margin is -0.1, expected radians of at least 0"),
        ("arcface", {"scale": 0.0}, ValueError, "scale is 0, expected a finite number above 0"),
        (
            "sub_center_arcface",
            {"margin": 4.0},
            ValueError,
            "margin is 4, expected radians of at least 0 and of",
        ),
        ("cosface", {"margin": "0.35"}, TypeError, "margin is '0.35', expected a number"),
        ("sphereface", {"margin": 0}, ValueError, "margin is 0, expected a static integer of at least 1"),
        ("sphereface", {"margin": 4.0}, TypeError, "margin is 4.0, expected a static integer"),
        ("large_margin_softmax", {"margin": jnp.array(4)}, TypeError, "margin is .*4.*, expected a static integer"),
        ("large_margin_softmax", {"scale": math.nan}, ValueError, "scale is nan"),
    ],
)
def test_bad_input_is_one_clear_line(loss, changes, error, message):
    embeddings, labels, vectors = example(num_centers=K if loss == "sub_center_arcface" else None)
    with pytest.raises(error, match=message) as raised:
        getattr(jaxmetric, f"{loss}_loss")(embeddings, labels, vectors, **changes)
    assert "\n" not in str(raised.value)
