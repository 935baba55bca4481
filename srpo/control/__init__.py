"""What to train on next, decided from what happened so far: the ledger, history resampling, and the stages.

Pure Python without torch; rank 0 runs it and the trainer broadcasts its decisions.
"""

from srpo.control.curriculum import Curriculum, StepPlan
from srpo.control.ledger import Ledger, RolloutRow

__all__ = ["Curriculum", "Ledger", "RolloutRow", "StepPlan"]
