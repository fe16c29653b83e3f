"""The whole page: well formed, self-contained, safe with hostile text, and explicit about undefined values."""

import dataclasses
import json
import os
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from jaxmetric.report import Run, write_report

HOSTILE = "</script><script>alert('1')</script><b title=\"x\">&amp; 年齢 😀"
VOID = {"meta", "link", "input", "br", "img"}


class Page(HTMLParser):
    """Collects text, attributes and scripts of a page; refuses tags closed out of order."""

    def __init__(self, source):
        super().__init__()
        self.open, self.attributes, self.scripts, self.text, self.tags = [], [], [], "", []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.text += data

    @property
    def data(self):
        return json.loads(self.scripts[0])


def evaluation(columns, queries, gallery, *, defined=True):
    share = 0.75 if defined else None
    result = {
        "recall": dict.fromkeys("1248", share),
        **dict.fromkeys(("map_at_r", "rank1", "cmc_area", "knn_accuracy"), share),
        "queries": queries if defined else 0,
        "undefined": 0 if defined else queries,
    }
    spread = dict.fromkeys(("mean", "std", "p10", "p50", "p90"))
    levels = [
        {"agreement": level, "pairs": 10, **spread}
        | ({"mean": 2.0 - level / 4, "p10": 1.8 - level / 4, "p90": 2.2 - level / 4} if defined else {})
        for level in range(len(columns) + 1)
    ]
    curve = {column.name: np.linspace(0.75, 1.0, len(column.values)).tolist() for column in columns}
    return {
        "queries": queries,
        "gallery": gallery,
        "columns": {
            column.name: result | {"values": len(column.values), "cmc": curve[column.name] if defined else []}
            for column in columns
        },
        "joint": {"k": 5, "all_correct": share, "mean_correct": share, "queries": queries},
        "coherence": {
            "spearman": share,
            "centroid_spearman": share,
            "pairs": 4321,
            "by_agreement": levels,
        },
    }


def make_run(queries=5, columns=2, gallery=9, *, size=12, k=3, dim=4, defined=True, text="value", **changes):
    random = np.random.default_rng(0)
    names = [
        SimpleNamespace(name=f"{text} column {t}", values=tuple(f"{text} {i}" for i in range(t + 2)))
        for t in range(columns)
    ]

    def labels(rows):
        return np.stack([random.integers(0, len(each.values), rows) for each in names], axis=1)

    run = Run(
        name=f"{text} run",
        config={"preset": text, "optimizer": {"learning_rate": 0.003}},
        history=[{"step": s, "loss": 1 / s, "loss/triplet": 0.5 / s} for s in range(1, 9)]
        + [{"step": 8, f"validation/{names[0].name}/recall@1": 0.5, "validation/coherence": 0.25}],
        evaluation=evaluation(names, queries, gallery, defined=defined),
        baseline=evaluation(names, queries, gallery),
        columns=names,
        query_images=random.integers(0, 255, (queries, size, size, 3), dtype=np.uint8),
        query_names=[f"{text} {i}.png" for i in range(queries)],
        query_labels=labels(queries),
        query_embeddings=random.normal(size=(queries, dim)),
        gallery_images=random.integers(0, 255, (gallery, size, size, 3), dtype=np.uint8),
        gallery_labels=labels(gallery),
        neighbors=random.integers(0, gallery, (queries, k)),
        neighbor_distances=np.sort(random.random((queries, k)), axis=1),
        predictions=labels(queries),
        environment={"jax": "0.10.2"},
    )
    return dataclasses.replace(run, **changes)


def report(tmp_path, run):
    path = tmp_path / "report.html"
    write_report(path, run)
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("queries", "columns"), [(1, 1), (1, 3), (5, 1), (5, 6), (40, 2)])
def test_page_is_well_formed_for_any_number_of_queries_and_columns(tmp_path, queries, columns):
    page = Page(report(tmp_path, make_run(queries, columns)))
    assert len(page.data["queries"]) == queries
    assert len(page.data["columns"]) == columns
    assert 4 <= page.attributes.count(("div", "class", "key")) <= 6
    identifiers = [value for _, name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))


def test_queries_are_compared_with_all_others_but_not_themselves(tmp_path):
    run = make_run(12, gallery=12, exclude=np.arange(12)[:, None], gallery_name="the other images")
    text = Page(report(tmp_path, run)).text
    assert "12 held-out images, each compared with 11 of the other images." in text
    assert "12 queries, 11 images to find" in text


def test_page_requests_nothing(tmp_path):
    source = report(tmp_path, make_run())
    for _, name, value in Page(source).attributes:
        if name in {"src", "href", "srcset", "action", "poster", "data", "xlink:href"}:
            assert value.startswith(("#", "data:")), (name, value)
    assert all(url.startswith("data:") for url in re.findall(r"url\(([^)]*)\)", source))
    assert not re.search(r"@import|https?://|fetch\(|XMLHttpRequest|import\(", source)
    assert "default-src 'none'" in source


def test_hostile_text_stays_text(tmp_path):
    run = make_run(text=HOSTILE, gallery_name=HOSTILE)
    page = Page(report(tmp_path, run))
    harmless = Page(report(tmp_path, make_run()))
    assert page.tags == harmless.tags
    assert len(page.scripts) == 2
    assert f"{HOSTILE} run" in page.text
    assert page.data["columns"][0]["name"] == f"{HOSTILE} column 0"
    assert page.data["queries"][0]["name"].startswith(HOSTILE)
    assert ("div", "aria-label", f"Held-out images against {HOSTILE}") in page.attributes


def test_a_name_with_undecodable_bytes_is_allowed(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    Page(report(tmp_path, make_run(name=name, query_names=[name] * 5)))


def test_undefined_numbers_are_called_undefined_and_say_why(tmp_path):
    run = make_run(defined=False, history=[], baseline=None)
    page = Page(report(tmp_path, run))
    assert "None" not in page.text.replace("none", "")
    assert "nan" not in page.text.lower().split()
    assert "Undefined: no query has another image with its value." in page.text
    assert "No learning curves were recorded" in page.text
    reasons = [value for tag, name, value in page.attributes if (tag, name) == ("abbr", "title")]
    assert len(reasons) == 2 * 8 + 4
    assert all(reason.startswith("Undefined: ") for reason in reasons)


def test_values_that_are_not_finite_are_not_in_the_curves(tmp_path):
    history = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": None}]
    source = report(tmp_path, make_run(history=history))
    assert "nan" not in " ".join(re.findall(r'points="([^"]*)"', source))


def test_missing_labels_and_neighbors_are_missing_on_the_page(tmp_path):
    run = make_run(query_labels=np.full((5, 2), -1), predictions=np.full((5, 2), -1))
    run.neighbors[:, 1:] = -1
    run.neighbor_distances[:, 1:] = np.inf
    data = Page(report(tmp_path, run)).data
    assert all(query["labels"] == [-1, -1] for query in data["queries"])
    assert all(len(query["neighbors"]) == 1 for query in data["queries"])


def test_each_image_is_embedded_once_with_the_given_neighbors(tmp_path):
    run = make_run(queries=5, gallery=9)
    data = Page(report(tmp_path, run)).data
    used = np.unique(run.neighbors)
    assert len(data["gallery"]) == len(used)
    for query in data["queries"]:
        row = list(run.query_names).index(query["name"])
        assert [used[tile] for tile, _ in query["neighbors"]] == run.neighbors[row].tolist()
        assert query["labels"] == run.query_labels[row].tolist()
        assert query["predicted"] == run.predictions[row].tolist()
        np.testing.assert_allclose(
            [distance for _, distance in query["neighbors"]], run.neighbor_distances[row], atol=6e-4
        )
    assert all(data["gallery"][tile] == run.gallery_labels[row].tolist() for tile, row in enumerate(used))


def test_more_than_400_queries_are_sampled_and_the_page_says_so(tmp_path):
    page = Page(report(tmp_path, make_run(queries=401, size=2)))
    assert len(page.data["queries"]) == 400
    assert len({query["name"] for query in page.data["queries"]}) == 400
    assert "400 of 401 queries, chosen at random." in page.text


def test_only_shown_gallery_images_are_read(tmp_path):
    class Source:
        def __init__(self):
            self.read = []

        def __getitem__(self, row):
            self.read.append(row)
            return np.zeros((4, 4, 3), np.uint8)

    source = Source()
    run = make_run(gallery_images=source)
    report(tmp_path, run)
    assert sorted(source.read) == np.unique(run.neighbors).tolist()


def test_noise_in_300_queries_with_8_neighbors_stays_under_4_megabytes(tmp_path):
    # Noise compresses worst, much worse than photographs.
    run = make_run(queries=300, gallery=2000, k=8, size=64)
    assert len(report(tmp_path, run)) < 4_000_000


def test_the_same_run_gives_the_same_bytes(tmp_path):
    assert report(tmp_path, make_run(queries=40)) == report(tmp_path, make_run(queries=40))


def test_a_failed_write_keeps_the_old_report_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(self, text, **_):
        self.touch()
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_report(path, make_run())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_names": ["only one"]}, r"query_names has shape \(1,\), expected \(5,\)"),
        ({"predictions": np.zeros((5, 3), int)}, r"predictions has shape \(5, 3\), expected \(5, 2\)"),
        ({"neighbor_distances": np.zeros((5, 1))}, r"neighbor_distances has shape \(5, 1\), expected \(5, 3\)"),
        ({"neighbors": np.full((5, 3), 9)}, "neighbors names row 9 of a gallery of 9"),
        ({"exclude": np.full((5, 1), 9)}, "exclude names row 9 of a gallery of 9"),
        ({"exclude": np.zeros((4, 1), int)}, r"exclude has shape \(4, 1\), expected \(5, 1\)"),
        ({"query_labels": np.full((5, 2), 7)}, "query_labels has code 7 in column 'value column 0' of 2 values"),
        ({"query_embeddings": np.full((5, 4), np.nan)}, "query_embeddings has values that are not finite"),
        ({"neighbor_distances": np.full((5, 3), np.inf)}, "neighbor_distances has values that are not finite"),
        ({"columns": []}, "a report needs a query and a label column, got 5 and 0"),
        ({"columns": [SimpleNamespace(name="hair", values=("a", "b"))] * 2}, "evaluation has no column 'hair'"),
        ({"gallery_images": np.zeros((9, 4, 4))}, r"an image is float64 \(4, 4\), expected uint8 \(S, S, 3\)"),
    ],
)
def test_an_inconsistent_run_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "report.html", dataclasses.replace(make_run(), **changes))
    assert not os.listdir(tmp_path)
