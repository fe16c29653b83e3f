"""The commands of docs/data.md convert small lists in the published formats to readable lists."""

import re
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxmetric.data import SPLITS, load_manifest

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
pytestmark = pytest.mark.skipif(not shutil.which("awk") or not shutil.which("find"), reason="needs awk and find")


def commands(heading):
    """Runs the shell blocks below a heading of the page."""
    section = re.search(rf"^### {re.escape(heading)}$(.*?)(?=^##|\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return re.findall(r"^```sh\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)


def run(heading, folder, *, block=0):
    subprocess.run(["bash", "-euo", "pipefail", "-c", commands(heading)[block]], cwd=folder, check=True, timeout=60)


def draw(folder, names):
    """Writes images with different content."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, 255 - i, 7 * i % 256)).save(folder / name)


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def load(path, **options):
    """Returns the rows of a list as dictionaries, and the notes without the path."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = load_manifest(path, image_size=4, split="given", **options)
    rows = {
        name: {
            **{c.name: c.values[code] if code >= 0 else None for c, code in zip(source.columns, codes, strict=True)},
            "split": SPLITS[split],
        }
        for name, codes, split in zip(source.names, source.labels, source.split, strict=True)
    }
    assert len(np.unique(source.images.reshape(len(source), -1), axis=0)) == len(source)
    return rows, [str(warning.message).removeprefix(f"{path}: ") for warning in caught]


def test_market_1501(tmp_path):
    folder = tmp_path / "Market-1501-v15.09.15"
    whos = {
        "bounding_box_train": ["0002_c1s1_000451_03", "0002_c2s1_000301_01", "0007_c3s3_077419_03", "0007_c6s1_0_01"],
        "query": ["0001_c1s1_001051_00", "0003_c4s6_015641_00"],
        "bounding_box_test": ["-1_c1s1_000401_03", "0000_c1s1_000151_01", "0000_c2s1_000151_01", "0001_c2s1_1_1"],
    }
    whos["bounding_box_test"] += ["0003_c5s1_2_2"]
    draw(folder, [f"{part}/{name}.jpg.png" for part, names in whos.items() for name in names])
    for file in folder.rglob("*.png"):  # lossless, under the published name
        file.rename(file.with_suffix(""))
    (folder / "query" / "Thumbs.db").write_text("x")
    run("Market-1501", tmp_path)
    rows, said = load(folder / "market.csv")
    parts = {"bounding_box_train": "learning", "query": "query", "bounding_box_test": "gallery"}
    assert rows == {
        f"{part}/{name}.jpg": {"identity": name[:4], "camera": name[6], "split": parts[part]}
        for part, names in whos.items()
        for name in names
        if name[:2] != "-1"
    }
    assert said == []


def test_stanford_online_products(tmp_path):
    folder = tmp_path / "Stanford_Online_Products"
    train = [(1, 1, 1, "bicycle_final/1_0.JPG"), (2, 1, 1, "bicycle_final/1_1.JPG"), (3, 2, 2, "cabinet_final/2_0.JPG")]
    train += [(4, 2, 2, "cabinet_final/2_1.JPG")]
    test = [(5, 3, 1, "bicycle_final/3_0.JPG"), (6, 3, 1, "bicycle_final/3_1.JPG")]
    header = "image_id class_id super_class_id path"
    for name, rows in (("Ebay_train.txt", train), ("Ebay_test.txt", test)):
        write(folder / name, "\r\n".join([header, *(" ".join(map(str, row)) for row in rows), ""]))
    draw(folder, [row[3].replace("JPG", "png") for row in train + test])
    for file in folder.rglob("*.png"):
        file.rename(file.with_suffix(".JPG"))
    run("Stanford Online Products", tmp_path)
    rows, said = load(folder / "sop.txt")
    assert rows == {
        path: {"class_id": str(product), "super_class_id": str(kind), "split": split}
        for part, split in ((train, "learning"), (test, "test"))
        for _, product, kind, path in part
    }
    assert said == ["column 'image_id' numbers the rows and is left out; --columns can name it"]


def test_in_shop_needs_no_conversion(tmp_path):
    listed = [
        (f"img/WOMEN/Dresses/id_0000000{item}/0{i}_1_front.png", f"id_0000000{item}", split)
        for item, splits in ((2, ("train", "train")), (1, ("query", "gallery", "gallery")))
        for i, split in enumerate(splits)
    ]
    lines = [f"{len(listed)}", "image_name      item_id      evaluation_status"]
    lines += [f"{name:<60} {item}        {split:<10}" for name, item, split in listed]
    write(tmp_path / "Eval" / "list_eval_partition.txt", "\n".join(lines) + "\n")
    draw(tmp_path / "Img", [name for name, _, _ in listed])
    rows, said = load(tmp_path / "Eval" / "list_eval_partition.txt", root=tmp_path / "Img")
    words = {"train": "learning", "query": "query", "gallery": "gallery"}
    assert rows == {name: {"item_id": item, "split": words[split]} for name, item, split in listed}
    assert said == []
    assert not commands("In-Shop Clothes Retrieval")


def test_cub_200_2011(tmp_path):
    folder = tmp_path / "CUB_200_2011"
    birds = {1: (1, 1), 2: (1, 0), 9: (100, 0), 10: (100, 1), 11: (101, 1), 12: (101, 0)}  # number: species, training
    names = {i: f"{species:03}.Bird/Bird_{i:04}.png" for i, (species, _) in birds.items()}
    write(folder / "images.txt", "".join(f"{i} {name}\n" for i, name in names.items()))
    write(folder / "image_class_labels.txt", "".join(f"{i} {species}\n" for i, (species, _) in reversed(birds.items())))
    write(folder / "train_test_split.txt", "".join(f"{i} {training}\n" for i, (_, training) in birds.items()))
    draw(folder / "images", names.values())
    run("CUB-200-2011", tmp_path)
    run("CUB-200-2011", tmp_path, block=1)
    for file, learned in (("cub.csv", lambda bird: bird[0] <= 100), ("cub_images.csv", lambda bird: bird[1] == 1)):
        rows, said = load(folder / file)
        assert rows == {
            f"images/{names[i]}": {"species": str(bird[0]), "split": "learning" if learned(bird) else "test"}
            for i, bird in birds.items()
        }
        assert said == []


def test_celeba(tmp_path):
    folder = tmp_path / "CelebA"
    faces = {1: (2880, 0, 1, -1), 2: (2880, 0, 1, 1), 3: (2937, 1, -1, 1), 4: (2937, 2, -1, -1)}
    names = {i: f"{i:06}.png" for i in faces}
    write(folder / "Anno/identity_CelebA.txt", "".join(f"{names[i]} {faces[i][0]}\n" for i in reversed(faces)))
    write(folder / "Eval/list_eval_partition.txt", "".join(f"{names[i]} {faces[i][1]}\n" for i in faces))
    lines = ["4", "5_o_Clock_Shadow Young ", *(f"{names[i]} {faces[i][2]:2} {faces[i][3]:2}" for i in faces)]
    write(folder / "Anno/list_attr_celeba.txt", "\r\n".join(lines) + "\r\n")
    draw(folder / "Img/img_align_celeba", names.values())
    run("CelebA", tmp_path)
    rows, said = load(folder / "celeba.csv", root=folder / "Img/img_align_celeba")
    assert rows == {
        names[i]: {"identity": str(who), "5_o_Clock_Shadow": str(shadow), "Young": str(young), "split": SPLITS[part]}
        for i, (who, part, shadow, young) in faces.items()
    }
    assert said == [
        "column 'split' holds numbers: 0 is learning, 1 validation, 2 test",
        "-1 is read as a value, not as missing: 5_o_Clock_Shadow (2 images), Young (2 images); leave a cell empty if "
        "its value is missing",
    ]


def test_the_attributes_of_celeba_need_no_conversion(tmp_path):
    """The file has a count, and a header that does not name the images."""
    write(tmp_path / "list_attr_celeba.txt", "2\nMale Young \n000001.png  1 -1\n000002.png -1 -1\n")
    draw(tmp_path, ["000001.png", "000002.png"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = load_manifest(tmp_path / "list_attr_celeba.txt", image_size=4)
    assert [(column.name, column.values) for column in source.columns] == [("Male", ("-1", "1")), ("Young", ("-1",))]
    np.testing.assert_array_equal(source.labels, [[1, 0], [0, 0]])
    assert "the header does not name the first column; it is read as the image column" in str(caught[0].message)


def test_one_folder_per_identity(tmp_path):
    names = ["ann, the first/a b/1.png", "ann, the first/2.png", "bob/1.png", "bob/2.png"]
    draw(tmp_path / "people", names)
    for file in (tmp_path / "people").rglob("*.png"):
        file.rename(file.with_suffix(".jpg"))
    run("One folder per identity", tmp_path)
    with warnings.catch_warnings():
        source = load_manifest(tmp_path / "people" / "people.tsv", image_size=4)
    found = {name: source.columns[0].values[code] for name, code in zip(source.names, source.labels[:, 0], strict=True)}
    assert found == {name.replace("png", "jpg"): name.split("/")[0] for name in names}
