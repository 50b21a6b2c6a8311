"""Our BERT and GPT-2 against transformers' own: values, gradients, folders in both directions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.config.arch import ArchConfig
from engine.convert.configs import pad_id_of
from engine.convert.huggingface import arch_from_huggingface, from_huggingface, to_huggingface
from engine.convert.model_folder import read_model_folder, write_model_folder
from engine.models import dropout, embeddings, heads, layers, transformer
from engine.models.layout import PackedLayout
from engine.models.model import build_model
from tests.engine.convert.sides import (
    AUTO_CLASSES,
    BERT,
    CASES,
    GPT2,
    HEADS,
    LABELS,
    OF_CLASSES,
    PAD,
    PRE_NORM,
    SPECIAL_IDS,
    assert_same,
    build_ours,
    build_theirs,
    our_outputs,
    packed_batch,
    padded_batch,
    their_outputs,
)

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(("arch", "head"), CASES)
def test_their_folder_becomes_our_model(arch: ArchConfig, head: str, tmp_path: Path) -> None:
    theirs = build_theirs(arch, head)
    theirs.save_pretrained(tmp_path)
    config, tensors = read_model_folder(tmp_path)
    assert arch_from_huggingface(config) == arch
    ours = build_model(arch, {head: HEADS[head](arch)}, seed=0).eval()
    ours.load_state_dict(from_huggingface(tensors, arch, pad_id_of(config)))
    assert_same(ours, theirs, arch, head)


@pytest.mark.parametrize(("arch", "head"), CASES)
def test_our_folder_loads_in_their_classes(arch: ArchConfig, head: str, tmp_path: Path) -> None:
    ours = build_ours(arch, head)
    labels = LABELS if head in OF_CLASSES else None
    config, tensors = to_huggingface(ours.state_dict(), arch, [head], SPECIAL_IDS, labels)
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors.values())
    write_model_folder(tmp_path / "model", config, tensors)
    auto = getattr(transformers, AUTO_CLASSES[head])
    theirs, report = auto.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(theirs).__name__ == config["architectures"][0]
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.dtype == torch.float32
    assert (theirs.config.pad_token_id, theirs.config.bos_token_id, theirs.config.eos_token_id) == (0, 2, 3)
    if head in OF_CLASSES:
        assert theirs.config.num_labels == len(LABELS)
        assert theirs.config.id2label == dict(enumerate(LABELS))
    elif head != "question_answering":
        assert theirs.get_output_embeddings().weight is theirs.get_input_embeddings().weight
    assert_same(ours, theirs.eval(), arch, head)


@pytest.mark.parametrize(("arch", "head"), CASES)
def test_weights_come_back_bit_equal(arch: ArchConfig, head: str) -> None:
    weights = build_ours(arch, head).state_dict()
    config, tensors = to_huggingface(weights, arch, [head], SPECIAL_IDS)
    assert arch_from_huggingface(config) == arch
    labels = {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"} if head in OF_CLASSES else None
    assert config.get("id2label") == labels
    back = from_huggingface(tensors, arch, pad_id_of(config))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize(("arch", "head"), CASES)
def test_training_drops_where_theirs_does(arch: ArchConfig, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dropout, embeddings, heads, layers):  # torch's own draws, so that the masks can be compared
        monkeypatch.setattr(module, "dropout", torch.nn.functional.dropout)
    monkeypatch.setattr(dropout, "is_wanted", lambda *_, **__: False)
    monkeypatch.setattr(transformer, "draw_seed", lambda _: None)
    theirs = build_theirs(arch, head).train()
    ours = build_model(arch, {head: HEADS[head](arch)}, seed=0).train()
    ours.load_state_dict(from_huggingface(theirs.state_dict(), arch, PAD))
    batch = packed_batch(arch, (13,))  # one sequence: both draw masks of the same size in the same order
    torch.manual_seed(3)
    hidden, logits = our_outputs(ours, head, batch)
    torch.manual_seed(3)
    hidden_theirs, logits_theirs = their_outputs(theirs, head, padded_batch(batch[0], batch[2], batch[3]))
    torch.testing.assert_close(hidden, hidden_theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, logits_theirs, atol=1e-5, rtol=1e-5)
    torch.manual_seed(4)
    assert not torch.allclose(our_outputs(ours, head, batch)[0], hidden, atol=1e-2)


@pytest.mark.parametrize("arch", [BERT, PRE_NORM, GPT2], ids=["bert", "pre-norm", "gpt2"])
def test_bare_encoder_of_theirs_has_no_prefix(arch: ArchConfig, tmp_path: Path) -> None:
    theirs = build_theirs(arch, None)
    theirs.save_pretrained(tmp_path)
    config, tensors = read_model_folder(tmp_path)
    pre_norm = "RobertaPreLayerNormModel" if arch.norm_position == "pre" else "BertModel"
    assert config["architectures"] == ["GPT2Model" if arch.causal else pre_norm]
    assert not any(name.startswith(("bert.", "roberta", "transformer.")) for name in tensors)
    weights = from_huggingface(tensors, arch, pad_id_of(config))
    pooler = {name for name in weights if name.startswith("heads.")}
    assert pooler == (set() if arch.causal else {f"heads.classification.pooler.{p}" for p in ("weight", "bias")})
    ours = build_model(arch, {}, seed=0).eval()
    ours.load_state_dict({name: tensor for name, tensor in weights.items() if name not in pooler})
    batch = packed_batch(arch)
    expected, _ = their_outputs(theirs, None, padded_batch(batch[0], batch[2], batch[3]))
    torch.testing.assert_close(ours(*batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", [BERT, PRE_NORM, GPT2], ids=["bert", "pre-norm", "gpt2"])
def test_bare_encoder_of_ours_loads_in_auto_model(arch: ArchConfig, tmp_path: Path) -> None:
    ours = build_ours(arch, "classification")
    write_model_folder(tmp_path, *to_huggingface(ours.state_dict(), arch, [], SPECIAL_IDS))
    theirs, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = packed_batch(arch)
    expected, _ = their_outputs(theirs.eval(), None, padded_batch(batch[0], batch[2], batch[3]))
    torch.testing.assert_close(ours(*batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arch", "head"), [(BERT, "mlm"), (PRE_NORM, "mlm"), (GPT2, "lm")], ids=["bert", "pre", "gpt2"]
)
def test_language_model_of_ours_loads_in_auto_model(arch: ArchConfig, head: str, tmp_path: Path) -> None:
    ours = build_ours(arch, head)
    write_model_folder(tmp_path, *to_huggingface(ours.state_dict(), arch, [head], SPECIAL_IDS))
    theirs, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    # BertForMaskedLM has no pooler, so BertModel makes a new one, as from any folder of that class.
    assert set(report["missing_keys"]) == (set() if arch.causal else {"pooler.dense.weight", "pooler.dense.bias"})
    assert all(name.startswith(("cls.", "lm_head.")) for name in report["unexpected_keys"])
    batch = packed_batch(arch)
    expected, _ = their_outputs(theirs.eval(), None, padded_batch(batch[0], batch[2], batch[3]))
    torch.testing.assert_close(ours(*batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pad", [0, 1, 6])
def test_positions_of_a_pre_norm_bert_begin_behind_the_padding_token(pad: int, tmp_path: Path) -> None:
    ours = build_ours(PRE_NORM, "mlm")
    config, tensors = to_huggingface(ours.state_dict(), PRE_NORM, ["mlm"], SPECIAL_IDS | {"pad": pad})
    assert config["max_position_embeddings"] == 31 + pad + 1
    assert not tensors["roberta_prelayernorm.embeddings.position_embeddings.weight"][: pad + 1].any()
    assert arch_from_huggingface(config) == PRE_NORM
    assert torch.equal(
        from_huggingface(tensors, PRE_NORM, pad)["encoder.embeddings.position.weight"],
        ours.encoder.embeddings.position.weight,
    )
    write_model_folder(tmp_path, config, tensors)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    tokens = torch.arange(100, 100 + PRE_NORM.max_positions)  # the longest sequence: the last row of the table is used
    batch = (tokens, torch.arange(len(tokens)), None, PackedLayout.from_lengths((len(tokens),)))
    expected = theirs(input_ids=tokens[None]).logits[0]
    torch.testing.assert_close(our_outputs(ours, "mlm", batch)[1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pad", [0, 2, 30])
def test_positions_of_a_pre_norm_bert_are_not_shifted_to_fit(pad: int) -> None:
    tensors = to_huggingface(build_ours(PRE_NORM, "mlm").state_dict(), PRE_NORM, ["mlm"], SPECIAL_IDS | {"pad": 1})[1]
    found = 31 + 2 - (pad + 1)  # a table of 33 rows, of which config.json says that pad + 1 are not used
    with pytest.raises(
        ValueError,
        match=rf"embeddings.position.weight has the shape \[{found}, 36\], but config.json asks for \[31, 36\]",
    ):
        from_huggingface(tensors, PRE_NORM, pad)
    with pytest.raises(ValueError, match="counts positions from the id of the padding token, and there is none"):
        from_huggingface(tensors, PRE_NORM)


def test_pre_norm_bert_without_a_padding_token_or_with_pairs_is_refused() -> None:
    weights = build_ours(PRE_NORM, "mlm").state_dict()
    with pytest.raises(ValueError, match="counts positions from the id of the padding token, and there is none"):
        to_huggingface(weights, PRE_NORM, ["mlm"], {"cls": 2})
    with pytest.raises(
        ValueError, match=r"no transformers class: a roberta-prelayernorm with the head mlm \+ nsp; it may have none or"
    ):
        to_huggingface(weights, PRE_NORM, ["mlm", "nsp"], SPECIAL_IDS)
