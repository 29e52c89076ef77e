"""With libtpu installed and no TPU, JAX does not load it; where there may be an accelerator, JAX decides."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from qwen3_jax import absent_tpu
from tests.helpers.repository_url import ROOT


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with these packages and PCI devices; returns what JAX_PLATFORMS is afterwards."""

    def look(packages, devices, **environment):
        for name in ("JAX_PLATFORMS", "JAX_FORCE_TPU_INIT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for number, (vendor, device) in enumerate(devices):
            folder = tmp_path / f"0000:{number}"
            folder.mkdir()
            (folder / "vendor").write_text(f"{vendor}\n")
            (folder / "device").write_text(f"{device}\n")
        monkeypatch.setattr(absent_tpu, "PCI", tmp_path)
        monkeypatch.setattr(absent_tpu, "DEV", tmp_path)
        monkeypatch.setattr(absent_tpu, "find_spec", lambda name: name if name in packages else None)
        monkeypatch.delitem(sys.modules, "jax", raising=False)
        absent_tpu.skip_absent_tpu()
        return absent_tpu.os.environ.get("JAX_PLATFORMS")

    return look


@pytest.mark.parametrize(
    ("packages", "devices", "environment", "platforms"),
    [
        ({"libtpu"}, [("0x8086", "0x1237")], {}, "cpu"),
        ({"libtpu"}, [("0x1ae0", "0x0042"), ("0x1ae0", "0x001f")], {}, "cpu"),  # a VM of Google's, without TPUs
        ({"libtpu"}, [("0x1ae0", "0x0062")], {}, None),  # v5p
        ({"libtpu"}, [("0x1ae0", "0x9999")], {}, None),  # a later one
        ({"libtpu", "jax_cuda13_plugin"}, [], {}, "cpu"),  # both for plans
        ({"jax_cuda13_plugin"}, [("0x1013", "0x00b8")], {}, "cpu"),
        ({"libtpu", "jax_cuda13_plugin"}, [("0x10de", "0x2330")], {}, None),  # an H100
        ({"libtpu"}, [("0x10de", "0x2330")], {}, "cpu"),
        (set(), [], {}, None),
        ({"libtpu"}, [], {"JAX_PLATFORMS": "tpu,cpu"}, "tpu,cpu"),
        ({"libtpu"}, [], {"JAX_FORCE_TPU_INIT": "1"}, None),
    ],
)
def test_jax_is_kept_from_tpus_only_where_there_are_none(machine, packages, devices, environment, platforms):
    assert machine(packages, devices, **environment) == platforms


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu")
def test_a_script_prints_nothing_of_libtpu():
    code = "import qwen3_jax, jax; print(jax.devices()[0].platform)"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("cpu\n", "")
