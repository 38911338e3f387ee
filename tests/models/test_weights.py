"""Pretrained weights: where they are found, how they are fetched, and what is said when there are none."""

from __future__ import annotations

import hashlib
import socket
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import huggingface_hub
import pytest
import safetensors.torch
import timm
from huggingface_hub import constants

from acclimate.errors import AcclimateError
from acclimate.locks import HeldError
from acclimate.models import weights
from acclimate.models.backbones import Backbone, load_weights
from another_process import another_process

NAME = "test_resnet"


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither packages nor a cache, and nothing switches downloads off."""
    monkeypatch.setattr(weights, "PACKAGED", {})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for key in weights.OFFLINE_KEYS:
        monkeypatch.delenv(key, raising=False)


@pytest.fixture
def hub(no_weights: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A hub on this machine that has one file; `asked` counts requests, `stated` is the SHA-256 that it tells."""
    data = safetensors.torch.save(timm.create_model(NAME).state_dict())
    state = SimpleNamespace(asked=[], data=data, stated=hashlib.sha256(data).hexdigest())

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, body: bool) -> None:
            state.asked.append((self.command, self.path))
            found = self.path.endswith("/model.safetensors")
            self.send_response(200 if found else 404)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{state.stated}"')
            self.send_header("Content-Length", str(len(state.data) if found else 0))
            self.end_headers()
            if body and found:
                self.wfile.write(state.data)

        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def log_message(self, *_: object) -> None:
            """Not on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    template = constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield state
    server.shutdown()
    server.server_close()


def test_weights_are_fetched_once_and_checked_and_then_here(hub: SimpleNamespace) -> None:
    assert weights.here(NAME) is None
    made = Backbone(NAME, (8,), "batch", 0)
    assert load_weights(made, NAME, "auto") == "timm r160_in1k"
    theirs = safetensors.torch.load(hub.data)
    stems = [value for key, value in made.body.state_dict().items() if key.startswith("conv1") and value.ndim == 4]
    assert stems
    assert any(stem.shape == value.shape and (stem == value).all() for stem in stems for value in theirs.values())
    before = len(hub.asked)
    assert weights.obtain(NAME).origin == "hub r160_in1k"
    assert len(hub.asked) == before, "what is here is not asked for again"


def test_a_folder_that_another_process_fills_is_left_to_it(hub: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with another_process(out, "weights"), pytest.raises(HeldError, match="writes there"):
        weights.fetch(NAME, out)
    file, checksum = weights.fetch(NAME, out)
    assert (out / weights.SUMS).read_text() == f"{checksum}  {file.name}\n"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["out"]


def test_a_file_with_another_checksum_is_refused_and_not_kept(hub: SimpleNamespace) -> None:
    hub.stated = "0" * 64
    with pytest.raises(AcclimateError, match=r"SHA-256 .* not 0{64}; try again"):
        weights.obtain(NAME)
    assert weights.here(NAME) is None


@pytest.mark.usefixtures("no_weights")
def test_a_hub_that_does_not_answer_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = []
    real = huggingface_hub.get_hf_file_metadata

    def counted(url: str, **options: float) -> object:
        asked.append(options["timeout"])
        return real(url, **options)

    with socket.socket() as taken:
        # Bound and not listening: whoever connects is refused.
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", counted)
        with pytest.raises(AcclimateError, match=r"127\.0\.0\.1:\d+ gives none \(Connect.*model\.weights=none") as told:
            weights.obtain(NAME)
    assert asked == [weights.TIMEOUT_S]
    assert "\n" not in str(told.value)
    assert caplog.text == capfd.readouterr().err == ""


def test_copies_for_another_machine_carry_their_checksums(hub: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    file, digest = weights.fetch(NAME, folder)
    assert file == folder / f"{NAME}.safetensors"
    assert (digest, file.read_bytes()) == (hub.stated, hub.data)
    weights.fetch(NAME, folder)
    subprocess.run(["sha256sum", "--check", "--quiet", weights.SUMS], cwd=folder, check=True)
    assert len((folder / weights.SUMS).read_text().splitlines()) == 1
    made = Backbone(NAME, (8,), "batch", 0)
    assert load_weights(made, NAME, file) == f"file {file.name}"
    assert [one.backbone for one in weights.kept()] == [f"{NAME}.r160_in1k"]


@pytest.mark.usefixtures("no_weights")
def test_a_backbone_that_timm_does_not_know_is_named() -> None:
    with pytest.raises(AcclimateError, match="timm has no model 'resnett50'"):
        weights.fetch("resnett50")
