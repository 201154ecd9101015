"""What the registry stores: this file, as a model from code, beside weights in safetensors.

No pickle: MLflow runs this file, which reads the checkpoint. Input ``volume`` float32
[B, 1, D, H, W] in [0, 1], made by the contract; output float32 [B, C], the mean over the
un-normalised last map of the encoder (spec/model section 9).
"""

from pathlib import Path

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel, PythonModelContext

from mg3d.params import VolumeContract


class RegisteredEncoder(PythonModel):
    """The image encoder of one registered version, with the contract it was trained under."""

    contract: VolumeContract

    def load_context(self, context: PythonModelContext) -> None:
        """Read encoder and contract from the artifact (called by MLflow, by keyword)."""
        from mg3d.training.checkpoint import load_encoder

        self._encoder, _, self.contract = load_encoder(Path(context.artifacts["encoder"]))
        self._encoder.eval()

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict | None = None
    ) -> np.ndarray:
        """Embed volumes. MLflow passes a named tensor as a dict. See :meth:`embed`."""
        volume = model_input["volume"] if isinstance(model_input, dict) else model_input
        return self.embed(np.asarray(volume, dtype=np.float32))

    def embed(self, volume: np.ndarray) -> np.ndarray:
        """Features of volumes [B, 1, D, H, W] in [0, 1] -> [B, C].

        Raises ValueError if the shape is not the contract's or the values are not windowed.
        """
        import torch

        if volume.ndim != 5 or volume.shape[1:] != (1, *self.contract.shape_voxels):
            raise ValueError(
                f"volume has shape {volume.shape}; the model's contract wants "
                f"(B, 1, {', '.join(map(str, self.contract.shape_voxels))}): use `mg3d embed`"
            )
        if float(volume.min()) < 0.0 or float(volume.max()) > 1.0:
            raise ValueError(
                f"volume has values {volume.min():.1f} to {volume.max():.1f}, not [0, 1]: "
                f"apply the contract's window {self.contract.window_hu}"
            )
        with torch.inference_mode():
            return self._encoder.features(torch.from_numpy(volume)).numpy()


mlflow.models.set_model(RegisteredEncoder())
