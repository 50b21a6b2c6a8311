"""Settings of the inference tools. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.config.tasks import FileConfig, output_name_problem


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Predict with a fine-tuned model, record by record of a file.

    Args:
        model: folder of a fine-tuned model, or run folder of a fine-tuning.
        input: file laid out as the task's own files, without the answers; other columns are left alone.
        output: file to write, tab-separated, or .csv or .jsonl by its name: a line for each record of the input.
        task_name: which task, where the model has learned several at once.
        columns: names of the columns, for a file whose first line does not name them, such as text_a,text_b; or, where
            it has other names, which is which: text_a=review.
        format: of the input, where it is a table: tsv, csv or jsonl; by its name and first line where not given.
        bad_lines: what happens to malformed lines of the input: error, or skip, which reports their numbers and writes
            no prediction for them.
        probabilities: write a column probability_LABEL for each class too.
        batch_size: lines per forward pass.
        seed: of sampled text.
    """

    model: str
    input: str
    output: str
    task_name: str | None = None
    columns: str | None = None
    format: str | None = None
    bad_lines: str = "error"
    probabilities: bool = False
    batch_size: int = 32
    seed: int = 1

    def problems(self) -> list[str]:
        """Everything wrong with these settings that can be seen without reading a file."""
        found = [f"batch_size is {self.batch_size}; it must be at least 1"] if self.batch_size < 1 else []
        return found + self.files.problems() + output_name_problem(self.output)

    @property
    def files(self) -> FileConfig:
        """How the input is read."""
        return FileConfig(self.columns, self.format, self.bad_lines)
