"""AWQ and GPTQ checkpoints: 4-bit integers (GPTQ: 8-bit too) with a scale and a zero per output channel and group of inputs.

    weight[out, in] = scales[g, out] * (q[in, out] - zero[g, out])            g: the group of the input

Both store the transposed matrix, several numbers in an int32, the first in the lowest bits:

|      | qweight                         | qzeros                    | order within an int32          |
|------|---------------------------------|---------------------------|--------------------------------|
| AWQ  | [in, out / 8], along out        | [groups, out / 8]         | columns 0, 2, 4, 6, 1, 3, 5, 7 |
| GPTQ | [in * bits / 32, out], along in | [groups, out * bits / 32] | as they come                   |

AWQ's zeros are stored as they are, and so are GPTQ's in `gptq_v2`; in `gptq` they are stored less 1, modulo 2^bits.
GPTQ's `g_idx` [in] names the group of every input: with `desc_act` they are in no order.

Sources: AutoAWQ's awq/modules/linear/gemm.py and utils/packing_utils.py (Lin et al. 2023, arXiv 2306.00978); AutoGPTQ's
qlinear_cuda_old.py and GPTQModel's utils/model.py for `gptq_v2` (Frantar et al. 2022, arXiv 2210.17323).
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from qwen3_jax.checkpoint.formats.unpacked import Entries
from qwen3_jax.checkpoint.source import Entry, TensorReader
from qwen3_jax.errors import UserError

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ's: the i-th nibble holds this column of eight
_WORD = 32


def pack_words(numbers: np.ndarray, bits: int = 4, order: tuple[int, ...] | None = None) -> np.ndarray:
    """Pack integers of 0 .. 2^bits - 1 along the last axis, int32 [..., n * bits / 32].

    Args:
        numbers: any integer type, [..., n]; n is a multiple of 32 / bits.
        bits: 4 or 8.
        order: which number of a word comes first, second, ... from the lowest bits on; None is as they come.
    """
    each = _WORD // bits
    words = numbers.astype(np.uint32).reshape(*numbers.shape[:-1], -1, each)
    if order is not None:
        words = words[..., list(order)]
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    return np.bitwise_or.reduce(words << shifts, axis=-1).view(np.int32)


def unpack_words(words: np.ndarray, bits: int = 4, order: tuple[int, ...] | None = None) -> np.ndarray:
    """The opposite of `pack_words`: uint8 [..., n]."""
    each = _WORD // bits
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    numbers = ((words.view(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)).astype(np.uint8)
    if order is not None:
        numbers = numbers[..., np.argsort(order)]
    return numbers.reshape(*words.shape[:-1], -1)


def _setting(config: dict[str, Any], field: str, supported: tuple[Any, ...], method: str) -> Any:
    value = config.get(field, supported[0])
    if value not in supported or isinstance(value, bool) != isinstance(supported[0], bool):
        raise UserError(
            f"config field 'quantization_config.{field}' is {value!r}; of {method} checkpoints "
            f"{' and '.join(map(repr, supported))} {'is' if len(supported) == 1 else 'are'} read."
        )
    return value


def _group_size(config: dict[str, Any], method: str) -> int:
    size = config.get("group_size")
    if isinstance(size, bool) or not isinstance(size, int) or size == 0 or size < -1:
        raise UserError(
            f"config field 'quantization_config.group_size' is {size!r}; {method} needs a positive number, or -1."
        )
    return size


def _check(entries: Entries, stem: str, part: str, wanted: tuple[int, ...], group: int) -> None:
    shape = entries[f"{stem}.{part}"].shape
    if shape != wanted:
        raise UserError(
            f"tensor '{stem}.{part}' has shape {list(shape)}; 'qweight' {list(entries[f'{stem}.qweight'].shape)} in groups of "
            f"{group} means {list(wanted)}."
        )


def _groups(size: int, group: int, stem: str) -> int:
    group = size if group == -1 else group
    if size % group:
        raise UserError(
            f"config field 'quantization_config.group_size' {group} does not divide the {size} inputs of '{stem}.qweight'."
        )
    return size // group


@dataclass(frozen=True)
class Awq:
    """A `Scheme`: AutoAWQ's version "gemm"; `group` -1 is one group of all inputs."""

    group: int

    part = "qweight"
    needs = ("qzeros", "scales")
    may_have = ()
    row_step = 8

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Read `quant_method: "awq"`; raises UserError for other versions or bits."""
        _setting(config, "bits" if "bits" in config else "w_bit", (4,), "AWQ")
        version = config.get("version", config.get("format", "gemm"))
        _setting({"version": str(version).lower()}, "version", ("gemm",), "AWQ")
        _setting(config, "zero_point", (True,), "AWQ")
        return cls(_group_size(config, "AWQ"))

    def is_quantized(self, entry: Entry) -> bool:
        """Whatever is named qweight."""
        return entry.dtype == "int32"

    def shape(self, entries: Entries, stem: str) -> tuple[int, int]:
        """[out, in], of the words' shape."""
        size, words = _matrix(entries, stem)
        groups = _groups(size, self.group, stem)
        _check(entries, stem, "qzeros", (groups, words), self.group)
        _check(entries, stem, "scales", (groups, 8 * words), self.group)
        return 8 * words, size

    def unpack(self, reader: TensorReader, entries: Entries, stem: str, rows: slice, columns: slice) -> np.ndarray:
        """See the formula above; `rows` are outputs, `columns` inputs."""
        size = entries[f"{stem}.qweight"].shape[0]
        group = size if self.group == -1 else self.group
        words = slice(rows.start // 8, -(-rows.stop // 8))
        groups = slice(columns.start // group, -(-columns.stop // group))
        q_io = unpack_words(reader.read(f"{stem}.qweight", (columns, words)), 4, AWQ_ORDER)
        zero_go = unpack_words(reader.read(f"{stem}.qzeros", (groups, words)), 4, AWQ_ORDER)
        scale_go = reader.read(f"{stem}.scales", (groups, rows)).astype(np.float32)
        group_i = np.arange(columns.start, columns.stop) // group - groups.start
        count = rows.stop - rows.start
        return _scaled(q_io[:, :count], zero_go[:, :count], scale_go, group_i)


@dataclass(frozen=True)
class Gptq:
    """A `Scheme`: AutoGPTQ's and GPTQModel's; `offset` is added to the stored zeros."""

    group: int
    bits: int
    offset: int

    part = "qweight"
    needs = ("qzeros", "scales")
    may_have = ("g_idx",)

    @property
    def row_step(self) -> int:
        """Zeros are packed along the outputs."""
        return _WORD // self.bits

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Read `quant_method: "gptq"`; raises UserError for other formats or bits, or bits that differ by module."""
        bits = _setting(config, "bits", (4, 8), "GPTQ")
        form = _setting(config, "checkpoint_format", ("gptq", "gptq_v2"), "GPTQ")
        for pattern, changes in (config.get("dynamic") or {}).items():
            if not pattern.startswith("-:") and changes:
                raise UserError(
                    f"config field 'quantization_config.dynamic' changes the settings of {pattern!r}; GPTQ checkpoints are "
                    "read with the same settings for every quantised module."
                )
        return cls(_group_size(config, "GPTQ"), bits, 1 if form == "gptq" else 0)

    def is_quantized(self, entry: Entry) -> bool:
        """Whatever is named qweight."""
        return entry.dtype == "int32"

    def shape(self, entries: Entries, stem: str) -> tuple[int, int]:
        """[out, in], of the words' shape."""
        words, out = _matrix(entries, stem)
        each = _WORD // self.bits
        size = each * words
        groups = _groups(size, self.group, stem)
        if out % each:
            raise UserError(f"tensor '{stem}.qweight' has {out} outputs, whose zeros do not fill words of {each}.")
        _check(entries, stem, "qzeros", (groups, out // each), self.group)
        _check(entries, stem, "scales", (groups, out), self.group)
        if f"{stem}.g_idx" in entries:
            _check(entries, stem, "g_idx", (size,), self.group)
        return out, size

    def unpack(self, reader: TensorReader, entries: Entries, stem: str, rows: slice, columns: slice) -> np.ndarray:
        """See the formula above; `rows` are outputs, `columns` inputs."""
        each = _WORD // self.bits
        groups = entries[f"{stem}.scales"].shape[0]
        size = each * entries[f"{stem}.qweight"].shape[0]
        words = slice(columns.start // each, -(-columns.stop // each))
        q_oi = unpack_words(np.ascontiguousarray(reader.read(f"{stem}.qweight", (words, rows)).T), self.bits)
        skip = columns.start - each * words.start
        q_io = q_oi[:, skip : skip + columns.stop - columns.start].T
        zero_words = slice(rows.start // each, -(-rows.stop // each))
        zero_go = unpack_words(reader.read(f"{stem}.qzeros", (slice(0, groups), zero_words)), self.bits)
        zero_go = (zero_go[:, : rows.stop - rows.start] + np.uint8(self.offset)) & np.uint8(2**self.bits - 1)
        scale_go = reader.read(f"{stem}.scales", (slice(0, groups), rows)).astype(np.float32)
        if f"{stem}.g_idx" in entries:
            group_i = reader.read(f"{stem}.g_idx", (columns,))
            if group_i.min() < 0 or group_i.max() >= groups:
                raise UserError(f"tensor '{stem}.g_idx' names a group outside 0 .. {groups - 1}.")
        else:
            group_i = np.arange(columns.start, columns.stop) // (size // groups)
        return _scaled(q_io, zero_go, scale_go, group_i)


def _matrix(entries: Entries, stem: str) -> tuple[int, int]:
    shape = entries[f"{stem}.qweight"].shape
    if len(shape) != 2:
        raise UserError(f"tensor '{stem}.qweight' has shape {list(shape)}; expected a matrix.")
    return shape[0], shape[1]


def _scaled(q_io: np.ndarray, zero_go: np.ndarray, scale_go: np.ndarray, group_i: np.ndarray) -> np.ndarray:
    """scale * (q - zero), float32 [out, in]."""
    difference = q_io.astype(np.int16) - zero_go.astype(np.int16)[group_i]
    return np.ascontiguousarray((difference * scale_go[group_i]).T, np.float32)


def pack_awq(weight: np.ndarray, group: int) -> dict[str, np.ndarray]:
    """Return the parts of a matrix in symmetric groups: -7 .. 7 around the zero 8, {"qweight", "qzeros", "scales"}.

    Args:
        weight: float32 [out, in]; out is a multiple of 8 and in of `group`.
        group: inputs that share a scale.
    """
    out, size = weight.shape
    grouped = weight.reshape(out, size // group, group)
    largest = np.abs(grouped).max(axis=2, keepdims=True)
    # Rounded to what is stored before it is divided by, and never to 0 or infinity.
    scale = np.where(largest > 0, largest / np.float32(7), 1)
    scale = np.clip(scale, np.finfo(np.float16).tiny, np.finfo(np.float16).max).astype(np.float16)
    numbers = np.clip(np.rint(grouped / scale.astype(np.float32)), -7, 7).astype(np.int8).reshape(out, size) + 8
    zeros = np.full((size // group, out), 8, np.uint8)
    return {
        "qweight": pack_words(np.ascontiguousarray(numbers.T), 4, AWQ_ORDER),
        "qzeros": pack_words(zeros, 4, AWQ_ORDER),
        "scales": np.ascontiguousarray(scale[:, :, 0].T),
    }
