"""From "a folder or a repository id" to a folder."""

import os
import re
from pathlib import Path

from qwen3_jax.errors import UserError

# What a checkpoint consists of; other formats in the same repository (GGUF, ONNX, original .pth) stay there.
_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "*.sha256")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def resolve(path_or_repo_id: str | os.PathLike, *, revision: str | None = None) -> Path:
    """Return the local folder of a checkpoint, downloading it from the hub when the argument is a repository id.

    Credentials, cache folder and endpoint are huggingface_hub's (HF_TOKEN, HF_HOME, HF_ENDPOINT).

    Raises:
        UserError: neither a folder nor a repository that can be had; names it.
    """
    text = os.fspath(path_or_repo_id)
    path = Path(text).expanduser()
    if path.is_dir():
        if revision is not None:
            raise UserError(f"revision {revision!r} is for a repository on the hub; {path} is a local folder.")
        return path
    if path.is_file():
        raise UserError(f"{path} is a file; give the folder that holds config.json and the weights.")
    if not _REPO_ID.fullmatch(text) or text.startswith((".", "/", "~")) or "/" not in text:
        raise UserError(f"{text} is neither a folder nor a hub repository id such as 'Qwen/Qwen3-0.6B'.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=list(_FILES)))
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise UserError(
            f"the hub has no checkpoint {text!r} for you (HTTP {status}); check the name and HF_TOKEN."
        ) from None
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{text!r} is not a local folder and could not be downloaded ({error}).") from None
