"""Repositories of ModelScope (modelscope.cn, modelscope.ai): their files, by its own client, the package `modelscope-hub`.

`modelscope-hub` is what the package `modelscope` downloads with. `modelscope` itself imports PyTorch where that is installed.
Environment variables are the client's: MODELSCOPE_CACHE, MODELSCOPE_API_TOKEN, MODELSCOPE_ENDPOINT.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from qwen3_jax.errors import UserError
from qwen3_jax.progress import doing

if TYPE_CHECKING:
    from modelscope_hub import HubApi

# Folders that this process has downloaded or found. The client compares the SHA-256 of every cached file each time it is asked,
# and a command asks more than once.
_FOLDERS: dict[tuple[str, str | None], Path] = {}


def snapshot(repo_id: str, revision: str | None, patterns: Sequence[str], *, offline: bool) -> Path:
    """Return the folder of the files of a model that match, downloaded as far as they are not in the client's cache.

    Where ModelScope cannot be reached, what is cached is taken.

    Args:
        repo_id: "owner/name".
        revision: a branch, a tag or a commit; None is `master`.
        patterns: globs of names.
        offline: take what is cached, and ask nothing of the network.

    Raises:
        UserError: the client is not installed, or the model is not available; names it.
    """
    if (folder := _FOLDERS.get((repo_id, revision))) is None or not folder.is_dir():
        try:
            import modelscope_hub
        except ImportError:
            raise UserError(
                f'modelscope:{repo_id} needs the package modelscope-hub: pip install "qwen3-jax[modelscope]".'
            ) from None
        del modelscope_hub
        with _quiet():
            folder = _cached(repo_id, revision) if offline else _downloaded(repo_id, revision, patterns)
        _FOLDERS[repo_id, revision] = folder
    return folder


def is_from_modelscope(folder: Path) -> bool:
    """Whether a folder is one that `snapshot` has returned."""
    return folder in _FOLDERS.values()


def _downloaded(repo_id: str, revision: str | None, patterns: Sequence[str]) -> Path:
    from modelscope_hub import (
        APIError,
        FileDownloadError,
        HubError,
        NetworkError,
        NotExistError,
        RateLimitError,
        ServerError,
    )

    label = _label(repo_id, revision)
    where = f" at {address}" if (address := os.environ.get("MODELSCOPE_ENDPOINT")) else ""
    try:
        with doing(f"asking ModelScope for {repo_id}"):
            api = _client()
            api = _client(api.resolve_endpoint_for_read(repo_id))
            listed = api.list_repo_files(repo_id, "model", revision=revision)
    except (NetworkError, RateLimitError, ServerError) as error:
        return _cached(repo_id, revision, why=f"ModelScope cannot be reached{where} ({_reason(error)})")
    except APIError as error:
        status = 404 if isinstance(error, NotExistError) else error.status_code
        answer = f" (HTTP {status})" if status else ""
        raise UserError(
            f"ModelScope has no {label} that you may read{answer}; check the name, the revision and MODELSCOPE_API_TOKEN."
        ) from None
    except (HubError, OSError, ValueError) as error:
        raise UserError(f"ModelScope{where} could not be asked for {label} ({_reason(error)}).") from None
    wanted = [file for file in listed if not file.is_dir and _is_wanted(file.path, patterns, label)]
    if not wanted:
        raise UserError(f"ModelScope's {label} has no checkpoint: it holds none of {', '.join(patterns)}.")
    entries = [{"Path": file.path, "Size": file.size or None, "Sha256": file.sha256} for file in wanted]
    try:
        return _download(api, repo_id, revision, entries)
    except (FileDownloadError, NetworkError, OSError) as error:
        name, cause = next(iter(getattr(error, "failed_files", {}).items()), ("", error))
        which = f"{name}: " if name else ""
        raise UserError(
            f"ModelScope's {label} could not be downloaded ({which}{_reason(cause)}); downloaded files are kept, and the same "
            "command resumes."
        ) from None


def _client(endpoint: str | None = None) -> HubApi:
    """Return ModelScope's client, with the environment as it is now; by default it reads that once in a process."""
    from modelscope_hub import HubApi, HubConfig

    return HubApi(config=HubConfig(endpoint=endpoint))


def _download(api: HubApi, repo_id: str, revision: str | None, entries: list[dict[str, Any]]) -> Path:
    """Download files; each appears whole under its name, with the SHA-256 that was listed."""
    return api.download_repo(repo_id, "model", revision=revision, file_list=entries)


def _cached(repo_id: str, revision: str | None, why: str = "HF_HUB_OFFLINE is set") -> Path:
    """Return what an earlier download left, if it was finished."""
    from modelscope_hub import CacheNotFound

    label = _label(repo_id, revision)
    try:
        folder = _client().download_repo(repo_id, "model", revision=revision, local_files_only=True)
    except CacheNotFound:
        raise UserError(f"ModelScope's {label} is not in its cache on this machine, and {why}.") from None
    if any(folder.rglob("*.incomplete")):
        raise UserError(
            f"ModelScope's {label} is in its cache only in part ({folder}), and {why}; with the network, the same command "
            "resumes."
        )
    return folder


def _is_wanted(name: str, patterns: Sequence[str], label: str) -> bool:
    """Whether a listed name matches.

    Raises:
        UserError: it leads out of the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"ModelScope's {label} lists a file {name!r}, which is no name inside a repository.")
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the client's log off the terminal: what goes wrong is raised. MODELSCOPE_LOG_LEVEL shows it."""
    log = logging.getLogger("modelscope_hub")
    level = log.level
    if not os.environ.get("MODELSCOPE_LOG_LEVEL"):
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _label(repo_id: str, revision: str | None) -> str:
    return f"model {repo_id!r}" + (f" at revision {revision!r}" if revision else "")


def _reason(error: BaseException) -> str:
    """What failed, in a few words: the client's own are partly Chinese, and name addresses and objects of its transport."""
    from modelscope_hub import APIError, FileIntegrityError, RequestTimeoutError

    if isinstance(error, APIError) and error.status_code:
        return f"HTTP {error.status_code}"
    if isinstance(error, RequestTimeoutError):
        return "no answer in time"
    if isinstance(error, FileIntegrityError):
        return "what arrived is not what is listed"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, ValueError):
        return str(error)
    return {"NetworkError": "no connection"}.get(type(error).__name__, type(error).__name__)
