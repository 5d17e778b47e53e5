"""Runs in repositories of the Hugging Face Hub: ``bitad weights push`` and ``bitad weights pull``.

A repository has ``model.safetensors``, a complete checkpoint, and ``README.md``, its model card. What only means
something on this machine stays here: the folders of paths, and the names and digests of the videos.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bitad.config.loading import without_folders
from bitad.runtime.files import atomic_write, check_folder
from bitad.runtime.log import log
from bitad.weights.checkpoint import Checkpoint, load_checkpoint, open_checkpoint, save_checkpoint
from bitad.weights.hub import HubName, hub_file
from bitad.weights.model_card import model_card

MODEL_FILE = "model.safetensors"
CARD_FILE = "README.md"


def push_run(run: Path, name: HubName, *, public: bool = False) -> str:
    """Writes a run into a repository, which is made if there is none. Its earlier files stay in its history.

    Args:
        run: a run directory or a checkpoint of BiTAD.
        name: the repository, perhaps with a branch.
        public: whether everyone may read a new repository; else only its owner.

    Returns:
        the address of the commit.

    Raises:
        FileNotFoundError, ValueError: no trained detector, or no right to write the repository.
        ConnectionError: the Hub does not answer.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if name.file is not None:
        raise ValueError(f"{name}: a run is several files; leave out :{name.file}")
    checkpoint = load_checkpoint(run)
    checkpoint.network()  # raises if the weights do not fit
    shared = replace(checkpoint, config=without_folders(checkpoint.config), data=None, training=None)
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder, _hub_errors(name, "written"), _quiet_library():
        file = Path(folder) / MODEL_FILE
        save_checkpoint(shared, file)
        api.create_repo(name.repository, private=not public, exist_ok=True)
        commit = api.create_commit(
            name.repository,
            operations=[
                CommitOperationAdd(CARD_FILE, model_card(shared, name.repository).encode()),
                CommitOperationAdd(MODEL_FILE, file),
            ],
            commit_message=f"Upload {checkpoint.config.run_directory.name} with BiTAD",
            revision=name.revision,
        )
    return str(commit.commit_url)


def pull_run(name: HubName, out: Path) -> HubName:
    """Downloads the newest version of a run into a folder, with its model card.

    Args:
        name: the repository, perhaps with a branch, tag or commit.
        out: a new or empty folder.

    Returns:
        the name of this version, which stays the same.

    Raises:
        ValueError: the repository has no run of BiTAD, or the folder has files.
        ConnectionError: the Hub does not answer. With ``HF_HUB_OFFLINE=1`` the version in the cache is taken.
    """
    from huggingface_hub import HfApi, constants

    if name.file is not None:
        raise ValueError(f"{name}: a run is several files; leave out :{name.file}")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give another folder")
    check_folder(out)
    if not constants.HF_HUB_OFFLINE:
        with _hub_errors(name, "read"):
            name = replace(name, revision=HfApi().model_info(name.repository, revision=name.revision).sha)
    model = hub_file(replace(name, file=MODEL_FILE)).path
    if not isinstance(open_checkpoint(model), Checkpoint):
        raise ValueError(
            f"{name} is not a run of BiTAD; get weights of other projects with: bitad weights download"
        )
    files = {CARD_FILE: hub_file(replace(name, file=CARD_FILE)).path, MODEL_FILE: model}
    for target, source in files.items():
        with atomic_write(out / target) as partial:
            shutil.copyfile(source, partial)
    log.info("%s: %s", out, name)
    return name


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Within, the library shows bars only in a terminal, and no warnings of how it uses its HTTP client."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hides = not (sys.stderr.isatty() or are_progress_bars_disabled())
    if hides:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if hides:
            enable_progress_bars()


@contextmanager
def _hub_errors(name: HubName, done: str) -> Iterator[None]:
    """The library's errors as one line with a remedy."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except OfflineModeIsEnabled:
        raise ConnectionError(f"{name} cannot be {done}: HF_HUB_OFFLINE forbids it; unset that") from None
    except RevisionNotFoundError:
        raise ValueError(f"{name}: the repository has no revision {name.revision}; leave it out") from None
    except (GatedRepoError, RepositoryNotFoundError):
        raise ValueError(
            f"{name}: no such repository at {constants.ENDPOINT}, or one that you may not read; correct the name, or "
            "set HF_TOKEN"
        ) from None
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise ValueError(
                f"{name} cannot be {done}: {constants.ENDPOINT} knows no right of yours to it; set HF_TOKEN to a token "
                "with it, or run: hf auth login"
            ) from None
        reason = str(error).strip().partition("\n")[0]
        raise ConnectionError(f"{name} cannot be {done}: {reason}") from None
    except Exception as error:  # versions of the library raise errors of different HTTP clients
        if isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        reason = str(error.__cause__ or error).strip().partition("\n")[0] or type(error).__name__
        raise ConnectionError(f"{name} cannot be {done}: {reason}; try again later") from None
