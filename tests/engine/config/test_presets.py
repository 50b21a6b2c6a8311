"""Presets, and what --model can mean."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config.arch import ArchConfig, padded_vocab_size
from engine.config.presets import load_preset, preset_names, resolve_arch
from engine.convert.configs import huggingface_class

SIZES = {  # layers, hidden, heads, intermediate, positions
    "bert-tiny": (2, 128, 2, 512, 512),
    "bert-mini": (4, 256, 4, 1024, 512),
    "bert-small": (4, 512, 8, 2048, 512),
    "bert-medium": (8, 512, 8, 2048, 512),
    "bert-base": (12, 768, 12, 3072, 512),
    "bert-large": (24, 1024, 16, 4096, 512),
    "bert-giant": (36, 1024, 16, 4096, 512),
    "gpt2-tiny": (2, 128, 2, 512, 1024),
    "gpt2-mini": (4, 256, 4, 1024, 1024),
    "gpt2": (12, 768, 12, 3072, 1024),
    "gpt2-medium": (24, 1024, 16, 4096, 1024),
    "gpt2-large": (36, 1280, 20, 5120, 1024),
    "gpt2-xl": (48, 1600, 25, 6400, 1024),
}


def test_names() -> None:
    assert preset_names() == sorted(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_presets(name: str) -> None:
    fields, objective = load_preset(name)
    assert (fields, objective) == resolve_arch(name)
    assert "vocab_size" not in fields
    arch = ArchConfig(vocab_size=1003, **fields)
    assert not arch.problems()
    sizes = (arch.num_layers, arch.hidden_size, arch.num_heads, arch.intermediate_size, arch.max_positions)
    assert sizes == SIZES[name]
    gpt2 = name.startswith("gpt2")
    assert objective == ("lm" if gpt2 else "mlm")
    assert huggingface_class(arch) == ("gpt2" if gpt2 else "bert")
    assert arch.norm_eps == (1e-5 if gpt2 else 1e-12)
    assert arch.activation == ("gelu_tanh" if gpt2 else "gelu")
    assert (arch.hidden_dropout, arch.attention_dropout, arch.init_std) == (0.1, 0.0, 0.02)


def test_sizes_are_those_of_the_papers() -> None:
    transformers = pytest.importorskip("transformers")
    base = ArchConfig(vocab_size=30522, **load_preset("bert-base")[0])
    theirs = transformers.BertConfig()
    assert (base.hidden_size, base.num_layers, base.norm_eps) == (768, theirs.num_hidden_layers, theirs.layer_norm_eps)


def test_yaml_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("num_layers: 3\nnorm_eps: 1e-5\nhidden_dropout: 0\n")  # YAML reads 1e-5 as text
    assert resolve_arch(str(path)) == ({"num_layers": 3, "norm_eps": 1e-5, "hidden_dropout": 0.0}, "mlm")
    path.write_text("causal: true\n")
    assert resolve_arch(str(path))[1] == "lm"
    path.write_text("objective: mlm,nsp\n")
    assert resolve_arch(str(path)) == ({}, "mlm,nsp")


def test_model_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 48, "vocab_size": 1003}))
    fields, objective = resolve_arch(str(tmp_path))
    assert objective == "lm"
    arch = ArchConfig(**fields)
    assert (arch.vocab_size, arch.hidden_size, arch.intermediate_size) == (1003, 48, 192)


def test_a_preset_wins_over_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bert-tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_arch("bert-tiny")[0]["hidden_size"] == 128
    with pytest.raises(ValueError, match=r"bert-tiny: a model folder must hold a config\.json"):
        resolve_arch("./bert-tiny")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bert-bsae", "unknown model 'bert-bsae': neither a preset .* did you mean bert-base"),
        ("gpt-2", "did you mean gpt2"),
        ("llama", "the presets are bert-base, bert-giant, bert-large"),
        ("nowhere.yaml", "nowhere.yaml: no such file"),
    ],
)
def test_unknown_models(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_arch(name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("num_layer: 3", r"mine\.yaml: unknown key num_layer; did you mean num_layers\?"),
        ("zzz: 3", "unknown key zzz; the keys are vocab_size, hidden_size"),
        ("num_layers: many", r"num_layers is 'many' \(str\): it must be of type int"),
        ("num_layers: true", r"num_layers is True \(bool\): it must be of type int"),
        ("norm_eps: tiny", r"norm_eps is 'tiny' \(str\): it must be of type float"),
        ("objective: 3", "objective is 3: it must be a name such as mlm"),
        ("- num_layers", "it must hold keys and values, such as num_layers: 12"),
        ("a: [", "not a YAML file"),
    ],
)
def test_yaml_errors(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        resolve_arch(str(path))


def test_model_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a model folder must hold a config\.json"):
        resolve_arch(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: it must hold one JSON object"):
        resolve_arch(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"config\.json: model_type is 'llama': it must be one of bert, gpt2"):
        resolve_arch(str(tmp_path))


def test_torch_is_not_imported(repository: Path) -> None:
    code = "import sys, engine.config.presets as p; p.resolve_arch('gpt2'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True)


def test_padded_vocab_size() -> None:
    assert [padded_vocab_size(size) for size in (1, 64, 65, 1003, 50257)] == [64, 64, 128, 1024, 50304]
