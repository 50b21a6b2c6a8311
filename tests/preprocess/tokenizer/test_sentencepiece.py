"""sentencepiece models: ids by the library, the same ids from the tokenizer.json that is written."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer, sentencepiece_model_pb2

from preprocess.tokenizer import TrainingSettings, load_tokenizer, train
from tests.preprocess.tokenizer.odd_texts import SAMPLES, check_positions, odd_lines, offsets, real_lines, rows

TYPES = ("unigram", "sentencepiece_bpe")
MANY = ["the cat sat on the mat", "a dog and a cat", "naïve words, and 12 more words", "人山人海 人来人往"] * 20


def foreign_model(model_type: str = "unigram", texts: list[str] = MANY, **settings) -> bytes:
    """Train a model as others do, with sentencepiece's defaults."""
    written = io.BytesIO()
    settings = {"vocab_size": 60, "num_threads": 1, "minloglevel": 2, **settings}
    if model_type == "unigram":
        settings["hard_vocab_limit"] = False
    SentencePieceTrainer.Train(sentence_iterator=iter(texts), model_writer=written, model_type=model_type, **settings)
    return written.getvalue()


def save_model(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module", params=TYPES)
def trained(request, shared_data: Path):
    return train(real_lines(shared_data, 80_000), TrainingSettings(type=request.param, vocab_size=8000))


def test_equals_sentencepiece(trained, shared_data: Path, tmp_path: Path) -> None:
    trained.save(tmp_path)
    library = SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    lines = odd_lines([token.replace("▁", " ") for token in trained.tokens[10:]], 200) + real_lines(shared_data, 50_000)
    assert rows(trained, lines) == [library.Encode(line) for line in lines]
    for line in lines[:900]:
        assert offsets(trained, line) == library.Encode(line, return_type="offset_mapping")["offsets"]
    check_positions(trained, lines[:300])
    special = set(trained.special_ids.values()) - {trained.special_ids["unk"]}
    assert not special & {token for row in rows(trained, lines) for token in row}


def test_equals_transformers_on_real_text(trained, shared_data: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    trained.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    lines = real_lines(shared_data)
    lines += ["." * count for count in range(1, 60)] + ["？" * count + "-" * count for count in range(1, 60)]
    assert rows(trained, lines) == theirs(lines, add_special_tokens=False)["input_ids"]
    odd = [line for line in odd_lines(["the", "人"], 0) if not any("<" in line or "[" in line for _ in "x")]
    ours, expected = rows(trained, odd), theirs(odd, add_special_tokens=False)["input_ids"]
    different = [line for line, a, b in zip(odd, ours, expected, strict=True) if a != b]
    assert len(different) < 0.02 * len(odd)


def test_what_it_says_of_itself(trained, tmp_path: Path) -> None:
    assert trained.special_ids == {"pad": 0, "unk": 1, "cls": 4, "sep": 5, "mask": 6, "bos": 2, "eos": 3}
    assert trained.tokens[:7] == ("<pad>", "<unk>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]")
    assert not trained.keeps_whitespace
    assert trained.files == ("tokenizer.json", "tokenizer_config.json", "spiece.model")
    trained.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(trained.files)
    for path in (tmp_path, tmp_path / "spiece.model"):
        assert load_tokenizer(path).digest == trained.digest
        assert load_tokenizer(path).notes == ()
    copied = pickle.loads(pickle.dumps(trained))
    assert copied.digest == trained.digest and rows(copied, ["the end"]) == rows(trained, ["the end"])
    flags = dict(zip(trained.tokens, trained.continuation.tolist(), strict=True))
    assert not any(flags[token] for token in ("▁the", "[CLS]", ",", "▁", "的", "一"))
    assert flags["s"] and flags["ing"]
    assert trained.decode(trained.encode(["the end, 的"])[0]) == "the end, 的"


def test_case_folding(shared_data: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    lines = real_lines(shared_data, 40_000)
    tokenizer = train(lines, TrainingSettings(type="unigram", vocab_size=5000, lowercase=True))
    assert rows(tokenizer, ["The ROOM"]) == rows(tokenizer, ["the room"])
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert rows(tokenizer, lines) == theirs(lines, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"byte_fallback": True, "vocab_size": 330},
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"add_dummy_prefix": False},
        {"split_by_whitespace": False},
        {"user_defined_symbols": ["cat", "12"]},
        {"byte_fallback": True, "vocab_size": 330, "add_dummy_prefix": False, "remove_extra_whitespaces": False},
    ],
    ids=str,
)
def test_models_of_others(tmp_path: Path, model_type: str, settings: dict) -> None:
    """Their own ids stay; what BERT needs is appended; AutoTokenizer gives the same from what is written."""
    transformers = pytest.importorskip("transformers")
    data = foreign_model(model_type, **settings)
    tokenizer = load_tokenizer(save_model(tmp_path / "some.model", data))
    library = SentencePieceProcessor(model_proto=data)
    size = library.GetPieceSize()
    ids = {"unk": 0, "bos": 1, "eos": 2, "cls": 1, "sep": 2, "pad": size, "mask": size + 1}
    assert tokenizer.special_ids == ids
    assert tokenizer.tokens[size:] == ("<pad>", "<mask>")
    assert "has no pad token: <pad> is appended as id" in tokenizer.notes[0]
    assert rows(tokenizer, SAMPLES) == [library.Encode(sample) for sample in SAMPLES]
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").digest == tokenizer.digest
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    texts = [*MANY[:4], "  The cat  sat 12 cats,concat. ", "a 中 dog 😀", "", "x"]
    assert rows(tokenizer, texts) == theirs(texts, add_special_tokens=False)["input_ids"]
    assert theirs("a cat")["input_ids"] == [1, *rows(tokenizer, ["a cat"])[0], 2]
    assert (theirs.pad_token_id, theirs.mask_token_id) == (size, size + 1)


def test_pieces_with_a_role_never_come_from_text(tmp_path: Path) -> None:
    data = foreign_model(user_defined_symbols=["[MASK]", "[CLS]", "[SEP]"], bos_id=-1, eos_id=-1, pad_id=3)
    library = SentencePieceProcessor(model_proto=data)
    tokenizer = load_tokenizer(save_model(tmp_path / "x.model", data))
    names = {role: tokenizer.tokens[index] for role, index in tokenizer.special_ids.items()}
    expected = {"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    assert names == {**expected, "bos": "[CLS]", "eos": "[SEP]"}
    assert tokenizer.special_ids["mask"] in library.Encode("a [MASK]")
    assert tokenizer.special_ids["mask"] not in tokenizer.encode(["a [MASK] [CLS]"])[0]
    assert any("[MASK] has a role, so no text gives its id" in note for note in tokenizer.notes)


def test_model_without_begin_and_end(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_model(tmp_path / "x.model", foreign_model(bos_id=-1, eos_id=-1)))
    names = {role: tokenizer.tokens[index] for role, index in tokenizer.special_ids.items()}
    assert (names["cls"], names["sep"], names["bos"], names["eos"]) == ("[CLS]", "[SEP]", "[CLS]", "[SEP]")


def test_model_found_by_content(tmp_path: Path) -> None:
    data = foreign_model()
    wanted = load_tokenizer(save_model(tmp_path / "a.model", data)).digest
    assert load_tokenizer(save_model(tmp_path / "vocab.txt", data)).digest == wanted  # a model given as vocabulary
    for name in ("tokenizer.model", "sentencepiece.bpe.model", "other.model"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        save_model(folder / name, data)
        assert load_tokenizer(folder).digest == wanted
    only = tmp_path / "only"
    only.mkdir()
    save_model(only / "vocab.txt", data)
    assert load_tokenizer(only).digest == wanted


def test_models_that_cannot_be_used(tmp_path: Path) -> None:
    data = foreign_model()
    cut = save_model(tmp_path / "cut.model", data[: len(data) // 2])
    with pytest.raises(ValueError, match="if it was a sentencepiece model, it is damaged or cut short"):
        load_tokenizer(cut)
    with pytest.raises(ValueError, match="model of words or characters; only unigram and BPE"):
        load_tokenizer(save_model(tmp_path / "word.model", foreign_model("word", vocab_size=15)))
    proto = sentencepiece_model_pb2.ModelProto.FromString(data)
    proto.trainer_spec.treat_whitespace_as_suffix = True
    with pytest.raises(ValueError, match="marks white space behind words"):
        load_tokenizer(save_model(tmp_path / "suffix.model", proto.SerializeToString()))
    folder = tmp_path / "two"
    folder.mkdir()
    for name in ("a.model", "b.model"):
        save_model(folder / name, data)
    with pytest.raises(ValueError, match=r"several sentencepiece models \(a.model, b.model\); give one of them"):
        load_tokenizer(folder)


def test_list_of_pieces_is_no_vocabulary(tmp_path: Path) -> None:
    library = SentencePieceProcessor(model_proto=foreign_model())
    lines = [f"{library.IdToPiece(index)}\t{library.GetScore(index):g}\n" for index in range(library.GetPieceSize())]
    (tmp_path / "spm.vocab").write_text("".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=r"lists the pieces and scores .*give the model .*\(spm.model\)"):
        load_tokenizer(tmp_path / "spm.vocab")
    save_model(tmp_path / "spm.model", foreign_model())
    with pytest.raises(ValueError, match=r"not enough to cut text; give .*spm.model"):
        load_tokenizer(tmp_path / "spm.vocab")


def test_models_that_transformers_numbers_differently(tmp_path: Path) -> None:
    save_model(tmp_path / "sentencepiece.bpe.model", foreign_model())
    (tmp_path / "config.json").write_text('{"model_type": "xlm-roberta"}')
    with pytest.raises(ValueError, match=r"numbers the pieces of sentencepiece.bpe.model differently.*save_pretrained"):
        load_tokenizer(tmp_path)


def test_tokenizer_json_with_other_ids_wins_over_the_model_beside_it(tmp_path: Path) -> None:
    """As in XLM-R's folders: AutoTokenizer reads tokenizer.json, whose ids are not those of the .model."""
    tokenizer = train(["the cat sat on the mat"] * 9, TrainingSettings(type="word", vocab_size=20))
    tokenizer.save(tmp_path)
    save_model(tmp_path / "sentencepiece.bpe.model", foreign_model())
    assert load_tokenizer(tmp_path).type == "word"
