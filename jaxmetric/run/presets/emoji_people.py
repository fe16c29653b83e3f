"""The embedded data set: 72 roles x 3 genders x 6 skin tones x 2 vendors, in about three minutes on two CPU cores.

The preset combines both papers: SoftTriple learns the role, and the quadruplet loss orders pairs by all labels.
Disagreement on role and skin counts three times as much as on gender, because images of one role in two skin tones are
almost the same but have to be separated. Colors are not jittered because the skin tone is a label.

`emoji_unseen` uses the second paper's protocol on the same images: SoftTriple on the role, whole roles held out.
"""

from jaxmetric.run.config import BatchConfig, Config, DataConfig, EncoderConfig, OptimizerConfig


def emoji_people() -> Config:
    """Role, gender and skin of people, identity and soft labels in one embedding."""
    return Config(
        data=DataConfig(source="emoji_people", columns=("role", "gender", "skin"), stored_size=64),
        batch=BatchConfig(classes_per_batch=16, images_per_class=8, image_size=48, crop_scale=(0.8, 1.0), color=0.0),
        network=EncoderConfig(encoder="resnet10", width=16, stem="imagenet", embedding_dim=128),
        loss="20*quadruplet(margin=0.3, label_weights=(3, 1, 3)) + 2.5*soft_triple(centers_per_class=3)",
        update=OptimizerConfig(optimizer="adamw", learning_rate=1e-2, loss_rate=1.0),
        steps=1000,
        log_every=20,
        evaluate_every=200,
        checkpoint_every=200,
    )


def emoji_unseen() -> Config:
    """Retrieval of roles that were never seen: learns from 48 roles, tests on 16 others."""
    return Config(
        data=DataConfig(source="emoji_people", columns=("role", "gender", "skin"), split="disjoint", stored_size=64),
        batch=BatchConfig(classes_per_batch=16, images_per_class=8, image_size=48, color=0.1),
        network=EncoderConfig(encoder="resnet10", width=16, stem="imagenet", embedding_dim=128),
        loss="soft_triple(centers_per_class=3)",
        update=OptimizerConfig(optimizer="adamw", learning_rate=1e-2, loss_rate=1.0),
        steps=400,
        log_every=20,
    )


def debug() -> Config:
    """The data of emoji_people in seconds, with a network that learns little: to check that everything runs."""
    return Config(
        data=DataConfig(source="emoji_people", columns=("role", "gender", "skin"), stored_size=32),
        batch=BatchConfig(classes_per_batch=8, images_per_class=4, image_size=16),
        network=EncoderConfig(encoder="tiny", width=8, embedding_dim=32),
        loss="5*quadruplet + soft_triple(centers_per_class=2)",
        steps=20,
        evaluate_every=10,
        checkpoint_every=10,
    )
