"""Questions that take many pre-trainings: which term helps (ablate), what size brings (scale)."""
