"""Tasks by name."""

from __future__ import annotations

from typing import Any

from finetune.tasks.base import Task
from finetune.tasks.classification import Classification
from finetune.tasks.generation import LanguageModel, Seq2seq
from finetune.tasks.multiple_choice import MultipleChoice
from finetune.tasks.multitask import Multitask
from finetune.tasks.question_answering import QuestionAnswering
from finetune.tasks.ranking import Ranking
from finetune.tasks.regression import Regression
from finetune.tasks.similarity import Similarity
from finetune.tasks.token_classification import TokenClassification

TASKS: dict[str, type[Task[Any]]] = {
    task.kind: task
    for task in (
        Classification,
        Regression,
        Ranking,
        TokenClassification,
        QuestionAnswering,
        MultipleChoice,
        Similarity,
        LanguageModel,
        Seq2seq,
        Multitask,
    )
}
