"""How text is generated. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """Choosing tokens one after another: the most probable, sampled ones, or the best of several beams.

    Args:
        max_new_tokens: most tokens that are generated for a prompt, where none that ends the text comes before.
        sample: draw tokens by their probabilities, rather than take the most probable.
        temperature: that logits are divided by before a draw; below 1 the probable become more so.
        top_k: draw from that many most probable tokens; 0 from all.
        top_p: draw from the fewest most probable tokens that have this probability together (Holtzman et al. 2020,
            arXiv:1904.09751).
        repetition_penalty: makes tokens that were there before less probable where above 1 (Keskar et al. 2019,
            arXiv:1909.05858, section 4.1).
        num_beams: beams of a beam search; 1: none.
        length_penalty: power of its length that a beam's score is divided by; above 0 favours long texts.
        early_stopping: end a beam search as soon as there are num_beams whole texts.
    """

    max_new_tokens: int = 64
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = [
            f"{name} is {getattr(self, name)}; it must be at least {least}"
            for name, least in (("max_new_tokens", 1), ("top_k", 0), ("num_beams", 1))
            if getattr(self, name) < least
        ]
        found += [
            f"{name} is {getattr(self, name)}; it must be above 0"
            for name in ("temperature", "repetition_penalty")
            if not getattr(self, name) > 0
        ]
        if not 0 < self.top_p <= 1:
            found.append(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.sample and self.num_beams > 1:
            found.append(f"sample and num_beams {self.num_beams} are both given; a beam search does not draw: give one")
        drawing = [name for name in ("temperature", "top_k", "top_p") if getattr(self, name) != _DEFAULTS[name]]
        if drawing and not self.sample:
            found.append(f"{', '.join(drawing)} without sample: nothing is drawn; give --sample true too")
        return found

    def num_texts_problems(self, num_texts: int) -> list[str]:
        """What is wrong with so many texts for each prompt."""
        if num_texts < 1:
            return [f"num_texts is {num_texts}; it must be at least 1"]
        if num_texts > 1 and not self.sample and num_texts > self.num_beams:
            return [f"num_texts is {num_texts}; give --num_beams {num_texts}, or --sample true"]
        return []


_DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
