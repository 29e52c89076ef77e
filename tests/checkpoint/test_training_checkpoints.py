"""Checkpoints of a run: which are kept, and that damage to any file is found or does no harm."""

import errno
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import sharding
from qwen3_jax.checkpoint.fingerprint import fingerprints
from qwen3_jax.checkpoint.training import TrainCheckpoints, restore_newest
from qwen3_jax.errors import UserError


def state(step: int) -> dict:
    rng = np.random.default_rng(step)
    return {
        "w": jnp.asarray(rng.normal(size=(16, 24)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=(40,)), jnp.bfloat16),
        "step": jnp.asarray(step, jnp.int32),
    }


def shapes(_step: int) -> dict:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state(0))


def written(folder: Path, held_out: dict[int, float], **options) -> TrainCheckpoints:
    checkpoints = TrainCheckpoints(folder, **options)
    for step, loss in held_out.items():
        checkpoints.save(step, state(step), {"row": step}, loss)
    checkpoints.wait()
    return checkpoints


def test_the_newest_the_best_and_the_ends_of_stages_are_kept_also_by_a_later_process(tmp_path):
    losses = {1: 3.0, 2: None, 3: 1.5, 4: 2.0, 5: None, 6: 1.9, 7: None}
    first = written(tmp_path, losses, keep=2, keep_best=2, keep_steps=[2])
    assert first.steps() == [2, 3, 6, 7]
    assert first.best_step() == 3
    first.close()
    second = written(tmp_path, {8: 1.0, 9: 5.0, 10: None}, keep=2, keep_best=2, keep_steps=[2])
    assert second.steps() == [2, 3, 8, 9, 10]
    assert second.best_step() == 8
    second.close()
    plain = written(tmp_path / "plain", {1: None, 2: None, 3: None}, keep=1)
    assert plain.steps() == [3]
    assert plain.best_step() is None
    plain.close()


@pytest.mark.parametrize("place", ["wait_until_finished", "check_for_errors"])
def test_waiting_says_that_the_disk_is_full(place, tmp_path, monkeypatch):
    checkpoints = written(tmp_path, {1: None}, keep=1)

    def full(_self):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, place, full)
        with pytest.raises(UserError, match="is full; the newest whole checkpoint is that of step 1"):
            checkpoints.wait()
    checkpoints.close()


def test_a_flipped_bit_a_missing_or_a_short_file_is_found_or_harmless(tmp_path):
    """For every file of the newest checkpoint. What comes back is always, bit for bit, something that was saved."""
    whole = tmp_path / "whole"
    written(whole, {1: None, 2: 1.0}, keep=2).close()
    rng = random.Random(0)
    files = sorted(path.relative_to(whole) for path in (whole / "2").rglob("*") if path.is_file())
    assert any("ocdbt" in str(file) for file in files)
    fell_back = []
    for number, file in enumerate(files):
        for harm in ("flip", "missing", "short"):
            folder = tmp_path / f"{number}-{harm}"
            shutil.copytree(whole, folder)
            content = bytearray((folder / file).read_bytes())
            if harm == "missing":
                (folder / file).unlink()
            elif content:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
                (folder / file).write_bytes(content if harm == "flip" else content[: len(content) // 2])
            checkpoints = TrainCheckpoints(folder, keep=2)
            newest = restore_newest(checkpoints, shapes)
            assert newest is not None
            step, restored, position = newest
            assert position == {"row": step}
            jax.tree.map(np.testing.assert_array_equal, restored, state(step))
            if step == 1:
                fell_back.append((harm, str(file)))
            # And the run goes on from there.
            checkpoints.save(3, state(3), {"row": 3})
            checkpoints.wait()
            assert 3 in checkpoints.steps()
            checkpoints.close()
            shutil.rmtree(folder)
    assert {harm for harm, file in fell_back if "/d/" in file} == {"flip", "missing", "short"}


def test_where_no_checkpoint_is_whole_the_run_is_refused(tmp_path, capsys):
    written(tmp_path, {1: None, 2: None}, keep=2).close()
    for step in (1, 2):
        shutil.rmtree(tmp_path / str(step) / "state")
    checkpoints = TrainCheckpoints(tmp_path, keep=2)
    with pytest.raises(
        UserError, match=r"no checkpoint of the run is whole; the newest: checkpoint .*/2 could not be restored"
    ):
        restore_newest(checkpoints, shapes)
    checkpoints.close()
    assert capsys.readouterr().err.count("It is set aside, and the one before is tried.") == 2
    assert restore_newest(TrainCheckpoints(tmp_path / "none", keep=1), shapes) is None


@settings(max_examples=50)
@given(data=st.data())
def test_a_fingerprint_changes_with_any_element_and_not_with_the_mesh(data):
    dtype = data.draw(st.sampled_from([np.float32, np.int32, np.uint8, np.float16]))
    x = data.draw(
        hnp.arrays(dtype, (8, 6), elements={"allow_nan": False} if np.issubdtype(dtype, np.floating) else None)
    )
    before = fingerprints({"x": jnp.asarray(x)})
    mesh = sharding.make_mesh(data=4, tensor=2)
    spread = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data", "tensor")))
    assert fingerprints({"x": spread}) == before
    row, column, bit = data.draw(st.tuples(st.integers(0, 7), st.integers(0, 5), st.integers(0, 8 * x.itemsize - 1)))
    changed = x.copy()
    changed.view(f"u{x.itemsize}")[row, column] ^= np.array(1 << bit, f"u{x.itemsize}")
    assert fingerprints({"x": jnp.asarray(changed)}) != before
