"""Mutual information I(X; F) by reconstruction: ReMem, arXiv:2506.23041, appendix A.5.

X image, F features, R mean binary cross-entropy of the decoded image on held-out images, H_b mean Bernoulli entropy of
their pixels: the least R can be. A smaller excess R − H_b means more information. All in nats per pixel and channel.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backend.domain.errors import BadInput, NonFiniteLoss
from backend.domain.progress import Progress
from backend.domain.remem import InformationParams
from backend.domain.remem_results import InformationResult
from workers.science.information.decoder import Decoder
from workers.science.information.features import CachedFeatures, Features, ModelFeatures, cache_bytes, cached
from workers.science.order import batch_bounds, epoch_order


def bernoulli_entropy(images: Tensor) -> Tensor:
    """H_b of each pixel in nats, −x ln x − (1−x) ln(1−x), float64; 0 at 0 and 1. Same shape as the input."""
    x = images.double()
    entropy: Tensor = -torch.special.xlogy(x, x) - torch.special.xlogy(1 - x, 1 - x)
    return entropy


class Reconstruction:
    """The training of one decoder; between two updates its state can be saved and taken up again to the bit.

    The images of an update are a function of (seed, update), so an interrupted run ends in the same decoder.
    """

    def __init__(self, train: Features, params: InformationParams, device: torch.device | str = "cpu") -> None:
        if train.n_images < 2:
            raise BadInput("images", train.n_images, "at least two images to learn from")
        self.train, self.params, self.device = train, params, torch.device(device)
        with torch.random.fork_rng([]):
            torch.manual_seed(params.seed)
            self.decoder = Decoder(train.width, train.image_size).to(self.device)
        # Channels last halves the time of an update on CPUs (2.1 → 1.2 s for 64 images of 224 pixels).
        self._layout = torch.channels_last if self.device.type == "cpu" else torch.contiguous_format
        self.decoder.to(memory_format=self._layout)
        self.optimizer = torch.optim.AdamW(
            self.decoder.parameters(), lr=float(params.lr), weight_decay=float(params.weight_decay)
        )
        self.update = 0

    def fit(self) -> Iterator[Progress]:
        """Train to the last update, one Progress each, the loss on every tenth.

        Raises:
            NonFiniteLoss: the loss was NaN or infinite.
        """
        bounds = batch_bounds(self.train.n_images, self.params.batch_size)
        self.decoder.train()
        while self.update < self.params.updates:
            epoch, position = divmod(self.update, len(bounds))
            order = epoch_order(self.train.n_images, seed=self.params.seed, epoch=epoch)
            for start, stop in bounds[position:]:
                loss = self._step(torch.from_numpy(order[start:stop]))
                self.update += 1
                metrics = {}
                if self.update % 10 == 0 or self.update == self.params.updates:
                    metrics["loss_nats"] = float(loss)
                    if not math.isfinite(metrics["loss_nats"]):
                        raise NonFiniteLoss(self.update, "reconstruction", metrics["loss_nats"])
                yield Progress(step=self.update, total=self.params.updates, unit="updates", metrics=metrics)
                if self.update == self.params.updates:
                    return

    def score(self, heldout: Features) -> tuple[float, float]:
        """R and H_b over the held-out images, in nats.

        Raises:
            BadInput: their features or images are of another size than those trained on.
        """
        if (heldout.width, heldout.grid, heldout.image_size) != (
            self.train.width,
            self.train.grid,
            self.train.image_size,
        ):
            raise BadInput("heldout", (heldout.width, heldout.grid, heldout.image_size), "sizes as in training")
        self.decoder.eval()
        loss, floor, pixels = 0.0, 0.0, 0
        with torch.no_grad():
            for start, stop in batch_bounds(heldout.n_images, self.params.batch_size):
                features, images = self._batch(heldout, torch.arange(start, stop))
                logits = self.decoder.logits(features).double()
                loss += float(F.binary_cross_entropy_with_logits(logits, images.double(), reduction="sum"))
                floor += float(bernoulli_entropy(images).sum())
                pixels += images.numel()
        self.decoder.train()
        return loss / pixels, floor / pixels

    def result(self, heldout: Features, *, model: str, data: str) -> InformationResult:
        """The score as a record; `data` names the images, so that only like is compared with like."""
        loss, floor = self.score(heldout)
        return InformationResult(
            model=model,
            data=data,
            loss_nats=loss,
            floor_nats=floor,
            excess_nats=max(0.0, loss - floor),
            feature_width=self.train.width,
            feature_grid=self.train.grid,
            image_size=self.train.image_size,
            n_images=self.train.n_images,
            n_heldout=heldout.n_images,
            updates=self.update,
            batch_size=self.params.batch_size,
            lr=self.params.lr,
            weight_decay=self.params.weight_decay,
            seed=self.params.seed,
            cached=isinstance(self.train, CachedFeatures),
        )

    def state_dict(self) -> dict[str, Any]:
        """Decoder, optimizer and how far they are; tensors and plain values."""
        return {
            "update": self.update,
            "decoder": self.decoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same reconstruction."""
        self.decoder.load_state_dict(state["decoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.update = int(state["update"])

    def _batch(self, source: Features, positions: Tensor) -> tuple[Tensor, Tensor]:
        features, images = source.batch(positions)
        return features.to(self.device).contiguous(memory_format=self._layout), images.to(self.device)

    def _step(self, positions: Tensor) -> Tensor:
        features, images = self._batch(self.train, positions)
        loss = F.binary_cross_entropy_with_logits(self.decoder.logits(features), images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()


def kept_when_they_fit(
    features: ModelFeatures, limit_bytes: int, batch_size: int = 64
) -> Generator[Progress, None, Features]:
    """Compute the features once if they take at most `limit_bytes`; returns them, or the source as it was."""
    if cache_bytes(features) > limit_bytes:
        return features
    source = cached(features, batch_size=batch_size)
    while True:
        try:
            done = next(source)
        except StopIteration as end:
            kept: CachedFeatures = end.value
            return kept
        yield Progress(step=done, total=features.n_images, unit="images")
