"""Names that are no folder: what ships with the package, and whether the model hub can help."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any

SHIPPED = {
    "storybook": "load_language_model",
    "storybook/stars": "load_classifier",
    "storybook/hostility": "load_classifier",
}
"""Names that come with the package, and what loads them."""

_SECONDS = 5.0


def check_fetchable(name: str) -> None:
    """Raise at once where loading a name could only fail after many tries to fetch its files.

    Raises:
        FileNotFoundError: the name is no folder, is not in the local cache, and is a misspelled
            shipped name, not on the hub, or the hub can not be reached.
    """
    if Path(name).exists():
        return
    # The hub takes new names as owner/name only.
    if "/" not in name and _meant(name):
        raise FileNotFoundError(not_found(name, "no folder of this name here."))
    hub: Any = importlib.import_module("huggingface_hub")
    try:
        if _is_cached(hub, name):
            return
        hub.get_hf_file_metadata(hub.hf_hub_url(name, "config.json"), timeout=_SECONDS)
    except hub.errors.HFValidationError as error:
        here = "no folder of this name here, and the model hub has no such names."
        raise FileNotFoundError(not_found(name, here)) from error
    except hub.errors.GatedRepoError:
        return
    except hub.errors.RepositoryNotFoundError as error:
        here = (
            "no folder of this name here, and none on the model hub that you may read (is the name "
            "spelled 'owner/name'? Are you logged in, if it is private?)."
        )
        raise FileNotFoundError(not_found(name, here)) from error
    except hub.errors.HfHubHTTPError:
        return
    # The hub's client lets through what its HTTP library raises, which is not always the same.
    except Exception as error:
        here = (
            "no folder of this name here, none in the local cache, and the model hub can not be "
            f"reached (is there a network? {type(error).__name__}: {error})."
        )
        raise FileNotFoundError(not_found(name, here)) from error


def not_found(name: str, reason: str) -> str:
    """Message for a name that leads nowhere, with the shipped name that may have been meant."""
    meant = _meant(name)
    if meant is None:
        advice = "Use 'storybook', which ships with the package, or the path of a folder."
    else:
        advice = (
            f"Did you mean {meant!r}, which ships with the package: {SHIPPED[meant]}({meant!r})?"
        )
    return f"There is no checkpoint {name!r}: {reason} {advice}"


def _meant(name: str) -> str | None:
    return next(iter(difflib.get_close_matches(name.lower(), SHIPPED, n=1, cutoff=0.8)), None)


def _is_cached(hub: Any, name: str) -> bool:
    files = ("config.json", "adapter_config.json")
    return any(isinstance(hub.try_to_load_from_cache(name, file), str) for file in files)
