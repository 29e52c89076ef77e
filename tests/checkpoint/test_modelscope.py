"""`modelscope:org/name` against a server with ModelScope's HTTP interface on this machine, read by ModelScope's own client.

Paths and replies are those that `modelscope_hub` 0.5.1 asks for and reads.
"""

import hashlib
import json
import os
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

import qwen3_jax
from qwen3_jax.checkpoint import modelscope
from qwen3_jax.checkpoint.adapters.folders import base_and_adapter
from qwen3_jax.checkpoint.hub import resolve, without_hub
from qwen3_jax.cli import main as qwen3
from qwen3_jax.model import flatten
from qwen3_jax.planner.architecture import checkpoint_architecture
from tests.helpers import tiny_models
from tests.helpers.loopback import serving

TOKEN = "ms-secret"
# repository -> revision -> file -> contents; filled by the fixture
Repositories = dict[str, dict[str, dict[str, bytes]]]


class FakeModelScope(BaseHTTPRequestHandler):
    """The paths that a download uses. org/private wants the token; of org/cut and org/wrong the weights do not arrive whole."""

    protocol_version = "HTTP/1.1"
    repositories: Repositories
    requests: list[str]

    def do_GET(self):
        self.requests.append(self.path)
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        parts = url.path.split("/")[1:]
        if parts[:3] == ["api", "v1", "repos"]:  # internalAccelerationInfo: not in Alibaba's network
            return self._answer({"InternalRegionQueryAddress": ""})
        repo, what = "/".join(parts[3:5]), "/".join(parts[5:])
        if repo == "org/private" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(403, 10010205003, "无权限访问")
        if repo == "org/busy":
            return self._refuse(429, 10010000429, "too many requests")
        if parts[:3] == ["openapi", "v1", "models"] and repo in self.repositories:  # whether this site has it
            return self._send(200, json.dumps({"success": True, "data": {"id": repo}}).encode(), {})
        files = self.repositories.get(repo, {}).get(query.get("Revision"))
        if parts[:3] != ["api", "v1", "models"] or files is None:
            return self._refuse(404, 10010205001, "获取模型信息失败，信息不存在")
        if what == "repo/files":
            assert query["Recursive"] == "True"
            return self._answer({"Files": [self._entry(name, data) for name, data in files.items()]})
        return self._file(repo, query["FilePath"], files[query["FilePath"]])

    def _entry(self, name: str, data: bytes) -> dict:
        entry = {"Name": name.rpartition("/")[2], "Path": name, "Type": "blob", "Size": len(data), "Revision": "0123"}
        return entry | {"Sha256": hashlib.sha256(data).hexdigest()}

    def _file(self, repo: str, name: str, data: bytes):
        weights = name == "model.safetensors"
        if repo == "org/wrong" and weights:
            data = data[:-1] + bytes([data[-1] ^ 1])
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if asked else {}
        stop = len(data) // 2 - start if repo == "org/cut" and weights else None
        self._send(206 if asked else 200, data[start:], headers, stop)

    def _answer(self, data):
        self._send(200, json.dumps({"Code": 200, "Data": data, "Message": "success", "Success": True}).encode(), {})

    def _refuse(self, status, code, message):
        body = {"Code": code, "Message": message, "RequestId": "1", "Success": False}
        self._send(status, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _send(self, status, body, headers, stop=None):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if stop is None else body[: max(stop, 0)])
        if stop is not None:
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> Repositories:
    folder = tmp_path_factory.mktemp("modelscope") / "tiny"
    qwen3_jax.save(tiny_models.model(), tiny_models.tokenizer(), folder)
    tiny = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    adapter = {"adapter_config.json": json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/tiny"}).encode()}
    more = {"model.gguf": b"not wanted", "onnx/model.onnx": b"not wanted"}
    return {
        "org/tiny": {"master": tiny | more, "v1": tiny | {"config.json": tiny["config.json"] + b"\n"}},
        "org/private": {"master": tiny},
        "org/cut": {"master": tiny},
        "org/wrong": {"master": tiny},
        "org/onnx": {"master": {"onnx/model.onnx": b"not wanted"}},
        "org/outside": {"master": {"../config.json": b"{}"}},
        "org/adapter": {"master": adapter | {"adapter_model.safetensors": b"weights"}},
    }


@pytest.fixture
def hub(repositories, tmp_path, monkeypatch):
    """The handler of a server that ModelScope's client asks; its cache and settings are in `tmp_path`."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("MODELSCOPE_API_TOKEN", "MODELSCOPE_DOMAIN", "MODELSCOPE_LOG_LEVEL", "QWEN3_USE_MODELSCOPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(modelscope, "_FOLDERS", {})
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_RETRY_TIMES", 1)  # the client waits seconds before others
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_HASH_RETRY_TIMES", 1)
    monkeypatch.setattr("modelscope_hub._legacy_api.REPO_TREE_PAGE_MAX_ATTEMPTS", 1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    handler = type("Handler", (FakeModelScope,), {"repositories": repositories, "requests": []})
    with serving(handler) as address:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", address)
        yield handler


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*") if file.is_file()}


def refused(name: str, **options) -> str:
    """The one sentence with which a name is refused."""
    with pytest.raises(qwen3_jax.UserError) as caught:
        resolve(name, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.isascii(), text
    return text


def test_a_model_is_loaded_from_modelscope_and_again_from_its_cache(hub, tmp_path, monkeypatch, caplog):
    model, tokenizer = qwen3_jax.load("modelscope:org/tiny")
    assert tokenizer.encode("What is 2 + 3?") == tiny_models.tokenizer().encode("What is 2 + 3?")
    for name, value in flatten(tiny_models.model()).items():
        np.testing.assert_array_equal(flatten(model)[name], value)
    folder = resolve("modelscope:org/tiny")
    assert folder == tmp_path / "cache/models/org--tiny/snapshots/master"
    assert names_in(folder) == hub.repositories["org/tiny"]["v1"].keys(), "what a checkpoint has, whole and no more"

    asked = len(hub.requests)
    assert resolve("modelscope:org/tiny") == folder
    assert len(hub.requests) == asked, "a command that names a model twice asks once"
    modelscope._FOLDERS.clear()
    monkeypatch.setenv("QWEN3_USE_MODELSCOPE", "true")
    assert resolve("org/tiny") == folder
    assert {urlsplit(path).path for path in hub.requests[asked:]} == {"/api/v1/models/org/tiny/repo/files"}, (
        "all cached"
    )
    (folder / "config.json").write_text("{}")
    modelscope._FOLDERS.clear()
    resolve("org/tiny")
    assert (folder / "config.json").read_bytes() == hub.repositories["org/tiny"]["master"]["config.json"], "mended"

    second = resolve("modelscope:org/tiny", revision="v1")
    assert second.name == "v1"
    assert (second / "config.json").read_bytes() == hub.repositories["org/tiny"]["v1"]["config.json"]

    assert qwen3.main(["convert", "modelscope:org/tiny", str(tmp_path / "orbax"), "--to", "orbax"]) == 0
    monkeypatch.setattr(modelscope, "_FOLDERS", {})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert resolve("modelscope:org/tiny") == folder
    assert "'org/private' is not in its cache on this machine, and HF_HUB_OFFLINE" in refused("modelscope:org/private")
    assert len(hub.requests) == asked
    assert not caplog.records, "the client's log stays off"


def test_what_cannot_be_had_is_refused_in_one_sentence_and_leaves_no_half_file(hub, tmp_path, monkeypatch):
    unknown = refused("modelscope:org/missing", key="--model")
    assert unknown.startswith("--model: ModelScope has no model 'org/missing'")
    assert "HTTP 404" in unknown
    assert "'org/tiny' at revision 'v9'" in refused("modelscope:org/tiny", revision="v9")
    private = refused("modelscope:org/private")
    assert "HTTP 403" in private
    assert "MODELSCOPE_API_TOKEN" in private
    assert "has no checkpoint" in refused("modelscope:org/onnx")
    assert "no name inside a repository" in refused("modelscope:org/outside")
    assert not list(tmp_path.glob("cache/**/config.json"))
    for text in ("modelscope:", "modelscope:tiny", "modelscope://org/tiny", "modelscope:a/b/c", "hf:tiny"):
        assert "a repository id" in refused(text)
    for repo, reason in (("org/cut", "no connection"), ("org/wrong", "what arrived is not what is listed")):
        text = refused(f"modelscope:{repo}")
        assert f"'{repo}' could not be downloaded (model.safetensors: {reason}); downloaded files are kept" in text
        weights = tmp_path / "cache/models" / repo.replace("/", "--") / "snapshots/master/model.safetensors"
        assert not weights.exists()
        assert weights.with_name("config.json").exists()
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    assert "model.safetensors" in names_in(resolve("modelscope:org/private"))
    assert "(HTTP 429)" in refused("modelscope:org/busy")
    (tmp_path / "a file").touch()
    with monkeypatch.context() as patch:
        patch.setenv("MODELSCOPE_CACHE", str(tmp_path / "a file/cache"))
        assert f"Not a directory: {tmp_path / 'a file'}" in refused("modelscope:org/tiny")
        patch.setenv("MODELSCOPE_ENDPOINT", "http://[")
        assert "ModelScope at http://[ could not be asked for model 'org/tiny'" in refused("modelscope:org/tiny")
    monkeypatch.setenv("QWEN3_USE_MODELSCOPE", "perhaps")
    assert "QWEN3_USE_MODELSCOPE is 'perhaps'; it must be true or false" in refused("org/tiny")

    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    modelscope._FOLDERS.clear()
    assert "model.safetensors" in names_in(resolve("modelscope:org/private")), "what is cached is enough"
    assert "cannot be reached at http://127.0.0.1:9 (no connection)" in refused("modelscope:org/tiny")
    assert "only in part" in refused("modelscope:org/cut")
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    assert 'pip install "qwen3-jax[modelscope]"' in refused("modelscope:org/tiny")


def test_a_model_that_only_the_international_site_has_is_loaded_from_there(hub, tmp_path, monkeypatch):
    first = type("Handler", (FakeModelScope,), {"repositories": {}, "requests": []})
    second = os.environ["MODELSCOPE_ENDPOINT"]
    monkeypatch.delenv("MODELSCOPE_ENDPOINT")
    with serving(first) as address:
        for module in ("constants", "config"):
            monkeypatch.setattr(f"modelscope_hub.{module}.DEFAULT_ENDPOINT", address)
        monkeypatch.setattr("modelscope_hub.constants.DEFAULT_INTL_ENDPOINT", second)
        assert "model.safetensors" in names_in(resolve("modelscope:org/tiny"))
        assert "ModelScope has no model 'org/missing' that you may read (HTTP 404)" in refused("modelscope:org/missing")
    assert not any("repo" in path for path in first.requests), "no files are asked of a site without the model"


def test_an_adapter_of_modelscope_has_its_base_model_there_and_names_are_known_without_the_hub(hub):
    assert base_and_adapter(resolve("modelscope:org/adapter")) == (
        resolve("modelscope:org/tiny"),
        resolve("modelscope:org/adapter"),
    )
    assert checkpoint_architecture("modelscope:Qwen/Qwen3-0.6B") == qwen3_jax.PRESETS["Qwen3-0.6B"]
    assert [without_hub(name) for name in ("modelscope:a/b", "hf:a/b", "a/b")] == ["a/b"] * 3
