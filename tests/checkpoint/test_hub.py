"""`qwen3_jax.load("org/name")` against a fake of the hub on the loopback interface: success, cache, and each way to fail."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import qwen3_jax
from tests.helpers import tiny_models

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Loads each repository named on the command line; one JSON line per repository.
CHILD = """
import hashlib, json, sys
import jax, numpy as np
from flax import nnx
import qwen3_jax
for name in sys.argv[1:]:
    try:
        model, tokenizer = qwen3_jax.load(name)
    except qwen3_jax.UserError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        continue
    digest = hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(nnx.state(model)))).hexdigest()
    print(json.dumps({"digest": digest, "ids": tokenizer.encode("What is 2 + 3?")}), flush=True)
"""


class FakeHub(BaseHTTPRequestHandler):
    """The REST paths that `snapshot_download` uses. org/tiny is whole, org/cut breaks off, others are refused."""

    protocol_version = "HTTP/1.1"
    folder: Path
    requests: list[str]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        for repo in ("org/tiny", "org/cut"):
            if path == f"/api/models/{repo}/revision/main":
                names = [{"rfilename": name} for name in self._files()]
                return self._json({"_id": "1", "id": repo, "modelId": repo, "sha": COMMIT, "siblings": names})
            if path == f"/api/models/{repo}/tree/{COMMIT}":
                return self._json(
                    [
                        {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                        for name, data in self._files().items()
                    ]
                )
            if path.startswith(f"/{repo}/resolve/{COMMIT}/"):
                return self._file(path.rpartition("/")[2], broken=repo == "org/cut")
        gated = "/gated" in path
        return self._refuse(403 if gated else 404, "GatedRepo" if gated else "RepoNotFound")

    def _files(self) -> dict[str, bytes]:
        files = {file.name: file.read_bytes() for file in sorted(self.folder.iterdir())}
        return files | {"model.gguf": b"not wanted"}

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status, code):
        self._send(status, b'{"error": "no"}', {"X-Error-Code": code, "X-Error-Message": "no"})

    def _file(self, name, broken):
        data = self._files()[name]
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        breaks = broken and name == "model.safetensors" and self.command == "GET"
        self._send(206 if asked else 200, data[start:], headers, stop_after=len(data) // 2 - start if breaks else None)

    def _send(self, status, body, headers, stop_after=None):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if stop_after is None else body[: max(stop_after, 0)])
        if stop_after is not None:
            self.close_connection = True

    def log_message(self, *_):
        pass


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    qwen3_jax.save(tiny_models.model(), tiny_models.tokenizer(), folder)
    handler = type("Handler", (FakeHub,), {"folder": folder, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.server_close()


def test_load_from_the_hub_and_from_its_cache_and_every_refusal(hub, tmp_path):
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": str(ROOT),
    }

    def child(*names):
        command = [sys.executable, "-c", CHILD, *names]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    folder = hub.RequestHandlerClass.folder
    model, tokenizer = qwen3_jax.load(folder)
    leaves = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(nnx.state(model)))
    local = {"digest": hashlib.sha256(leaves).hexdigest(), "ids": tokenizer.encode("What is 2 + 3?")}

    whole, missing, gated, cut = child("org/tiny", "org/missing", "org/gated", "org/cut")
    assert whole == local
    assert "'org/missing'" in missing["error"]
    assert "HTTP 404" in missing["error"]
    assert "'org/gated'" in gated["error"]
    assert "HTTP 403" in gated["error"]
    assert "HF_TOKEN" in gated["error"]
    assert "'org/cut'" in cut["error"]
    assert "could not be downloaded" in cut["error"]
    assert not any("model.gguf" in request for request in hub.RequestHandlerClass.requests)

    hub.shutdown()
    hub.server_close()  # the hub is gone
    cached, cut, other = child("org/tiny", "org/cut", "org/other")
    assert cached == local
    assert "'org/cut'" in cut["error"]
    assert "'org/other'" in other["error"]
    for answer in (missing, gated, cut, other):
        assert "\n" not in answer["error"]
