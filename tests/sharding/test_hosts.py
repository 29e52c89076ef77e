"""What a machine announces decides whether `sharding.initialize` joins other processes."""

import http.server
import threading

import pytest

from sharding import hosts


class _Metadata(http.server.BaseHTTPRequestHandler):
    """Google's metadata server, as far as it knows the hosts of a slice."""

    endpoints: str | None = None

    def do_GET(self):
        known = self.path == "/computeMetadata/v1/instance/attributes/worker-network-endpoints" and self.endpoints
        self.send_response(200 if known and self.headers["Metadata-Flavor"] == "Google" else 404)
        self.end_headers()
        self.wfile.write((known or "no").encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def metadata(monkeypatch):
    """A metadata server on a machine with TPU chips; set `endpoints`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Metadata", (_Metadata,), {}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)  # JAX has set it here, for want of chips
    yield server.RequestHandlerClass
    server.shutdown()


@pytest.fixture
def joined(monkeypatch):
    """The calls that join other processes."""
    calls = []
    monkeypatch.setattr(hosts, "_join", lambda *arguments: calls.append(arguments))
    for name in hosts._ANNOUNCED:
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize(
    ("endpoints", "several"),
    [("w0:1:10.0.0.1,w1:2:10.0.0.2", True), ("host-0,host-1", True), ("w0:1:10.0.0.1", False), (None, False)],
)
def test_a_host_of_a_cloud_tpu_slice_joins_the_others(metadata, joined, endpoints, several):
    metadata.endpoints = endpoints
    hosts.initialize()
    assert joined == ([(None, None, None)] if several else [])


def test_a_machine_without_tpus_asks_no_metadata_server(metadata, joined, monkeypatch):
    metadata.endpoints = "w0:1:10.0.0.1,w1:2:10.0.0.2"
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    hosts.initialize()
    assert joined == []


@pytest.mark.parametrize(
    ("name", "value", "several"),
    [
        ("SLURM_STEP_NUM_TASKS", "4", True),
        ("SLURM_STEP_NUM_TASKS", "1", False),
        ("TPU_WORKER_HOSTNAMES", "a,b", True),
        ("TPU_WORKER_HOSTNAMES", "localhost", False),
        ("MEGASCALE_COORDINATOR_ADDRESS", "10.0.0.1", True),
    ],
)
def test_schedulers_announce_the_processes_of_a_run(joined, monkeypatch, name, value, several):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv(name, value)
    hosts.initialize()
    assert joined == ([(None, None, None)] if several else [])
