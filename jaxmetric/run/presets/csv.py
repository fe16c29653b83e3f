"""Your own images from a CSV file: one preset for each paper.

jaxmetric train quadruplet_csv --csv people.csv
jaxmetric train soft_triple_csv --csv products.csv
"""

from jaxmetric.run.config import BatchConfig, Config, DataConfig, EncoderConfig, OptimizerConfig


def quadruplet_csv() -> Config:
    """The quadruplet paper: several labels for each image, images of every identity held out, alpha 0.1."""
    return Config(
        data=DataConfig(source="csv", split="within", stored_size=72),
        batch=BatchConfig(classes_per_batch=16, images_per_class=8, image_size=64, color=0.1),
        network=EncoderConfig(encoder="resnet18", width=32, stem="imagenet", embedding_dim=128),
        loss="quadruplet(margin=0.1)",
        update=OptimizerConfig(optimizer="adamw", learning_rate=1e-3),
        steps=1000,
        evaluate_every=100,
        checkpoint_every=100,
    )


def soft_triple_csv() -> Config:
    """The SoftTriple paper: one class for each image, whole classes held out, 64 dimensions, ten centers."""
    return Config(
        data=DataConfig(source="csv", split="disjoint", stored_size=72),
        batch=BatchConfig(classes_per_batch=16, images_per_class=2, image_size=64, color=0.1),
        network=EncoderConfig(encoder="resnet18", width=32, stem="imagenet", embedding_dim=64),
        loss="soft_triple(centers_per_class=10)",
        update=OptimizerConfig(optimizer="adam", learning_rate=1e-3, loss_rate=10.0, schedule="step", epsilon=0.01),
        steps=1000,
        evaluate_every=100,
        checkpoint_every=100,
    )
