"""Settings of masked-language-model targets. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Masked-language-model targets, drawn anew in every epoch (BERT, section 3.1).

    Args:
        rate: share of a row's tokens that become targets.
        whole_word: draw whole words instead of single tokens.
        mask_share: share of the targets replaced by the mask token.
        random_share: share of the targets replaced by a random token; the rest stays as it is.
    """

    rate: float = 0.15
    whole_word: bool = False
    mask_share: float = 0.8
    random_share: float = 0.1

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = []
        if not 0 < self.rate < 1:
            found.append(f"masking.rate is {self.rate}; it must be above 0 and below 1")
        if not (self.mask_share >= 0 and self.random_share >= 0 and self.mask_share + self.random_share <= 1):
            found.append(
                f"masking.mask_share ({self.mask_share}) and masking.random_share ({self.random_share}) "
                "must not be negative and sum to 1 at most"
            )
        return found
