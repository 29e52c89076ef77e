"""A folder of safetensors files as one mapping from tensor name to slices on disk.

Everything about the folder is checked before the first tensor is read: files that the index names, headers, duplicates.
The one file `model.safetensors` decides what belongs to the checkpoint, or else the index, or else every shard; files beside
them (adapters, an older set of shards) are named in a warning, and so are copies of a tensor that the index places elsewhere.
Names are HF's for the whole model, whatever wrapper they were saved from: `embed_tokens.weight` (the decoder alone) and
`_orig_mod.model.embed_tokens.weight` are `model.embed_tokens.weight`. Tables of the rotary embedding, which older versions of
transformers saved, are left out: they are computed.
Files are opened for one parameter at a time, because the pages of a mapped file count as this process's memory.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from qwen3_jax.checkpoint.source import Entry
from qwen3_jax.errors import UserError, warn
from qwen3_jax.json_fields import read_json, refuse_adapter
from qwen3_jax.paths import visible_files
from qwen3_jax.text_files import LFS_POINTER, is_lfs_pointer

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_F8 = "float8_e4m3fn"
_PACKED = {"F8_E4M3": _F8, "I8": "int8", "U8": "uint8", "I32": "int32", "I64": "int64"}
_EMBEDDING = "embed_tokens.weight"
_DECODER = "model."
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_COMPUTED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
# Pickled files of a training run that hold no weights.
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state).*")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")


def is_adapter(file: Path) -> bool:
    """Whether a file holds an adapter's weights and not a model's (PEFT's and mlx-lm's names)."""
    return file.name.startswith(("adapter_model", "adapters.", "adapter."))


class SafetensorsFolder:
    """The tensors of a checkpoint folder.

    Args:
        folder: holds one `model.safetensors`, or several files and perhaps their index.
        packed: take the integer and 8-bit tensors of quantised checkpoints too.

    Raises:
        UserError: no weights, a missing, truncated or damaged file, or a tensor that occurs twice; names the file.
    """

    def __init__(self, folder: Path, packed: bool = False):
        self.folder = folder
        self._listed: dict[str, str] | None = None  # tensor -> file, of the index
        self._stored: dict[str, str] = {}  # HF's name -> the name in the file, where the two differ
        self._offsets: dict[Path, dict[str, int]] = {}
        self._dtypes = FLOATS | _PACKED if packed else FLOATS
        self.entries: dict[str, Entry] = {}
        self._copies: dict[str, Path] = {}  # tensors that the index places in another file
        for file in self._files():
            try:
                with safe_open(file, framework="np") as handle:
                    for name in handle.keys():  # noqa: SIM118 - not a mapping
                        self._add(name, handle.get_slice(name), file)
            except (SafetensorError, OSError) as error:
                refuse_pointer(file)
                raise UserError(f"{file} is not a complete safetensors file ({error}); copy it again.") from None
        if self._listed is not None:
            self._check_index(self._listed)
        self._rename()

    def _files(self) -> list[Path]:
        index, single = self.folder / INDEX, self.folder / SINGLE
        every = visible_files(self.folder, "*.safetensors")
        weight_map = self._weight_map() if index.exists() else None
        stray = []
        if single.exists() and (weight_map is None or SINGLE not in weight_map.values()):
            loaded, files = SINGLE, [single]
            stray = [INDEX] if weight_map is not None else []
            weight_map = None
        elif weight_map is not None:
            loaded, files = f"what {INDEX} names", [self.folder / name for name in sorted(set(weight_map.values()))]
            for file in files:
                if not file.exists():
                    others = [other.name for other in every if other not in files and not is_adapter(other)]
                    advice = f"; delete the index if it belongs to other files than {others[0]}" if others else ""
                    raise UserError(f"{file} is missing; {INDEX} names it{advice}.")
        else:
            loaded, files = "the rest", [file for file in every if not is_adapter(file)]
            _check_shards(files, self.folder)
        self._listed = weight_map
        stray += [file.name for file in every if file not in files]
        if stray:
            warn(f"{self.folder}: not part of the checkpoint, and left out: {', '.join(stray)}. Loaded: {loaded}.")
        return files

    def _weight_map(self) -> dict[str, str]:
        index = self.folder / INDEX
        weight_map = read_json(index).get("weight_map")
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not all(isinstance(v, str) for v in weight_map.values())
        ):
            raise UserError(f"{index} has no 'weight_map' from tensor names to file names.")
        for name in weight_map.values():
            if Path(name).name != name:
                raise UserError(f"{index} names the file {name!r}, which is outside the folder.")
        return weight_map

    def _add(self, name: str, view: Any, file: Path) -> None:
        if name in self.entries:
            before = self.entries[name].file
            listed = (self._listed or {}).get(name)
            if listed not in (before.name, file.name):
                raise UserError(f"tensor {name!r} occurs twice, in {before.name} and {file.name}.")
            self._copies[name] = before if listed == file.name else file
            if listed == before.name:
                return
        dtype = view.get_dtype()
        if dtype not in self._dtypes:
            raise UserError(
                f"tensor {name!r} in {file.name} has data type {dtype}, and config.json has no 'quantization_config' that "
                f"says what its numbers stand for; load the bf16 checkpoint instead."
                if dtype in _PACKED
                else f"tensor {name!r} in {file.name} has data type {dtype}, which is not read."
            )
        self.entries[name] = Entry(file, tuple(view.get_shape()), self._dtypes[dtype])

    def _check_index(self, weight_map: dict[str, str]) -> None:
        for name, file in weight_map.items():
            if name not in self.entries:
                raise UserError(f"tensor {name!r} is missing from {file}; {INDEX} says it is there.")
            if self.entries[name].file.name != file:
                raise UserError(f"tensor {name!r} is in {self.entries[name].file.name}; {INDEX} says {file}.")
        unlisted = set(self.entries) - set(weight_map)
        if unlisted:
            name = sorted(unlisted)[0]
            raise UserError(
                f"tensor {name!r} in {self.entries[name].file.name} is not in {INDEX}; delete the index if every tensor of the "
                "files belongs to the model."
            )
        if self._copies:
            name, holder = next(iter(self._copies.items()))
            more = f" and {len(self._copies) - 1} more" if len(self._copies) > 1 else ""
            warn(f"{self.folder}: left out, because {INDEX} names other files for them: {name} in {holder.name}{more}.")

    def _rename(self) -> None:
        """Give tensors the names that they have in the whole model, and leave out what is computed."""
        whole = {name: _WRAPPERS.sub("", name) for name in self.entries if not name.endswith(_COMPUTED)}
        embeddings = [
            name for name in whole.values() if name.endswith(_EMBEDDING) and name[: -len(_EMBEDDING)][-1:] in ("", ".")
        ]
        if len(embeddings) == 1:
            prefix = embeddings[0].removesuffix(_EMBEDDING)
            whole = {name: _whole_name(one, prefix) for name, one in whole.items()}
        if len(set(whole.values())) < len(whole):
            whole = {name: name for name in whole}  # two of one name: as they are, to be refused
        self._stored = {one: name for name, one in whole.items() if one != name}
        self.entries = {one: self.entries[name] for name, one in whole.items()}

    def stored_name(self, name: str) -> str:
        """The name that a tensor has in its file."""
        return self._stored.get(name, name)

    def first_byte(self, name: str) -> int:
        """Where a tensor's numbers begin in its file."""
        file = self.entries[name].file
        if file not in self._offsets:
            with open(file, "rb") as handle:
                size = int.from_bytes(handle.read(8), "little")
                header = json.loads(handle.read(size))
            self._offsets[file] = {n: 8 + size + e["data_offsets"][0] for n, e in header.items() if n != "__metadata__"}
        return self._offsets[file][self.stored_name(name)]

    @contextmanager
    def open(self) -> Iterator["Reader"]:
        """Yield a reader whose files stay open (and mapped) until the block ends."""
        reader = Reader(self)
        try:
            yield reader
        finally:
            reader.close()


def _whole_name(name: str, prefix: str) -> str:
    """The name that a tensor has in the whole model.

    Args:
        name: as it is stored.
        prefix: what stands before `embed_tokens.weight`: a wrapper and `model.`, or the name of the decoder in another module.
    """
    if prefix == _DECODER or prefix.endswith("." + _DECODER):
        return name.removeprefix(prefix.removesuffix(_DECODER))
    if prefix:
        return _DECODER + name.removeprefix(prefix) if name.startswith(prefix) else name
    return name if name.startswith("lm_head.") else _DECODER + name


def refuse_pointer(file: Path) -> None:
    """Say of a file that cannot be read that it is only a pointer, where it is one.

    Raises:
        UserError: it is a Git LFS pointer.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(64)
    except OSError:
        return
    if is_lfs_pointer(start):
        raise UserError(f"{file} {LFS_POINTER}")


def _check_shards(files: list[Path], folder: Path) -> None:
    """Refuse a folder without an index that lacks a shard of the number that the names give, or has no weights at all."""
    if not files:
        refuse_adapter(folder)
        every = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in visible_files(folder, pattern)]
        pickled = sorted(name for name in every if not _NO_WEIGHTS.fullmatch(name))
        if pickled:
            raise UserError(
                f"{folder} has no *.safetensors file but {pickled[0]}, whose pickled weights are not read; load it with "
                "transformers and save it again with `save_pretrained`."
            )
        raise UserError(f"{folder} has no *.safetensors file; is the checkpoint complete?")
    for file in files:
        match = _SHARD.fullmatch(file.name)
        if match is None:
            continue
        for number in range(1, int(match[3]) + 1):
            name = f"{match[1]}-{number:05d}-of-{match[3]}.safetensors"
            if not (folder / name).exists():
                raise UserError(f"{folder / name} is missing; {file.name} is one of {int(match[3])} shards.")


class Reader:
    """Reads slices of tensors; keeps files open between reads."""

    def __init__(self, folder: SafetensorsFolder):
        self._folder = folder
        self._handles: dict[Path, Any] = {}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Return one part of a tensor, copied out of the file.

        Raises:
            UserError: the file no longer holds what its header says.
        """
        entry = self._folder.entries[name]
        file = entry.file
        try:
            if entry.dtype == _F8:  # which the package writes, but does not read into NumPy
                numbers = np.memmap(file, np.uint8, "r", self._folder.first_byte(name), entry.shape)
                return np.array(numbers[index]).view(jnp.dtype(_F8))
            if file not in self._handles:
                self._handles[file] = safe_open(file, framework="np").__enter__()
            return np.asarray(self._handles[file].get_slice(self._folder.stored_name(name))[index])
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"tensor {name!r} could not be read from {file} ({error}).") from None

    def close(self) -> None:
        """Unmap the files."""
        for handle in self._handles.values():
            handle.__exit__(None, None, None)
        self._handles.clear()
