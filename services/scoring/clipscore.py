"""CLIPScore: how well an image fits its text, by a CLIP model without preference training (arXiv 2104.08718)."""

from services.scoring.clip import ClipSimilarity, check_clip


class ClipScore(ClipSimilarity):
    """The logits / 100, as in Flow-GRPO. For OpenAI's CLIP, whose logit scale is 100, this is the cosine.

    Deviation from the paper: the score is not multiplied by 2.5 and not cut at 0.
    """

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        processor: str | None = None,
        scale: float = 100.0,
        batch_size: int = 16,
        device: str = "auto",
    ) -> None:
        super().__init__(model, scale, processor, batch_size, device)

    @staticmethod
    def check(model: str = "openai/clip-vit-large-patch14", processor: str | None = None, **_: object) -> None:
        """Check that the model exists, before any actor starts."""
        check_clip("scorer clipscore", model, processor)
