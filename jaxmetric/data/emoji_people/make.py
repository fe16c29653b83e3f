"""Makes `emoji_people.npz`, the file of `jaxmetric.data.load_emoji_people`, from two npm packages.

    npm pack emoji-datasource-google@16.0.0 && npm pack emoji-datasource-twitter@16.0.0
    mkdir google twitter
    tar xzf emoji-datasource-google-16.0.0.tgz -C google
    tar xzf emoji-datasource-twitter-16.0.0.tgz -C twitter
    python -m jaxmetric.data.emoji_people.make google/package twitter/package

A role is included if all its 3 genders x 6 skin tones x 2 vendors exist. Unicode encodes roles in three ways: a
man, woman or adult joined to an object (a farmer), a person joined to a gender sign (a runner), and the plain
man, woman or adult.

The images are stored as `[vendor, role, gender, row, column, skin, channel]` and compressed by LZMA. The
skin tones of an emoji agree in most pixels, so they are stored next to each other.
"""

import argparse
import json
import lzma
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

OUTPUT = Path(__file__).with_name("emoji_people.npz")
SIZE = 64
GENDERS = ("man", "woman", "person")
SKINS = {
    "default": "",
    "light": "1f3fb",
    "medium-light": "1f3fc",
    "medium": "1f3fd",
    "medium-dark": "1f3fe",
    "dark": "1f3ff",
}
VENDORS = {"noto": "google", "twemoji": "twitter"}
_ADULTS = ("1f468", "1f469", "1f9d1")
_SIGNS = ("-200d-2642-fe0f", "-200d-2640-fe0f", "")


def make(folders: dict[str, Path], output: Path) -> None:
    """Writes the data set.

    Args:
      folders: the unpacked npm package of each vendor.
      output: the npz file.
    """
    emojis = json.loads((folders["noto"] / "emoji.json").read_text(encoding="utf-8"))
    names = {emoji["image"].removesuffix(".png"): emoji["short_name"] for emoji in emojis}
    files = {emoji["image"].removesuffix(".png"): _files_by_skin(emoji) for emoji in emojis}
    images = {vendor: folders[vendor] / "img" / VENDORS[vendor] / str(SIZE) for vendor in VENDORS}
    roles = {
        names[genders[2]]: [files[gender] for gender in genders]
        for genders in _candidates(names)
        if all(_complete(files.get(gender, []), images.values()) for gender in genders)
    }
    pixels = np.array(
        [
            [[[_on_white(folder / f) for f in skins] for skins in role] for role in roles.values()]
            for folder in images.values()
        ]
    )
    np.savez_compressed(
        output,
        pictures=np.frombuffer(lzma.compress(pixels.transpose(0, 1, 2, 4, 5, 3, 6).tobytes(), preset=9), np.uint8),
        shape=np.array(pixels.shape),
        files=np.array(list(roles.values())),
        vendor=np.array(list(VENDORS)),
        role=np.array(list(roles)),
        gender=np.array(GENDERS),
        skin=np.array(list(SKINS)),
    )


def _files_by_skin(emoji: dict[str, Any]) -> list[str]:
    tones = emoji.get("skin_variations", {})
    if any(tone.upper() not in tones for tone in SKINS.values() if tone):
        return []
    return [tones[tone.upper()]["image"] if tone else emoji["image"] for tone in SKINS.values()]


def _candidates(names: dict[str, str]) -> list[tuple[str, ...]]:
    """Returns the codes of man, woman and person for each possible role, sorted by code.

    Longer sequences are excluded, since they are the same people facing right.
    """
    things = [code.removeprefix("1f9d1-200d-") for code in names if code.startswith("1f9d1-200d-")]
    joined = [(thing, tuple(f"{adult}-200d-{thing}" for adult in _ADULTS)) for thing in things if "-200d-" not in thing]
    signed = [(code, tuple(code + sign for sign in _SIGNS)) for code in names]
    return [genders for _, genders in sorted(joined + signed)] + [_ADULTS]


def _complete(files: list[str], folders: Iterable[Path]) -> bool:
    return bool(files) and all((folder / file).is_file() for folder in folders for file in files)


def _on_white(path: Path) -> np.ndarray:
    image = Image.open(path).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the embedded data set of emoji people.")
    parser.add_argument("google", type=Path, help="folder of the unpacked emoji-datasource-google")
    parser.add_argument("twitter", type=Path, help="folder of the unpacked emoji-datasource-twitter")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    make({"noto": arguments.google, "twemoji": arguments.twitter}, arguments.output)
