"""Times the networks against torch on a CPU: the forward pass, and a training step with its optimizer.

Both sides compute the same network on the same images, in float32 and on all cores. torch keeps its images with the
channels last, which is its fastest order on a CPU.

`python -m benchmarks.training` times all networks, `python -m benchmarks.training resnet10 vit_s16` these.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.measure import HAVE_PEERS, Candidate, compare, compiled, print_environment
from jaxmetric.encoders import Trunk, make_encoder


class Setting(NamedTuple):
    """A network and its images.

    Attributes:
      encoder: the name of the network.
      images: the number of images.
      side: their side in pixels.
      width: channels of the first stage of a ResNet.
      torch_network: makes the network in torch from `benchmarks.torch_networks`.
    """

    encoder: str
    images: int
    side: int
    width: int | None
    torch_network: Callable[[Any], Any]


SETTINGS = (
    Setting("resnet10", 128, 48, 16, lambda torch: torch.ResNet(torch.BasicBlock, (1, 1, 1, 1), 16)),
    Setting("resnet10", 128, 64, 32, lambda torch: torch.ResNet(torch.BasicBlock, (1, 1, 1, 1), 32)),
    Setting("resnet18", 32, 128, 64, lambda torch: torch.ResNet(torch.BasicBlock, (2, 2, 2, 2), 64)),
    Setting("resnet50", 16, 128, 64, lambda torch: torch.ResNet(torch.Bottleneck, (3, 4, 6, 3), 64)),
    Setting("efficientnet_lite0", 32, 128, None, lambda torch: torch.Lite(torch.LITE0)),
    Setting("vit_s16", 16, 224, None, lambda torch: torch.VisionTransformer(384, 6, 16, 14)),
)


def candidates(trunk: Trunk, images: np.ndarray) -> tuple[Candidate, Candidate]:
    """Makes the forward pass and the training step of a trunk."""
    variables = jax.jit(lambda key: trunk.init(key, images, train=False))(jax.random.key(0, impl="unsafe_rbg"))
    optimizer = optax.sgd(1e-3, momentum=0.9)

    def forward(variables: Any, images: jax.Array) -> Any:
        return trunk.apply(variables, images, train=False)

    def step(variables: Any, momentum: Any, images: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            features, moved = trunk.apply({**variables, "params": params}, images, train=True, mutable="batch_stats")
            return jnp.mean(jnp.square(features)), moved

        (value, moved), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, momentum = optimizer.update(gradients, momentum)
        return value, {**variables, **moved, "params": optax.apply_updates(variables["params"], updates)}, momentum

    momentum = optimizer.init(variables["params"])
    return (
        compiled("jaxmetric, forward", forward, variables, images),
        compiled("jaxmetric, training step", step, variables, momentum, images),
    )


def torch_candidates(network: Any, images: np.ndarray) -> tuple[Candidate, Candidate]:
    """Makes the same of a network in torch."""
    import torch

    given = torch.tensor(images.transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def forward() -> Any:
        network.eval()
        with torch.no_grad():
            return network(given)[-1]

    def step() -> Any:
        network.train()
        optimizer.zero_grad()
        value = network(given)[-1].square().mean()
        value.backward()
        optimizer.step()
        return value.item()

    return Candidate("torch, forward", forward), Candidate("torch, training step", step)


def main(names: list[str]) -> None:
    """Prints a table of forward passes and one of training steps for each network, or for those named."""
    for setting in SETTINGS:
        if names and setting.encoder not in names:
            continue
        images = np.random.default_rng(0).normal(size=(setting.images, setting.side, setting.side, 3)).astype("float32")
        trunk = make_encoder(setting.encoder, width=setting.width).trunk
        peers: tuple[Candidate, ...] = ()
        if HAVE_PEERS:
            from benchmarks import torch_networks

            peers = torch_candidates(setting.torch_network(torch_networks), images)
        width = f", width {setting.width}" if setting.width else ""
        title = f"{setting.encoder}{width}: {setting.images} images of {setting.side} pixels"
        for row in zip(*(side for side in (peers, candidates(trunk, images)) if side), strict=True):
            compare(f"{title}: {row[0].name.split(', ')[-1]}", row, rounds=9, seconds=15)


if __name__ == "__main__":
    print_environment()
    main(sys.argv[1:])
