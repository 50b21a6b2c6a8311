"""Settings of text generation and of filling masks. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass, fields

from finetune.config.decoding import DecodingConfig
from finetune.config.tasks import FileConfig, output_name_problem


@dataclass(frozen=True, kw_only=True)
class TextFileConfig:
    """Where texts come from and go to.

    Args:
        input: file with a text in each line, or table where ``column`` is given.
        output: file to write, tab-separated, or .csv or .jsonl by its name.
        column: the table's column with the texts.
        columns: names of the columns, for a table whose first line does not name them; or, where it has another name,
            which it is.
        format: of the input, where it is a table: tsv, csv or jsonl; by its name and first line where not given.
        bad_lines: what happens to malformed lines of a table: error, or skip, which counts and reports them.
    """

    input: str | None = None
    output: str | None = None
    column: str | None = None
    columns: str | None = None
    format: str | None = None
    bad_lines: str = "error"

    @property
    def files(self) -> FileConfig:
        """How the input is read."""
        return FileConfig(self.columns, self.format, self.bad_lines)

    def file_problems(self, name: str, text: str | None) -> list[str]:
        """What is wrong with them; ``text`` is one text given by the option ``name``."""
        found = self.files.problems() + output_name_problem(self.output)
        if (text is None) == (self.input is None):
            found.append(f"give --{name} TEXT, or --input FILE with --output FILE")
        elif self.input is None and self.output is not None:
            found.append(f"the result of --{name} is printed; leave out --output")
        elif self.input is not None and self.output is None:
            found.append("--input needs --output, the file to write")
        if self.column is None and (self.columns or self.format):
            found.append("--columns and --format are for tables; give --column, the column with the texts")
        return found


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(TextFileConfig, DecodingConfig):
    """Generate text behind prompts, with a GPT-2 or with a model that was fine-tuned by the task lm or seq2seq.

    Args:
        model: model folder or run folder.
        prompt: a text to go on from (seq2seq: to write a text for); the result is printed.
        input: file with a prompt in each line, or table where ``column`` is given.
        output: file to write, tab-separated, or .csv or .jsonl by its name: a line for each prompt.
        column: the table's column with the prompts, such as prompt.
        columns: names of the columns, for a table whose first line does not name them, such as author,prompt; or, where
            it has another name, which it is: prompt=title.
        format: of the input, where it is a table: tsv, csv or jsonl; by its name and first line where not given.
        bad_lines: what happens to malformed lines of a table: error, or skip, which counts and reports them.
        num_texts: texts for each prompt: the best beams, or so many samples.
        scores: write the scores of a beam search too: the sum of logarithms of probabilities, divided by the length to
            the power of length_penalty.
        batch_size: prompts that are continued at once.
        seed: of the samples; what is drawn for a prompt depends on it and on the prompt's number in the file.
    """

    model: str
    prompt: str | None = None
    num_texts: int = 1
    scores: bool = False
    batch_size: int = 16
    seed: int = 1

    @property
    def decoding(self) -> DecodingConfig:
        """How tokens are chosen."""
        return DecodingConfig(**{field.name: getattr(self, field.name) for field in fields(DecodingConfig)})

    def problems(self) -> list[str]:
        """Everything wrong with these settings that can be seen without reading a file."""
        found = self.decoding.problems() + self.file_problems("prompt", self.prompt)
        found += self.num_texts_problems(self.num_texts)
        if self.batch_size < 1:
            found.append(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.scores and self.num_beams == 1:
            found.append("scores are those of a beam search; give --num_beams too")
        if not 0 <= self.seed < 2**63:
            found.append(f"seed is {self.seed}; it must be in [0, 2^63)")
        return found


@dataclass(frozen=True, kw_only=True)
class FillMaskConfig(TextFileConfig):
    """Tell what may stand where a text has a mask.

    Args:
        model: model folder or run folder of a BERT that predicts masked tokens.
        text: a text with masks; the result is printed.
        input: file with a text in each line, or table where ``column`` is given.
        output: file to write, tab-separated, or .csv or .jsonl by its name: a line for each mask.
        column: the table's column with the texts, such as text.
        columns: names of the columns, for a table whose first line does not name them, such as label,text; or, where it
            has another name, which it is: text=review.
        format: of the input, where it is a table: tsv, csv or jsonl; by its name and first line where not given.
        bad_lines: what happens to malformed lines of a table: error, or skip, which counts and reports them.
        mask: what stands for a mask in the texts; the tokenizer's own token, such as [MASK], where not given.
        random_word: mask one word of each text, drawn at random, all its tokens at once.
        top_n: tokens that are told for each mask, the most probable first.
        batch_size: texts per forward pass.
        seed: of the words that are drawn; the word of a text depends on it and on the text's number in the file.
    """

    model: str
    text: str | None = None
    mask: str | None = None
    random_word: bool = False
    top_n: int = 5
    batch_size: int = 32
    seed: int = 1

    def problems(self) -> list[str]:
        """Everything wrong with these settings that can be seen without reading a file."""
        found = self.file_problems("text", self.text)
        found += [
            f"{name} is {getattr(self, name)}; it must be at least 1"
            for name in ("top_n", "batch_size")
            if getattr(self, name) < 1
        ]
        if self.mask == "":
            found.append("mask is empty; give what stands for a mask in the texts")
        if not 0 <= self.seed < 2**63:
            found.append(f"seed is {self.seed}; it must be in [0, 2^63)")
        return found
