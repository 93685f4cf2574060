"""DINO's network and training step of 2021, whose memory was published: every block also returns its attention.

Source of the sizes: arXiv 2104.14294 and the training script's defaults; written anew from their description.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.memory.work import Training, Work

WIDTH, HEADS, DEPTH = 384, 6, 12
PROTOTYPES = 65536


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = (q @ k.transpose(-2, -1)) * (WIDTH // HEADS) ** -0.5
        scores = scores.softmax(dim=-1)
        x = (scores @ v).transpose(1, 2).reshape(batch, tokens, WIDTH)
        return self.proj(x), scores


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = F.gelu(x)
        return self.fc2(x)


class Block(nn.Module):
    def __init__(self, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, 1e-6), nn.LayerNorm(WIDTH, 1e-6)
        self.attention, self.mlp = Attention(), FeedForward()
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        y, _scores = self.attention(self.norm1(x))  # the scores live as long as this name
        x = x + self._dropped(y)
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, y: Tensor) -> Tensor:
        if not self.drop_path or not self.training:
            return y
        kept = torch.empty(y.shape[0], 1, 1, dtype=y.dtype)
        return y.div(1 - self.drop_path) * kept


class ViTSmall(nn.Module):
    """ViT-S for images of any multiple of the patch; returns the class token."""

    def __init__(self, patch: int = 16, drop_path: float = 0.0) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, patch, patch)
        self.cls = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.empty(1, (224 // patch) ** 2 + 1, WIDTH))
        self.blocks = nn.ModuleList(Block(drop_path * i / (DEPTH - 1)) for i in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, 1e-6)

    def tokens(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        height, width = x.shape[-2:]
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)), dim=1)
        return x + self._resized(height, width)

    def _resized(self, height: int, width: int) -> Tensor:
        side = int((self.positions.shape[1] - 1) ** 0.5)
        if (height, width) == (side, side):
            return self.positions
        grid = self.positions[:, 1:].reshape(1, side, side, WIDTH).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(height, width), mode="bicubic")
        return torch.cat((self.positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def last(self, x: Tensor, count: int) -> Tensor:
        """The class tokens [B, count * WIDTH] after each of the last blocks."""
        x, kept = self.tokens(x), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if DEPTH - number <= count:
                kept.append(self.norm(x))
        return torch.cat([one[:, 0] for one in kept], dim=-1)


class Head(nn.Module):
    """Three layers to a unit vector, then its product with unit prototypes."""

    def __init__(self) -> None:
        super().__init__()
        hidden, out = 2048, 256
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out)
        )
        self.direction = nn.Parameter(torch.empty(PROTOTYPES, out))
        self.length = nn.Parameter(torch.empty(PROTOTYPES, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        x = F.normalize(x, dim=-1)
        return F.linear(x, torch._weight_norm(self.direction, self.length, 0))


class Dino(nn.Module):
    """A student that sees two large and eight small crops, and a teacher that sees the large ones."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.head = ViTSmall(drop_path=0.1), Head()
        self.teacher, self.teacher_head = ViTSmall().requires_grad_(False), Head().requires_grad_(False)
        self.center: Tensor
        self.register_buffer("center", torch.empty(1, PROTOTYPES))

    def forward(self, large: list[Tensor], small: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        taught = self.teacher_head(self.teacher(torch.cat(large)))
        seen = torch.cat([self.student(torch.cat(large)), self.student(torch.cat(small))])
        seen = self.head(seen)
        return self.loss(seen, taught), seen, taught

    def loss(self, seen: Tensor, taught: Tensor) -> Tensor:
        said = (seen / 0.1).chunk(10)
        targets = ((taught - self.center) / 0.04).softmax(dim=-1).detach().chunk(2)
        total = torch.zeros(())
        for i, target in enumerate(targets):
            for j, one in enumerate(said):
                if i != j:
                    total = total + torch.sum(-target * F.log_softmax(one, dim=-1), dim=-1).mean()
        return total / 18


def features(patch: int, inputs: Callable[[], tuple[Any, ...]], last: int, half: bool) -> Work:
    """The evaluation of frozen features.

    Args:
        last: the tokens of so many last blocks are taken, for a linear classifier under DistributedDataParallel.
    """

    def call(model: Any, x: Tensor) -> Tensor:
        found: Tensor = model.last(x, last) if last else model(x)
        return found

    def classifier(model: nn.Module) -> dict[str, list[Tensor]]:
        size = (last * WIDTH + 1) * 1000
        return (
            {"weights": [torch.empty(size, dtype=dtype)], "gradients": [torch.empty(size, dtype=dtype)]} if last else {}
        )

    dtype = torch.float16 if half else torch.float32
    return Work(lambda: ViTSmall(patch), inputs, call, dtype=dtype, no_grad=torch.no_grad, beside=classifier)


def training(batch: int) -> Work:
    """The training script with torch 1.7: AdamW tensor by tensor, gradients zeroed, a softmax that keeps its input."""

    def inputs() -> tuple[Any, ...]:
        large = [torch.empty(batch, 3, 224, 224) for _ in range(2)]
        return large, [torch.empty(batch, 3, 96, 96) for _ in range(8)]

    def call(model: nn.Module, large: list[Tensor], small: list[Tensor]) -> Any:
        return model(large, small)

    how = Training(optimizer="adamw-loop", ddp=True, set_to_none=False)
    return Work(Dino, inputs, call, how, autocast=torch.float16, softmax_keeps_input=True)


__all__ = ["Dino", "ViTSmall", "features", "training"]
