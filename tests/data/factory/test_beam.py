"""The data factory as a Beam job: the same records as without it, and budgets that all workers together keep."""

import json
import os
import subprocess

import pytest

from qwen3_jax.cli.main import main
from tests.data.factory.test_kills import PROGRAM, ROOT, answer, outcome, write_queries
from tests.helpers.fake_endpoint import fake_endpoint

pytest.importorskip("apache_beam")

pytestmark = pytest.mark.slow

TWO_PROCESSES = ("--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing")


def options(path, url):
    return [
        "data", "generate", "--path", str(path), "--model", url, "--endpoint-model", "m", "--samples", "2",
        "--max-new-tokens", "40", "--verifier", "number", "--concurrency", "4", "--request-timeout", "2", "--retries", "30",
        "--split-mb", "0.0006", "--fingerprint", "fake",
    ]  # fmt: skip


def run(*command):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([*PROGRAM, *map(str, command)], env=environment, capture_output=True, text=True, check=False)


def test_the_same_records_as_without_beam(tmp_path):
    path = write_queries(tmp_path, 60)
    with fake_endpoint(faulty=0.2, stall_seconds=3.0, answer=answer) as endpoint:
        command = options(path, endpoint.url)
        assert main([*command, "--output", str(tmp_path / "local")]) == 0
        assert len(list((tmp_path / "local/records").glob("*"))) == 5
        keys = endpoint.served.keys()
        for name, beam in (("one", ["--runner=DirectRunner"]), ("two", TWO_PROCESSES)):
            endpoint.served.clear()
            done = run(*command, "--output", tmp_path / name, "--beam", *beam)
            assert done.returncode == 0, done.stderr
            assert outcome(tmp_path / name) == outcome(tmp_path / "local")
            cost = json.loads((tmp_path / name / "cost.json").read_text())
            assert (cost["prompt_tokens"], cost["completion_tokens"]) == endpoint.total(once=True)
            assert endpoint.served.keys() == keys
            assert "120 requests answered, 0 recorded before" in done.stderr
            before = len(endpoint.requests)
            # Again, with Beam and without: everything is there.
            assert run(*command, "--output", tmp_path / name, "--beam", *beam).returncode == 0
            assert main([*command, "--output", str(tmp_path / name)]) == 0
            assert len(endpoint.requests) == before


def test_budgets_are_divided_and_kept(tmp_path):
    path, out = write_queries(tmp_path, 60), tmp_path / "out"
    prices = ("--price-in", "1", "--price-out", "2")
    with fake_endpoint(answer=answer) as endpoint:
        command = [*options(path, endpoint.url), "--output", out]
        done = run(*command, "--budget-tokens", 1000, "--beam", *TWO_PROCESSES)
        assert done.returncode == 0, done.stderr
        assert endpoint.worked <= 1000
        assert endpoint.worked > 700, "what a split leaves over goes to the others"
        assert "a larger budget resumes from here" in done.stderr
        done = run(*command, "--budget-usd", "0.0018", *prices, "--beam", "--runner=DirectRunner")
        assert done.returncode == 0, done.stderr
        prompt, completion = endpoint.total()
        assert prompt + 2 * completion <= 1800
        assert json.loads((out / "manifest.json").read_text())["counts"]["unasked"]
        assert run(*command, "--beam", "--runner=DirectRunner").returncode == 0
        assert endpoint.repeated == 0
    with fake_endpoint(answer=answer) as steady:
        assert main([*options(path, steady.url), "--output", str(tmp_path / "local")]) == 0
    assert outcome(out) == outcome(tmp_path / "local")


def test_what_a_beam_job_cannot_do_is_refused(tmp_path, capsys):
    path = write_queries(tmp_path, 4)
    with fake_endpoint(answer=answer) as endpoint:
        command = [*options(path, endpoint.url), "--output", str(tmp_path / "out")]
        for given, said in (
            (["--processes", "2"], "--processes is for this machine; with --beam give Beam's own option"),
            (["--estimate", "2"], "--estimate does not go with --beam"),
            (["--max-failed", "2"], "--max-failed does not go with --beam"),
        ):
            assert main([*command, *given, "--beam", "--runner=DirectRunner"]) == 2
            assert said in capsys.readouterr().err
        assert main([*command, "--beam", "--runnr=DirectRunner"]) == 2
        assert "Apache Beam has no option '--runnr=DirectRunner'. Did you mean '--runner'?" in capsys.readouterr().err
        assert endpoint.requests == []
    # A worker's error comes out as one sentence.
    path = write_queries(tmp_path, 30)
    done = run(
        *options(path, endpoint.url), "--retries", "0", "--split-mb", "1", "--output", tmp_path / "closed", "--beam",
        "--runner=DirectRunner",
    )  # fmt: skip
    assert done.returncode == 2
    assert "error: 20 requests in a row have failed; the last: unreachable: no reply in 1 tries" in done.stderr
    assert "Traceback" not in done.stderr
