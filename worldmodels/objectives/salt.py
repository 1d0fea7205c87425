"""SALT: V-JEPA with a teacher that stands still. First a teacher learns pixels, then a student learns the teacher.

The first part of a run trains the teacher (V-Pixel), the rest a fresh student, which predicts the frozen teacher's
latents of hidden tokens. No moving average, nothing against collapse. The teacher's share of all operations decides
where the run turns; ``Phase.span`` gives each part the whole schedule. A teacher may also come trained, from another
run: ``encoder@objective.teacher=pretrained``, ``teacher_share=0``; its latents may then be computed once, before
the run (``worldmodels.pretrained.TeacherLatents``).

Paper: SALT (arXiv 2509.24317); sheet salt_video, sections 1.6 and 1.7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Composite

from worldmodels.core import Encoder, Phase, Span, Transform
from worldmodels.flops import size_of
from worldmodels.keys import TEACHER, TOKENS
from worldmodels.objectives.clips import CLIP, ClipObjective, target_tokens
from worldmodels.objectives.v_pixel import VPixel


class SALT(ClipObjective):
    """Predicts a frozen teacher's latents of hidden tokens; before, trains the teacher.

    Args:
        spec: one row of the source; needs ("observation", "pixels"). With "teacher" rows are clips that have been cut
            out, with their latents: only masks are drawn.
        teacher: factory of the teacher's encoder; its grid must be the student's, its width need not.
        first_stage: factory of the objective that trains it, ``first_stage(spec, encoder=..., views=..., masks=...)``.
        predictor: factory ``predictor(dim, grid, num_queries=..., out_dim=...)``.
        steps, batch_size: of the run.
        teacher_share: of the run's floating-point operations; 0 leaves the teacher as it is.
        has_normalized_targets: whether every target token is brought to mean 0 and variance 1 over its entries.
        options: encoder, views, masks, exponent: see ``ClipObjective``.

    Raises:
        ValueError: if teacher and student cut clips differently, or the share is none.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        teacher: Callable[[Composite], Encoder],
        first_stage: Callable[..., VPixel],
        predictor: Callable[..., nn.Module],
        steps: int,
        batch_size: int,
        teacher_share: int | float = 0.17,
        has_normalized_targets: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        shared = {"views": options["views"], "masks": options["masks"]}
        self.first_stage = first_stage(spec, encoder=teacher, **shared)
        if self.teacher.grid != self.encoder.grid:
            raise ValueError(
                f"the teacher cuts a clip into {self.teacher.grid} tokens, the student into {self.encoder.grid}: "
                "patch, tubelet and the clips' size must be the same"
            )
        if not 0 <= teacher_share < 1:
            raise ValueError(f"objective.teacher_share={teacher_share}: a share of the run lies within [0, 1)")
        sizes = {"num_queries": len(self.masks.families), "out_dim": self.teacher.dim}
        self.predictor = predictor(self.encoder.dim, self.encoder.grid, **sizes)
        self.has_normalized_targets = has_normalized_targets
        self.is_cached = TEACHER in spec.keys()
        if self.is_cached:
            self.window = self.num_rows = 1
            if teacher_share:
                raise ValueError(
                    f"objective.teacher_share={teacher_share}: latents are of a teacher that stands still; set 0"
                )
        costs, self.steps = self.costs(batch_size), steps
        weighted = teacher_share * costs["student"]
        self.turn = round(steps * weighted / ((1 - teacher_share) * costs["teacher"] + weighted))

    @property
    def teacher(self) -> Any:
        """The teacher's encoder."""
        return self.first_stage.encoder

    def phases(self) -> tuple[Phase, ...]:
        """The teacher's, then the student's."""
        first, then = Span(0, self.turn, self.steps), Span(self.turn, self.steps, self.steps)
        teachers = self.first_stage.groups("teacher_encoder", "teacher_decoder")
        return (
            Phase("teacher", self.first_stage.loss, teachers, span=first),
            Phase("student", self.loss, self.groups(), span=then),
        )

    def transforms(self) -> tuple[Transform, ...]:
        """The crop and the masks of a batch; of clips that have been cut out, the masks alone."""
        return (self.draw_masks,) if self.is_cached else super().transforms()

    @torch.no_grad()
    def goal(self, obs: TensorDict) -> Tensor:
        """Tokens of the teacher, float32 [B, N, D]."""
        return target_tokens(self.teacher(obs)[TOKENS], is_normalized=self.has_normalized_targets)

    def goal_of(self, batch: TensorDict) -> Tensor:
        """Tokens of the teacher: those that came with the batch, or new ones."""
        if not self.is_cached:
            return super().goal_of(batch)
        return target_tokens(batch[TEACHER][:, 0], is_normalized=self.has_normalized_targets)

    def judged(self) -> dict[str, nn.Module]:
        """The student, which counts, and its teacher."""
        return {CLIP: self.encoder, "teacher": self.teacher}

    def costs(self, batch_size: int) -> dict[str, float]:
        """Operations of a sample in a step, by phase."""
        student = self.operations(batch_size, teacher=None if self.is_cached else size_of(self.teacher))
        return {"teacher": self.first_stage.costs(batch_size)["v_pixel"], "student": student}
