"""Text from model folders by the command line, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.arch import ArchConfig
from engine.convert.huggingface import to_huggingface
from engine.convert.model_folder import write_model_folder
from engine.models.heads import CausalLMHead
from engine.models.model import build_model
from finetune import generate, load
from finetune.config.decoding import DecodingConfig
from finetune.config.tasks import Seq2seqConfig
from finetune.features.sequences import SequenceBuilder
from finetune.inference.text_generation import load_generator
from finetune.model_folder import write_finetuned_model
from finetune.tasks.generation import Seq2seq
from preprocess.tokenizer import CAUSAL_TEXTS, LANGUAGE_MODEL, load_tokenizer
from tests.finetune import tiny

PROMPTS = ["apple bread", "天地人 cloud", "zebra", "island jungle kettle lemon mountain", "river"]


def write_gpt2(folder: Path, source: Path, template: str) -> Path:
    """A GPT-2 whose probabilities are far from each other."""
    tokenizer = load_tokenizer(source)
    arch = ArchConfig(vocab_size=tokenizer.vocab_size, init_std=0.35, **tiny.GPT2)  # type: ignore[arg-type]
    model = build_model(arch, {"lm": CausalLMHead(arch)}, seed=4)
    tokenizer.save(folder, template)
    config, tensors = to_huggingface(model.state_dict(), arch, ["lm"], tokenizer.special_ids)
    write_model_folder(folder, config, tensors)
    return folder


@pytest.fixture(scope="module")
def pretrained(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As pretraining leaves it: texts begin with a special token."""
    return write_gpt2(tmp_path_factory.mktemp("lm"), gpt2, LANGUAGE_MODEL)


@pytest.fixture(scope="module")
def seq2seq(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT that writes by prefix masking, with random weights."""
    folder, tokenizer = tmp_path_factory.mktemp("seq2seq"), load_tokenizer(bert)
    arch = ArchConfig(vocab_size=tokenizer.vocab_size, init_std=0.35, **tiny.BERT)  # type: ignore[arg-type]
    task = Seq2seq(Seq2seqConfig(), ("source",))
    model = build_model(arch, task.make_heads(arch), seed=4)
    write_finetuned_model(folder, model.state_dict(), arch, task, SequenceBuilder(tokenizer, arch, 40))
    return folder


def their_texts(folder: Path, prompts: list[str], **settings: Any) -> list[str]:
    """transformers in its natural call: generate(**tokenizer(prompt)); tokens as text by our tokenizer."""
    transformers = pytest.importorskip("transformers")
    from finetune.metrics.texts import text_of

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ours, found = load_tokenizer(folder), []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs, pad_token_id=ours.special_ids["pad"], do_sample=False, **settings)
        new = output[0, inputs["input_ids"].shape[1] :].tolist()
        found.append(text_of(ours, [token for token in new if token not in (model.config.eos_token_id, 0)]))
    return found


@pytest.mark.parametrize("template", [LANGUAGE_MODEL, CAUSAL_TEXTS])
def test_greedy_text_equals_transformers(template: str, gpt2: Path, tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path / "model", gpt2, template)
    generator = load_generator(str(folder))
    assert generator._prompts.layout.begin == (("bos",) if template == LANGUAGE_MODEL else ())
    if template == LANGUAGE_MODEL:  # the other's tokenizer ends texts, and transformers would go on behind the end
        ours = [texts[0].text for texts in generator.write(PROMPTS, DecodingConfig(max_new_tokens=20), batch_size=2)]
        assert ours == their_texts(folder, PROMPTS, max_new_tokens=20)
        assert len(set(ours)) == len(PROMPTS)


def run(*arguments: str | Path) -> int:
    return generate.main([str(argument) for argument in arguments])


def test_the_command_with_beams(pretrained: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in.tsv", tmp_path / "out.jsonl"
    tiny.write_table(source, ["author", "title"], [("x", prompt) for prompt in PROMPTS])
    arguments = ["--column", "prompt", "--columns", "prompt=title", "--num_beams", "3", "--max_new_tokens", "10"]
    more = ["--num_texts", "2", "--scores", "--batch_size", "2"]
    assert run("--model", pretrained, "--input", source, "--output", output, *arguments, *more) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["completion"] for line in lines] == their_texts(pretrained, PROMPTS, max_new_tokens=10, num_beams=3)
    assert all(line["score"] >= line["score_2"] and line["completion"] != line["completion_2"] for line in lines)


def test_samples_are_those_of_the_seed_and_the_line(pretrained: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("\n".join(PROMPTS * 2) + "\n")
    found = []
    for name, *more in (("a", "--batch_size", "3"), ("b", "--batch_size", "10"), ("c", "--seed", "2")):
        output = tmp_path / name
        arguments = ("--sample", "--temperature", "1.2", "--top_k", "30", "--max_new_tokens", "6", *more)
        assert run("--model", pretrained, "--input", source, "--output", output, *arguments) == 0
        found.append(output.read_text().splitlines()[1:])
    first, second, other = found
    assert first == second != other and len(first) == 10
    assert first[:5] != first[5:]  # the same prompts by other numbers


def test_one_prompt_is_printed(pretrained: Path, seq2seq: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model", pretrained, "--prompt", PROMPTS[0], "--max_new_tokens", "20") == 0
    assert capsys.readouterr().out == their_texts(pretrained, PROMPTS[:1], max_new_tokens=20)[0] + "\n"
    generator = load_generator(str(seq2seq))
    expected = generator.write(PROMPTS[:1], DecodingConfig(max_new_tokens=9, num_beams=2), num_texts=2)[0]
    arguments = ("--max_new_tokens", "9", "--num_beams", "2", "--num_texts", "2", "--scores")
    assert run("--model", seq2seq, "--prompt", PROMPTS[0], *arguments) == 0
    assert capsys.readouterr().out.splitlines() == [f"{one.score}\t{one.text}" for one in expected]
    model = load(str(seq2seq))
    assert model.predict(PROMPTS[:1]) == model.predict([{"source": PROMPTS[0]}])


def test_empty_lines_and_long_prompts(
    pretrained: Path, gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.tsv"
    source.write_text("\n" + " ".join(tiny.WORDS * 4) + "\n")
    assert run("--model", pretrained, "--input", source, "--output", output, "--max_new_tokens", "40") == 0
    assert "texts for 2 prompts (1 of the prompts cut)" in capsys.readouterr().err
    assert len(output.read_text().splitlines()) == 3
    without = write_gpt2(tmp_path / "model", gpt2, CAUSAL_TEXTS)
    assert run("--model", without, "--input", source, "--output", output) == 2
    assert "prompt 1 ('') has no token; with this model a text cannot begin with nothing" in capsys.readouterr().err


def test_refusals(bert: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run("--model", bert, "--num_texts", "2", "--scores", "--batch_size", "0", "--seed", "-1", "--top_k", "1") == 2
    )
    told = capsys.readouterr().err
    for part in (
        "is a BERT that fills masks, and does not generate text; fine-tune it with --task seq2seq",
        "num_texts is 2; give --num_beams 2, or --sample true",
        "scores are those of a beam search; give --num_beams too",
        "batch_size is 0; it must be at least 1",
        "seed is -1",
        "top_k without sample",
        "give --prompt TEXT, or --input FILE with --output FILE",
    ):
        assert part in told
    assert run("--model", pretrained, "--prompt", "a", "--output", tmp_path) == 2
    assert "is a folder; give the name of a file" in capsys.readouterr().err
