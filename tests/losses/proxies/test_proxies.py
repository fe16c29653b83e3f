import jax
import numpy as np
import pytest

import jaxmetric

B, C, D = 9, 4, 3


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def example(seed=0, **sizes):
    rng = np.random.default_rng(seed)
    sizes = {"batch": B, "classes": C} | sizes
    embeddings, proxies = rng.normal(size=(sizes["batch"], D)), rng.normal(size=(sizes["classes"], D))
    return embeddings, rng.integers(0, sizes["classes"], sizes["batch"]), proxies


def computed(loss, embeddings, labels, proxies, **options):
    with jax.enable_x64(True):
        return np.asarray(jax.jit(lambda x, w: loss(x, labels, w, **options))(embeddings, proxies))


def softmax_in_numpy(embeddings, labels, proxies, scale, margin):
    losses = []
    for x, y in zip(embeddings, labels, strict=True):
        logits = [scale * (x @ w - margin * (c == y)) for c, w in enumerate(unit(proxies))]
        losses.append(-np.log(np.exp(logits[y]) / np.exp(logits).sum()))
    return losses


@pytest.mark.parametrize("options", [{"scale": 20.0, "margin": 0.0}, {"scale": 3.0, "margin": 0.4}], ids=str)
def test_normalized_softmax_is_its_formula(options):
    arguments = example()
    actual = computed(jaxmetric.normalized_softmax_loss, *arguments, reduction="none", **options)
    np.testing.assert_allclose(actual, softmax_in_numpy(*arguments, **options), rtol=1e-10, atol=1e-14)


def proxy_nca_in_numpy(embeddings, labels, proxies, temperature, positive_in_denominator):
    losses = []
    for x, y in zip(unit(embeddings), labels, strict=True):
        terms = np.exp(-((x - unit(proxies)) ** 2).sum(axis=1) / temperature)
        denominator = sum(term for c, term in enumerate(terms) if positive_in_denominator or c != y)
        losses.append(-np.log(terms[y] / denominator))
    return losses


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "positive_in_denominator": False},
        {"temperature": 0.3, "positive_in_denominator": False},
        {"temperature": 1 / 9, "positive_in_denominator": True},
    ],
    ids=str,
)
def test_proxy_nca_is_its_formula(options):
    arguments = example()
    actual = computed(jaxmetric.proxy_nca_loss, *arguments, reduction="none", **options)
    np.testing.assert_allclose(actual, proxy_nca_in_numpy(*arguments, **options), rtol=1e-10, atol=1e-14)


def test_proxy_nca_of_a_single_class_is_0_without_gradient():
    embeddings, labels, proxies = example(classes=1)
    for positive in (False, True):

        def loss(x, w, positive=positive):
            return jaxmetric.proxy_nca_loss(x, labels, w, positive_in_denominator=positive)

        value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(embeddings, proxies)
        assert value == 0
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)


def proxy_anchor_in_numpy(embeddings, labels, proxies, *, scale=32.0, margin=0.1, class_weights=None, counts=None):
    """Equation 4 of the paper, one proxy at a time; with the weights of classes and of examples."""
    class_weights = np.ones(len(proxies)) if class_weights is None else class_weights
    counts = np.ones(len(embeddings)) if counts is None else counts
    positive = negative = of_present = 0.0
    for c, w in enumerate(unit(proxies)):
        s = unit(embeddings) @ w
        with_c = labels == c
        positive += class_weights[c] * np.log(1 + (counts * np.exp(-scale * (s - margin)))[with_c].sum())
        negative += class_weights[c] * np.log(1 + (counts * np.exp(scale * (s + margin)))[~with_c].sum())
        of_present += class_weights[c] * (with_c & (counts > 0)).any()
    return positive / of_present + negative / class_weights.sum()


@pytest.mark.parametrize("options", [{}, {"scale": 4.0, "margin": 0.5}, {"scale": 300.0}], ids=str)
@pytest.mark.parametrize("sizes", [{}, {"batch": 2, "classes": 7}, {"classes": 1}], ids=str)
def test_proxy_anchor_is_its_formula(sizes, options):
    arguments = example(**sizes)
    actual = computed(jaxmetric.proxy_anchor_loss, *arguments, **options)
    np.testing.assert_allclose(actual, proxy_anchor_in_numpy(*arguments, **options), rtol=1e-10)


def test_class_weights_multiply_the_terms_of_proxy_anchor():
    embeddings, labels, proxies = example()
    labels = labels % 3  # the last class is not in the batch
    class_weights = np.array([2.0, 0.0, 0.5, 1.0])
    actual = computed(jaxmetric.proxy_anchor_loss, embeddings, labels, proxies, class_weights=class_weights)
    expected = proxy_anchor_in_numpy(embeddings, labels, proxies, class_weights=class_weights)
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


def test_weights_of_proxy_anchor_are_relative_counts():
    embeddings, labels, proxies = example()
    weights = np.array([0, 1, 2, 1, 0.5, 3, 0, 1, 2])
    actual = computed(jaxmetric.proxy_anchor_loss, embeddings, labels, proxies, weights=weights)
    counts = weights / weights[weights > 0].mean()
    np.testing.assert_allclose(actual, proxy_anchor_in_numpy(embeddings, labels, proxies, counts=counts), rtol=1e-10)
    repeated = np.repeat(np.arange(B), np.int64(2 * weights))
    mean = 2 * weights[weights > 0].mean()
    twice = proxy_anchor_in_numpy(
        embeddings[repeated], labels[repeated], proxies, counts=np.full(len(repeated), 1 / mean)
    )
    np.testing.assert_allclose(actual, twice, rtol=1e-10)


def test_small_terms_of_proxy_anchor_keep_their_digits():
    # One class, one example on its proxy: log(1 + exp(-20)) of the positive term, where 1 + exp(-20) is 1 in float32.
    loss = jaxmetric.proxy_anchor_loss(
        np.float32([[2, 0]]), np.array([0]), np.float32([[3, 0]]), scale=20.0, margin=0.0
    )
    np.testing.assert_allclose(loss, np.log1p(np.exp(-20.0)), rtol=1e-5)


def test_stats_of_proxy_anchor_count_classes():
    embeddings, labels, proxies = example()
    loss, stats = jaxmetric.proxy_anchor_loss(embeddings, labels, proxies, has_aux=True)
    assert (stats.valid, stats.active) == (C, C)
    np.testing.assert_allclose(stats.total / C, loss, rtol=1e-6)
    with pytest.raises(ValueError, match="reduction is 'none', expected one of mean, mean_active, sum"):
        jaxmetric.proxy_anchor_loss(embeddings, labels, proxies, reduction="none")


@pytest.mark.parametrize(
    ("loss", "changes", "error", "message"),
    [
        ("normalized_softmax", {"scale": 0}, ValueError, "scale is 0, expected a finite number above 0"),
        ("proxy_nca", {"temperature": 0.0}, ValueError, "temperature is 0, expected a finite number above 0"),
        (
            "proxy_nca",
            {"positive_in_denominator": 1},
            TypeError,
            "positive_in_denominator is 1, expected True or False",
        ),
        ("proxy_anchor", {"scale": -1.0}, ValueError, "scale is -1, expected a finite number above 0"),
        ("proxy_anchor", {"margin": np.inf}, ValueError, "margin is inf, expected a finite number"),
        ("proxy_anchor", {"proxies": np.ones((C, 2, D))}, ValueError, r"proxies has shape .* expected \[C, D\]"),
    ],
)
def test_bad_input_is_one_clear_line(loss, changes, error, message):
    embeddings, labels, proxies = example()
    arguments = {"embeddings": embeddings, "labels": labels, "proxies": proxies, **changes}
    with pytest.raises(error, match=message) as raised:
        getattr(jaxmetric, f"{loss}_loss")(**arguments)
    assert "\n" not in str(raised.value)
