"""Model folders on the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from engine.convert import model_folder
from engine.convert.model_folder import read_model_folder, write_model_folder

CONFIG = {"model_type": "bert", "id2label": {"0": "正面"}}
TENSORS = {"b": torch.randn(3, 2), "a": torch.arange(5)}


def test_written_is_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "model"
    write_model_folder(folder, CONFIG, TENSORS)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    config, tensors = read_model_folder(folder)
    assert config == CONFIG
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert "正面" in (folder / "config.json").read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model_folder(tmp_path, CONFIG, TENSORS)
    before = (tmp_path / "model.safetensors").read_bytes()

    def fail(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half a fi")
        raise OSError("disk full")

    monkeypatch.setattr(model_folder, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_model_folder(tmp_path, CONFIG, {"a": torch.zeros(1)})
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def write_sharded(folder: Path, weight_map: object) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for number, (name, tensor) in enumerate(TENSORS.items(), start=1):
        save_file({name: tensor}, folder / f"model-0000{number}-of-00002.safetensors")


def test_sharded_weights_are_read(tmp_path: Path) -> None:
    names = {"b": "model-00001-of-00002.safetensors", "a": "model-00002-of-00002.safetensors"}
    write_sharded(tmp_path, names)
    tensors = read_model_folder(tmp_path)[1]
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../secret.safetensors"}, "'../secret.safetensors' is not the name of a .safetensors file beside it"),
        ({"a": "model.bin"}, "'model.bin' is not the name of a .safetensors file beside it"),
        (["a"], "weight_map must map tensors to file names"),
        ({"a": "gone.safetensors"}, "gone.safetensors: no such file"),
        ({"c": "model-00001-of-00002.safetensors"}, "1 tensors of the index are in no file, such as c"),
    ],
)
def test_a_bad_index_is_refused(tmp_path: Path, weight_map: object, message: str) -> None:
    write_sharded(tmp_path, weight_map)
    with pytest.raises(ValueError, match=message):
        read_model_folder(tmp_path)


def test_reading_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        read_model_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        read_model_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: it must hold one JSON object"):
        read_model_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not a JSON file"):
        read_model_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no weights: neither model\.safetensors nor model\.safetensors\.index\.json"):
        read_model_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"are a pickle \(pytorch_model\.bin\).*save_pretrained\('"):
        read_model_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        read_model_folder(tmp_path)
