"""BLEU and ROUGE of texts, by the libraries sacrebleu and rouge-score; and text of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from preprocess.tokenizer import Tokenizer

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_WIDE = r"\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff60\U00020000-\U0003ffff“”‘’…—"
_SPACE_OF_WIDE = re.compile(rf"(?<=[{_WIDE}]) | (?=[{_WIDE}])")
_UNITS = re.compile(rf"{_HAN.pattern}|[^\W\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
ROUGE = ("rouge1", "rouge2", "rougeL")


def text_of(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """The text of tokens; no spaces stay beside Chinese characters, which a WordPiece vocabulary takes one by one."""
    text = tokenizer.decode(tokens)
    return _SPACE_OF_WIDE.sub("", text) if tokenizer.type == "wordpiece" else text


def is_chinese(texts: Sequence[str]) -> bool:
    """Whether Chinese characters are at least half of all letters and digits."""
    joined = "".join(texts)
    return 2 * len(_HAN.findall(joined)) >= max(1, sum(character.isalnum() for character in joined))


def lowercases(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer makes no difference between upper and lower case."""
    ids, counts = tokenizer.encode(["Apple Bread CLOUD", "apple bread cloud"])
    return counts[0] == counts[1] and bool((ids[: counts[0]] == ids[counts[0] :]).all())


def bleu(texts: Sequence[str], references: Sequence[str], lowercase: bool = False) -> float:
    """BLEU (Papineni et al. 2002) of a whole file, 0 to 100, of one reference for each text.

    Its tokens are those of sacrebleu's ``zh`` where the references are Chinese, else of ``13a`` (Post 2018,
    arXiv:1804.08771).

    Raises:
        ValueError: if sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise ValueError("BLEU is measured by sacrebleu: pip install sacrebleu") from None
    metric = BLEU(tokenize="zh" if is_chinese(references) else "13a", lowercase=lowercase)
    return float(metric.corpus_score(list(texts), [list(references)]).score)


def rouge(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), 0 to 1: mean F1 over the texts.

    Units are Chinese characters one by one, and words of other scripts in lower case.

    Raises:
        ValueError: if rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ValueError("ROUGE is measured by rouge-score: pip install rouge-score") from None
    scorer = RougeScorer(list(ROUGE), tokenizer=_Units())
    scores = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    return {name: sum(score[name].fmeasure for score in scores) / max(1, len(scores)) for name in ROUGE}


class _Units:
    """What rouge-score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return _UNITS.findall(text.lower())
