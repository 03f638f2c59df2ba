"""CLIPScore: how well the image fits the text, by a CLIP that never saw preferences (arXiv 2104.08718)."""

from services.scoring.clip import ClipSimilarity, check_clip


class ClipScore(ClipSimilarity):
    """logits / 100 as in Flow-GRPO: the cosine itself for OpenAI's CLIP, whose logit scale is 100.

    Deviation from the paper: neither rescaled by 2.5 nor cut at 0.
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
        """Refuse a model that is not there, before any actor starts."""
        check_clip("scorer clipscore", model, processor)
