"""PickScore: a CLIP model trained on human preferences (arXiv 2305.01569)."""

from services.scoring.clip import ClipSimilarity, check_clip


class PickScore(ClipSimilarity):
    """exp(logit_scale) · cos(text, image) / 26. The scale 26 is Flow-GRPO's.

    PickScore_v1 has no processor; use that of laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
    """

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str | None = None,
        scale: float = 26.0,
        batch_size: int = 16,
        device: str = "auto",
    ) -> None:
        super().__init__(model, scale, processor, batch_size, device)

    @staticmethod
    def check(model: str = "yuvalkirstain/PickScore_v1", processor: str | None = None, **_: object) -> None:
        """Check that the model exists, before any actor starts."""
        check_clip("scorer pickscore", model, processor)
