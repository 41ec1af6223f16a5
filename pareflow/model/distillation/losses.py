"""What a student is asked to have in common with its teacher."""

import torch
from torch.nn.functional import kl_div, log_softmax, mse_loss, normalize, smooth_l1_loss


def response(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, axis: int = -1
) -> torch.Tensor:
    """T² · KL(teacher ‖ student) of the classes' probabilities at temperature T.

    The classes lie on `axis`; it is the mean over all other axes: samples, and their pixels or tokens.
    Source: Hinton et al., 2015, arXiv:1503.02531, section 2.
    """
    rows = (logits.movedim(axis, -1).flatten(0, -2) for logits in (student, teacher))
    ours, theirs = (log_softmax(logits / temperature, dim=-1) for logits in rows)
    return temperature**2 * kl_div(ours, theirs, reduction="batchmean", log_target=True)


def hint(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The squared error of hidden states, as a share of the teacher's mean square.

    Source: Romero et al., 2015, arXiv:1412.6550, section 2.2. Departure: the share, so that one weight suits
    networks whose states are large and small.
    """
    return mse_loss(student, teacher) / teacher.square().mean().clamp_min(1e-12)


def distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """How far the distances between samples differ, each as a share of their mean; by Huber's loss.

    Source: Park et al., 2019, arXiv:1904.05068, section 3.2.1.
    """
    return smooth_l1_loss(_distances(student), _distances(teacher))


def angle(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """How far the cosines of the angles in each triplet of samples differ; by Huber's loss.

    Source: Park et al., 2019, arXiv:1904.05068, section 3.2.2.
    """
    return smooth_l1_loss(_cosines(student), _cosines(teacher))


def _distances(outputs: torch.Tensor) -> torch.Tensor:
    found = torch.pdist(outputs.flatten(1))
    return found / found.mean().clamp_min(1e-12)


def _cosines(outputs: torch.Tensor) -> torch.Tensor:
    """Of shape (samples, samples, samples): [j, i, k] is the angle at sample j between i and k."""
    rows = outputs.flatten(1)
    towards = normalize(rows[None] - rows[:, None], dim=-1)
    return towards @ towards.transpose(1, 2)
