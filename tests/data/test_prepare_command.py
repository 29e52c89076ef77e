"""`qwen3 data prepare` as a command: killed at any moment, its memory, and the same work under Apache Beam."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen3_jax.cli.main import main
from qwen3_jax.data import Cleaning, Labels, Prepared, Source, prepare
from qwen3_jax.data import labels as labels_module
from qwen3_jax.text import train_tokenizer
from tests.helpers.byte_tokenizer import ByteTokenizer

ROOT = Path(__file__).parent.parent.parent
COMMAND = [sys.executable, "-c", "import sys; from qwen3_jax.cli.main import main; sys.exit(main())", "data"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """1 MB of JSONL with duplicates, damaged lines and two languages; a tokenizer; held-out questions."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "in").mkdir()
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 9))) for _ in range(3000)]
    for number in range(4):
        with (folder / f"in/{number}.jsonl").open("w") as file:
            for i in range(150):
                text = " ".join(rng.choices(words, k=rng.randint(1, 500)))
                line = json.dumps({"text": text, "language": rng.choice(["en", "de"])})
                file.write((line if i % 50 else line[:-3]) + "\n" + (line + "\n") * (i % 7 == 0))
    (folder / "exam.jsonl").write_text(line + "\n")
    train_tokenizer(words, 400, show_progress=False).save_pretrained(folder / "tokenizer")
    return folder


def command(corpus: Path, output: Path, *more: str) -> list[str]:
    return [
        *COMMAND, "prepare", "--path", str(corpus / "in"), "--tokenizer", str(corpus / "tokenizer"),
        "--output", str(output), "--name", "text", "--split-mb", "0.05", "--duplicates", "near",
        "--held-out", str(corpus / "exam.jsonl"), "--language-key", "language", "--max-malformed", "99", *more,
    ]  # fmt: skip


def run(arguments: list[str]) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(arguments, env=environment, capture_output=True, text=True)


def children(parent: int) -> list[int]:
    processes = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            processes.append(int(status.parent.name))
    return processes


@pytest.mark.parametrize("kills", [pytest.param(3, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.soak)])
def test_killed_at_random_moments_it_goes_on_and_gives_identical_files(kills, corpus, tmp_path):
    started = time.monotonic()
    whole = run(command(corpus, tmp_path / "whole"))
    took = time.monotonic() - started
    assert whole.returncode == 0, whole.stderr
    assert "left out" in whole.stderr
    manifest = Prepared(tmp_path / "whole").manifest
    assert all(manifest["left_out"].values()), manifest["left_out"]
    assert len(manifest["shards"]) > 15
    rng, environment = random.Random(1), os.environ | {"PYTHONPATH": str(ROOT)}
    killed = finished = 0
    while killed < kills:
        life = subprocess.Popen(command(corpus, tmp_path / "out"), env=environment, stderr=subprocess.PIPE, text=True)
        try:
            life.wait(rng.uniform(0, took))
        except subprocess.TimeoutExpired:
            workers = children(life.pid)
            life.send_signal(signal.SIGKILL)
            life.wait()
            killed += 1
            deadline = time.monotonic() + 20
            while any(Path(f"/proc/{worker}").exists() for worker in workers):
                assert time.monotonic() < deadline, "workers outlive the command"
                time.sleep(0.02)
            continue
        assert life.returncode == 0, life.stderr.read()
        finished += 1
        assert files(tmp_path / "out") == files(tmp_path / "whole")
        (tmp_path / "out").rename(tmp_path / f"done-{finished}")
    last = run(command(corpus, tmp_path / "out"))
    assert last.returncode == 0, last.stderr
    assert files(tmp_path / "out") == files(tmp_path / "whole")


_MEASURED = """
import sys
from qwen3_jax.data import Labels, Source, prepare
from tests.helpers.byte_tokenizer import ByteTokenizer
prepare(Source("s", sys.argv[1]), ByteTokenizer(), sys.argv[2], processes=1)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_is_flat_over_a_corpus_larger_than_its_buffers(tmp_path):
    """One compressed file is one split. Once the buffers are full, text takes no memory but for its documents' labels."""
    import gzip

    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 9))) for _ in range(3000)]
    lines = [json.dumps({"text": " ".join(rng.choices(words, k=400))}).encode() + b"\n" for _ in range(700)]
    peak = {}
    for times in (15, 40):
        with gzip.open(tmp_path / f"{times}.jsonl.gz", "wb", compresslevel=1) as file:
            for _ in range(times):
                file.writelines(lines)
        arguments = [sys.executable, "-c", _MEASURED, str(tmp_path / f"{times}.jsonl.gz"), str(tmp_path / str(times))]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        finished = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
        peak[times] = int(finished.stdout) / 1024
    text = Prepared(tmp_path / "40").manifest["text_bytes"] / 2**20
    assert text > 60
    assert peak[40] - peak[15] < 4, f"{peak} MB for {text:.0f} MB of text"


@pytest.mark.slow
def test_beam_gives_the_same_files(corpus, tmp_path):
    pytest.importorskip("apache_beam")
    assert run(command(corpus, tmp_path / "here", "--processes", "1")).returncode == 0
    for name, options in {
        "direct": [],
        "two": ["--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing"],
    }.items():
        done = run(command(corpus, tmp_path / name, "--beam", *options))
        assert done.returncode == 0, done.stderr
        assert files(tmp_path / name) == files(tmp_path / "here")
    refused = run(command(corpus, tmp_path / "refused", "--beam", "--runnr=DirectRunner"))
    assert refused.returncode == 2
    assert "Apache Beam has no option '--runnr=DirectRunner'. Did you mean '--runner'?" in refused.stderr
    assert not (tmp_path / "refused.partial").exists()


def test_the_command_says_what_it_made_and_refuses_what_it_cannot_do(corpus, tmp_path, capsys):
    arguments = command(corpus, tmp_path / "out", "--processes", "1")[len(COMMAND) - 1 :]
    assert main(arguments) == 0
    left_out = Prepared(tmp_path / "out").manifest["left_out"]
    assert left_out["malformed"] == 12
    assert (
        f"left out: {left_out['duplicates']:,} duplicates, {left_out['held_out']} held out, 12 malformed"
        in capsys.readouterr().err
    )
    assert main(["data", "show", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("text", "en", "de", "share of tokens", "up to 1,024"))
    assert main([*arguments, "--text-key", "body"]) == 2
    assert "was prepared with other settings (text_key is 'body', was 'text')" in capsys.readouterr().err
    assert main(["data", "show", str(tmp_path)]) == 2
    assert "is not a whole prepared corpus" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--split-mb", "0"])
    assert "'0' is not a size above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "suffix"), [("pyarrow", ".parquet"), ("zstandard", ".jsonl.zst"), ("py3langid", ".jsonl")]
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch, package, suffix):
    (tmp_path / f"a{suffix}").write_text('{"text": "hello"}\n')
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(labels_module, "_detector", labels_module._detector.__wrapped__)  # keeps nothing
    labels = Labels(language="detect")
    with pytest.raises(ValueError, match=rf'needs the package {package}: pip install "qwen3-jax\[data\]"'):
        prepare(Source("s", str(tmp_path), labels=labels), ByteTokenizer(), tmp_path / "out", processes=1)


def test_languages_are_detected(tmp_path):
    pytest.importorskip("py3langid")
    texts = {
        "de": "Der Hund läuft über die Straße, weil er seinen Ball wiederhaben möchte.",
        "en": "The dog runs across the street because it wants to have its ball back.",
        "zh": "那只狗跑过街道，因为它想要回它的球。",
    }
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts.values()))
    source = Source("s", str(tmp_path / "a.jsonl"), labels=Labels(language="detect"), cleaning=Cleaning())
    corpus = prepare(source, ByteTokenizer(), tmp_path / "out", processes=1)
    assert [corpus.names("language")[i] for i in corpus.language] == list(texts)
