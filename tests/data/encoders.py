"""A small text encoder for tests."""

import torch


class CharacterEncoder:
    """Embed each character of a text by a fixed function of it; counts the texts it is given."""

    dim_latent = 4

    def __init__(self, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        self.scale = scale
        self.dtype = dtype
        self.seen: list[str] = []

    def __repr__(self) -> str:
        return f"CharacterEncoder({self.scale}, {self.dtype})"

    def embed(self, texts):
        self.seen += texts
        longest = max(map(len, texts))
        embeddings = torch.full((len(texts), longest, self.dim_latent), torch.nan)
        mask = torch.zeros(len(texts), longest, dtype=torch.bool)
        for row, text in enumerate(texts):
            codes = torch.tensor([float(ord(character)) for character in text])
            waves = (codes[:, None] / torch.arange(1.0, self.dim_latent + 1)).sin()
            embeddings[row, : len(text)] = waves * self.scale
            mask[row, : len(text)] = True
        return embeddings.to(self.dtype), mask
