"""A server on this machine that answers as the Hugging Face hub does, for tests of what is fetched.

It has tiny random models and data under the names of the profile `seed`, with the files that the
real repositories have: facebook/opt-1.3b as pytorch_model.bin in float16 with GPT-2's vocabulary
files, the classifiers as safetensors, the reviews as parquet. Large files are answered as the hub
does: by their SHA-256 and the address of another host.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LARGE = (".bin", ".safetensors", ".parquet")
BRANCH_HEAD = "a" * 40  # the commit of every repository's branch `main`
GOLDEN = Path(__file__).parent / "golden" / "tokenizer_bos"
WORDS = ("good bad film movie plot actor scene music story end great awful slow warm cold sharp "
         "funny sad long short").split()  # fmt: skip


# --- what it serves


def make_repositories(root: Path) -> None:
    """The repositories of the profile `seed`: root/models/OWNER/NAME and root/datasets/…."""
    _opt(root / "models" / "facebook" / "opt-1.3b")
    _distilbert(root / "models" / "lvwerra" / "distilbert-imdb")
    _roberta(root / "models" / "siebert" / "sentiment-roberta-large-english")
    _reviews(root / "datasets" / "stanfordnlp" / "imdb")


def _vocabulary(path: Path) -> dict:
    """GPT-2's two vocabulary files, as repositories of before tokenizer.json have them."""
    path.mkdir(parents=True)
    model = json.loads((GOLDEN / "tokenizer.json").read_text())["model"]
    vocabulary = model["vocab"] | {"<pad>": 1, "</s>": 2}
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return vocabulary


def _opt(path: Path) -> None:
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    vocabulary = _vocabulary(path)
    shutil.copy(GOLDEN / "tokenizer_config.json", path)
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=24, ffn_dim=64,
        num_attention_heads=4, max_position_embeddings=192, word_embed_proj_dim=32,
        bos_token_id=2, eos_token_id=2, pad_token_id=1, architectures=["OPTForCausalLM"],
    )  # fmt: skip
    model = OPTForCausalLM(config).half()
    config.dtype = torch.float16
    config.save_pretrained(path)
    torch.save(model.state_dict(), path / "pytorch_model.bin")


def _distilbert(path: Path) -> None:
    import torch
    from transformers import (
        BertTokenizer,
        DistilBertConfig,
        DistilBertForSequenceClassification,
    )

    path.mkdir(parents=True)
    letters = [*"abcdefghijklmnopqrstuvwxyz'.,!?"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters]
    vocabulary += [f"##{letter}" for letter in letters]
    (path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizer.from_pretrained(path).save_pretrained(path)
    torch.manual_seed(1)
    config = DistilBertConfig(
        vocab_size=len(vocabulary), dim=32, n_layers=1, n_heads=2, hidden_dim=32,
        max_position_embeddings=512, initializer_range=0.5,
        id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )  # fmt: skip
    DistilBertForSequenceClassification(config).save_pretrained(path)


def _roberta(path: Path) -> None:
    import torch
    from transformers import RobertaConfig, RobertaForSequenceClassification

    vocabulary = _vocabulary(path)
    names = {f"{name}_token": "</s>" for name in ("bos", "eos", "unk", "cls", "sep", "mask")}
    names |= {"tokenizer_class": "RobertaTokenizer", "pad_token": "<pad>"}
    settings = json.dumps({"model_max_length": 128, **names})
    (path / "tokenizer_config.json").write_text(settings)
    torch.manual_seed(2)
    config = RobertaConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=192, pad_token_id=1, initializer_range=0.5,
        id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(path)


def _reviews(path: Path) -> None:
    """Two hundred reviews of twelve words in each split; the half with `good` is positive."""
    import numpy as np
    import pandas as pd

    (path / "plain_text").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        texts = [" ".join(rng.choice(WORDS, 12)) + f"<br />{split} {i}" for i in range(200)]
        frame = pd.DataFrame({"text": texts, "label": [int("good" in text) for text in texts]})
        frame.to_parquet(path / "plain_text" / f"{split}-00000-of-00001.parquet")


# --- how it answers


class _Hub(BaseHTTPRequestHandler):
    """`/api/models/O/N/revision/C`, `/api/.../tree/C`, `/O/N/resolve/C/FILE`, `/cdn/...`."""

    protocol_version = "HTTP/1.1"
    root: Path
    requests: list[str]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.requests.append(f"{self.command} {path}")
        api = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(revision|tree)/([^/]+)/?", path)
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if path.startswith("/cdn/"):
            self._send((self.root / path.removeprefix("/cdn/")).read_bytes(), {})
        elif api:
            self._repository(*api.groups())
        elif file:
            self._file("datasets" if file[1] else "models", *file.groups()[1:])
        else:
            self._missing("EntryNotFound")

    def _repository(self, kind: str, name: str, what: str, revision: str) -> None:
        folder = self.root / kind / name
        if not folder.is_dir():
            self._missing("RepoNotFound")
            return
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        names = [p.relative_to(folder).as_posix() for p in files]
        if what == "revision":
            info = {"id": name, "sha": self._commit(revision), "private": False,
                    "siblings": [{"rfilename": n} for n in names]}  # fmt: skip
        else:
            info = [{"type": "file", "path": n, "size": p.stat().st_size, "oid": self._hash(p)}
                    for n, p in zip(names, files, strict=True)]  # fmt: skip
        self._send(json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _file(self, kind: str, name: str, revision: str, inside: str) -> None:
        path = self.root / kind / name / inside
        if not path.is_file():
            self._missing("EntryNotFound")
            return
        headers = {"X-Repo-Commit": self._commit(revision)}
        if path.suffix not in LARGE:
            self._send(path.read_bytes(), headers | {"ETag": f'"{self._hash(path)[:40]}"'})
            return
        port = self.server.server_address[1]
        headers |= {
            "Location": f"http://localhost:{port}/cdn/{kind}/{name}/{inside}",
            "X-Linked-Etag": f'"{self._hash(path)}"', "X-Linked-Size": str(path.stat().st_size),
        }  # fmt: skip
        self._send(b"", headers, 302)

    @staticmethod
    def _commit(revision: str) -> str:
        return revision if re.fullmatch("[0-9a-f]{40}", revision) else BRANCH_HEAD

    @staticmethod
    def _hash(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def _missing(self, code: str) -> None:
        self._send(b"", {"X-Error-Code": code, "X-Error-Message": "not here"}, 404)

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on the screen."""


@contextmanager
def hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub that serves `root`, and the list of its requests, growing."""
    requests: list[str] = []
    handler = type("Handler", (_Hub,), {"root": root, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
