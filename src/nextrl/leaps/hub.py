"""Send a written adapter or model to the Hugging Face Hub, through huggingface_hub and the login it finds."""

from __future__ import annotations

from pathlib import Path

from nextrl.errors import InputError, first_line, needs


def check_push(repository: str) -> None:
    """What can be known of a repository's name before anything is computed or written.

    Raises:
        InputError: the Hub takes no such name, or is switched off.
    """
    with needs("trl", "--push-to-hub"):
        from huggingface_hub import constants
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"--push-to-hub {repository}: HF_HUB_OFFLINE is set: unset it to send the adapter")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"--push-to-hub {repository}: {error}") from error


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a folder as a model repository, made if it is not there; returns its address.

    Args:
        folder: what `save_adapter` or `save_merged` wrote.
        repository: "name" or "user/name".
        private: of a repository that is made.

    Raises:
        InputError: the Hub cannot be reached, or refuses (no login, no such user, a name it does not take).
    """
    with needs("trl", "--push-to-hub"):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    check_push(repository)
    # What the HTTP library raises where nobody answers: requests, httpx or httpx2, by huggingface_hub's version.
    unreachable: type[Exception] = HfHubHTTPError.__bases__[0]
    api = HfApi(library_name="nextrl")
    try:
        place = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=place.repo_id, folder_path=folder, commit_message="Upload a leap written by nextrl"
        )
    except (HFValidationError, HfHubHTTPError, OfflineModeIsEnabled, unreachable, OSError) as error:
        line = first_line(error)
        raise InputError(
            f"--push-to-hub {repository}: {line}; the adapter is in {folder} (log in with `hf auth login`)"
        ) from error
    return str(place)
