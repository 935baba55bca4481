"""No-positive resampling, ScaleRL's sampler (arXiv 2510.13786): a prompt that the policy solves nearly always has left
for good.

Published: a history of pass rates is kept, and a prompt whose pass rate reaches 0.9 is removed from all later epochs.
Over which rollouts the rate is taken is not said; ours are those of the epoch, as in history resampling, from which
this differs by the threshold and in that nothing returns. ScaleRL also leaves groups whose rewards are all equal out of
the batch, without sampling others in their place; here they stay, with an advantage of zero.
"""

from __future__ import annotations

from srpo.control.history import HistoryResampling


class NoPositiveResampling(HistoryResampling):
    def __init__(self, drop_at: float):
        super().__init__(drop_at, away=None)
