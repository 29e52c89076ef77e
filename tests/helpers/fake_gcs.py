"""Google Cloud Storage on the loopback interface, as far as gcsfs, google-cloud-storage and TensorStore use its JSON API.

with FakeGcs() as server:
    server.create("bucket")
    subprocess.run(..., env=os.environ | server.environment)
    server.objects["bucket"]["run/config.json"]        # bytes
"""

import base64
import hashlib
import json
import threading
import time
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class FakeGcs:
    """A server with objects in memory; generations count writes, and preconditions on them are checked."""

    def __init__(self):
        self.objects: dict[str, dict[str, bytes]] = {}
        self.generations: dict[tuple[str, str], int] = {}
        self.uploads: dict[str, tuple[str, str, bytearray]] = {}
        self.lock = threading.RLock()
        self._count = 0
        handler = type("Handler", (_Handler,), {"gcs": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes the clients of a process talk to this server."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs, google-cloud-storage
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "TENSORSTORE_GCS_HTTP_VERSION": "1",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "GOOGLE_CLOUD_PROJECT": "none",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks over gRPC what kind a bucket is of
            "EPATH_USE_TF": "false",
            "NO_GCE_CHECK": "true",
        }

    def create(self, bucket: str) -> None:
        self.objects[bucket] = {}

    def __enter__(self) -> "FakeGcs":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def write(self, bucket: str, name: str, content: bytes) -> dict:
        self._count += 1
        self.objects[bucket][name] = content
        self.generations[bucket, name] = self._count
        return self.resource(bucket, name)

    def resource(self, bucket: str, name: str) -> dict:
        content, generation = self.objects[bucket][name], str(self.generations[bucket, name])
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        return {
            "kind": "storage#object", "name": name, "bucket": bucket, "generation": generation, "metageneration": "1",
            "size": str(len(content)), "etag": generation, "timeCreated": now, "updated": now,
            "contentType": "application/octet-stream", "md5Hash": _md5(content), "storageClass": "STANDARD",
        }  # fmt: skip


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients that were killed have closed their connections."""


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gcs: FakeGcs

    def log_message(self, *_: object) -> None:
        pass

    def _do(self) -> None:
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        body = self._body()
        path = parts.path
        kind = "upload" if path.startswith("/upload/") else "object"
        for prefix in ("/upload/storage/v1", "/download/storage/v1", "/storage/v1"):
            path = path.removeprefix(prefix)
        words = [unquote(word) for word in path.strip("/").split("/")]  # names are escaped, slashes too
        with self.gcs.lock:
            if words[0] != "b" or len(words) < 2 or words[1] not in self.gcs.objects:
                self._json(404, {"error": {"code": 404, "message": "no such bucket"}})
            elif kind == "upload":
                self._upload(words[1], body)
            elif len(words) == 2:
                self._json(200, {"kind": "storage#bucket", "id": words[1], "name": words[1], "location": "NOWHERE"})
            elif len(words) == 3:
                self._list(words[1])
            elif len(words) > 4 and words[4] in ("rewriteTo", "copyTo"):
                self._copy(words)
            else:
                self._object(words[1], words[3])

    do_GET = do_POST = do_PUT = do_DELETE = _do

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(content)

    def _json(self, status: int, value: dict, **headers: str) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _refused(self, bucket: str, name: str) -> bool:
        """Check the preconditions of a request; an object that does not exist has generation 0."""
        generation = self.gcs.generations[bucket, name] if name in self.gcs.objects[bucket] else 0
        if int(self.query.get("ifGenerationMatch", generation)) != generation:
            self._json(412, {"error": {"code": 412, "message": "conditionNotMet"}})
            return True
        if int(self.query.get("ifGenerationNotMatch", -1)) == generation:
            self._send(304 if self.command == "GET" else 412)
            return True
        return False

    def _object(self, bucket: str, name: str) -> None:
        if self._refused(bucket, name):
            return
        if name not in self.gcs.objects[bucket]:
            self._json(404, {"error": {"code": 404, "message": f"No such object: {bucket}/{name}"}})
        elif self.command == "DELETE":
            del self.gcs.objects[bucket][name]
            self._send(204)
        elif self.query.get("alt") == "media":
            content = self.gcs.objects[bucket][name]
            headers = {
                "x_goog_generation": str(self.gcs.generations[bucket, name]),
                "x_goog_hash": f"md5={_md5(content)}",
            }
            asked = self.headers.get("Range", "").removeprefix("bytes=")
            if not asked:
                self._send(200, content, **headers)
                return
            first, _, last = asked.partition("-")
            start = int(first) if first else max(len(content) - int(last), 0)
            stop = min(int(last) + 1, len(content)) if first and last else len(content)
            if start >= len(content):
                self._send(416)
                return
            whole = f"bytes {start}-{stop - 1}/{len(content)}"
            self._send(206, content[start:stop], Content_Range=whole, **headers)
        else:
            self._json(200, self.gcs.resource(bucket, name))

    def _list(self, bucket: str) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        start, end = self.query.get("startOffset", ""), self.query.get("endOffset")
        items, prefixes = [], set()
        for name in sorted(self.gcs.objects[bucket]):
            if not name.startswith(prefix) or name < start or (end is not None and name >= end):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest[: rest.index(delimiter) + 1])
            else:
                items.append(self.gcs.resource(bucket, name))
        self._json(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def _copy(self, words: list[str]) -> None:
        content = self.gcs.objects[words[1]].get(words[3])
        if content is None:
            self._json(404, {"error": {"code": 404, "message": "no such object"}})
            return
        resource = self.gcs.write(words[6], words[8], content)
        done = {"kind": "storage#rewriteResponse", "done": True, "resource": resource}
        self._json(200, done if words[4] == "rewriteTo" else resource)

    def _upload(self, bucket: str, body: bytes) -> None:
        kind = self.query.get("uploadType")
        if "upload_id" in self.query:
            self._part(body)
        elif kind == "media":
            if not self._refused(bucket, self.query["name"]):
                self._json(200, self.gcs.write(bucket, self.query["name"], body))
        elif kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            metadata, content = _parts(head, body)
            name = self.query.get("name") or json.loads(metadata)["name"]
            if not self._refused(bucket, name):
                self._json(200, self.gcs.write(bucket, name, content))
        else:  # resumable
            name = self.query.get("name") or json.loads(body)["name"]
            number = str(len(self.gcs.uploads))
            self.gcs.uploads[number] = (bucket, name, bytearray())
            self._json(200, {}, Location=f"{self.gcs.url}{self.path}&upload_id={number}")

    def _part(self, body: bytes) -> None:
        bucket, name, content = self.gcs.uploads[self.query["upload_id"]]
        content += body
        if self.headers.get("Content-Range", "").endswith("/*"):
            self._send(308, Range=f"bytes=0-{len(content) - 1}")
        else:
            self._json(200, self.gcs.write(bucket, name, bytes(content)))


def _parts(head: bytes, body: bytes) -> tuple[bytes, bytes]:
    """The two parts of a multipart/related body, the second one byte for byte."""
    boundary = b"--" + BytesParser().parsebytes(head).get_boundary().encode()
    _, first, second = body.split(boundary, 2)
    second = second[: second.rindex(boundary)]

    def content(part: bytes) -> bytes:
        newline = b"\r\n" if part.startswith(b"\r\n") else b"\n"
        return part.partition(2 * newline)[2].removesuffix(newline)

    return content(first), content(second)
