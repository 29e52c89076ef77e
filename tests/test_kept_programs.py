"""What CI keeps of compiled programs between its runs."""

import zlib

from tests.helpers import kept_programs


def test_programs_come_back_whole_and_parts_of_them_do_not(tmp_path, monkeypatch):
    monkeypatch.setenv("QWEN3_CI_CACHE", str(tmp_path / "kept"))
    first, second = tmp_path / "first", tmp_path / "second"
    assert kept_programs.restore(first) == 0
    whole = zlib.compress(b"program" * 1000)
    (first / "jit_f-1-cache").write_bytes(whole)
    (first / "jit_g-2-cache").write_bytes(whole[:-9])  # its process was killed
    (first / "jit_h-3-cache").write_bytes(b"\x28\xb5\x2f\xfd" + whole[:9])
    assert kept_programs.save(first) == 1
    assert kept_programs.save(first) == 0
    assert kept_programs.restore(second) == 1
    assert [file.name for file in second.iterdir()] == ["jit_f-1-cache"]
    assert (second / "jit_f-1-cache").read_bytes() == whole

    # Above the limit only what is new is kept.
    monkeypatch.setattr(kept_programs, "MOST_BYTES", len(whole))
    (second / "jit_i-4-cache").write_bytes(whole)
    assert kept_programs.save(second) == 1
    assert [file.name for file in kept_programs.store().iterdir()] == ["jit_i-4-cache"]
