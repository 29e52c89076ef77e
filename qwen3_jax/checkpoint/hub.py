"""From "a folder, a URL or a repository id" to a local folder.

resolve("Qwen/Qwen3-0.6B")                # Hugging Face's hub, or ModelScope where QWEN3_USE_MODELSCOPE is true
resolve("modelscope:Qwen/Qwen3-0.6B")     # ModelScope
resolve("hf:Qwen/Qwen3-0.6B")             # Hugging Face's hub
"""

import os
import re
from pathlib import Path

from qwen3_jax.errors import UserError
from qwen3_jax.paths import fetch, is_url, visible_files

# What a checkpoint consists of; other formats in the same repository (GGUF, ONNX, original .pth) stay there.
_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "*.sha256")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
HUGGING_FACE, MODELSCOPE = "hf:", "modelscope:"  # what a name may begin with
VARIABLE = "QWEN3_USE_MODELSCOPE"


def resolve(path_or_repo_id: str | os.PathLike, *, revision: str | None = None, key: str | None = None) -> Path:
    """Return the local folder (or GGUF file) of a checkpoint, downloading it when it is a repository id or a URL (gs://).

    Credentials, cache folder and endpoint are huggingface_hub's (HF_TOKEN, HF_HOME, HF_ENDPOINT), or those of ModelScope's
    client: see `checkpoint.modelscope`.

    Args:
        path_or_repo_id: a prefix chooses the hub, "modelscope:" or "hf:".
        revision: of a repository: a branch, a tag or a commit.
        key: the option or key that names it, for errors.

    Raises:
        UserError: neither a folder nor a repository that can be had; names it.
    """
    try:
        return _resolve(path_or_repo_id, revision)
    except UserError as error:
        if key is None:
            raise
        raise UserError(f"{key}: {error}") from None


def _resolve(path_or_repo_id: str | os.PathLike, revision: str | None) -> Path:
    text = os.fspath(path_or_repo_id)
    if is_url(text) and not text.startswith(MODELSCOPE):
        if revision is not None:
            raise UserError(f"revision {revision!r} is for a repository on the hub; {text} is a URL.")
        return fetch(text)
    if not text:
        raise UserError(
            "the name of the model is empty; give a folder, or a hub repository id such as 'Qwen/Qwen3-0.6B'."
        )
    for prefix, download in ((MODELSCOPE, _of_modelscope), (HUGGING_FACE, _of_hugging_face)):
        if text.startswith(prefix):
            repo_id = text.removeprefix(prefix)
            if not _REPO_ID.fullmatch(repo_id) or "/" not in repo_id:
                raise UserError(f"{text}: after {prefix} stands a repository id such as 'Qwen/Qwen3-0.6B'.")
            return download(repo_id, revision)
    path = Path(text).expanduser()
    if path.is_dir():
        if revision is not None:
            raise UserError(f"revision {revision!r} is for a repository on the hub; {path} is a local folder.")
        return _of_run(path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(
                f"{path} is a file; give the folder that holds config.json and the weights, or a GGUF file."
            )
        if revision is not None:
            raise UserError(f"revision {revision!r} is for a repository on the hub; {path} is a local file.")
        return path
    if not _REPO_ID.fullmatch(text) or text.startswith((".", "/", "~")) or "/" not in text:
        raise UserError(f"{text} is neither a folder nor a hub repository id such as 'Qwen/Qwen3-0.6B'.")
    return _of_modelscope(text, revision) if _uses_modelscope() else _of_hugging_face(text, revision)


def same_hub(repo_id: str, folder: Path) -> str:
    """Return the name of a repository that the files of `folder` name: on ModelScope, where the folder came from there."""
    from qwen3_jax.checkpoint.modelscope import is_from_modelscope

    is_id = _REPO_ID.fullmatch(repo_id) and not Path(repo_id).exists()
    return MODELSCOPE + repo_id if is_id and is_from_modelscope(folder) else repo_id


def without_hub(name: str) -> str:
    """Return a name without the prefix that chooses the hub, as other software writes it."""
    return name.removeprefix(MODELSCOPE).removeprefix(HUGGING_FACE)


def _uses_modelscope() -> bool:
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value not in ("", "0", "1", "false", "true"):
        raise UserError(f"{VARIABLE} is {value!r}; it must be true or false.")
    return value in ("1", "true")


def _of_modelscope(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    from qwen3_jax.checkpoint.modelscope import snapshot

    return snapshot(repo_id, revision, _FILES, offline=HF_HUB_OFFLINE)


def _of_hugging_face(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(_FILES)))
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is no hub repository id ({_line(error)}).") from None
    except Exception as error:
        if not (isinstance(error, OSError) or _is_transport(error)):
            raise
        response = getattr(error, "response", None)
        if isinstance(error, HfHubHTTPError) and response is not None:
            raise UserError(
                f"the hub has no checkpoint {repo_id!r} that you may read (HTTP {response.status_code}); check the name, the "
                "revision and HF_TOKEN."
            ) from None
        raise UserError(
            f"{repo_id!r} is not a local folder and could not be downloaded ({_line(error)}); downloaded files are kept, and "
            f"the same command resumes (ModelScope's copy, if it has one: {MODELSCOPE}{repo_id})."
        ) from None


def is_run(folder: Path) -> bool:
    """Return whether a folder, local or in a bucket, is that of a training run (see training/run_folder.py)."""
    return (folder / "architecture.json").exists() and (folder / "checkpoints").is_dir()


def _of_run(folder: Path) -> Path:
    """Return the folder, or, of a training run's folder, the one that its model or adapter was exported to (`hf`, `adapter`).

    Raises:
        UserError: the run has not exported a model.
    """
    if not is_run(folder) and ((folder / "config.json").is_file() or visible_files(folder, "*.gguf")):
        return folder
    if (folder / "hf" / "config.json").is_file():
        return folder / "hf"
    if (folder / "adapter" / "adapter_config.json").is_file():
        return folder / "adapter"
    if is_run(folder):
        raise UserError(
            f"{folder} is a training run that has exported no model yet: a run writes {folder / 'hf'} or adapter/ at its end."
        )
    return folder


def _is_transport(error: Exception) -> bool:
    """Whether an error is the HTTP library's: httpx or httpx2, by the version of huggingface_hub."""
    return any(kind.__name__ == "HTTPError" for kind in type(error).__mro__)


def _line(error: Exception) -> str:
    """An error's text on one line, without its final period."""
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) <= 300 else text[:300] + " ...").rstrip(".")
