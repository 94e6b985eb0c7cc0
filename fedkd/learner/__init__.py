"""A client's own model, in any framework: ``protocol`` what a round needs of it, ``named`` those that have a name,
``make`` one from its spec, and a file for each framework, which is imported when a learner of it is made.
"""

from fedkd.learner.make import (
    TORCHVISION,
    Adapted,
    check,
    check_mix,
    check_module,
    check_student,
    is_factory,
    make_learner,
    names_a_file,
    names_an_address,
    with_whole_path,
)
from fedkd.learner.named import RANGES, Constant, learner
from fedkd.learner.protocol import (
    LEAST,
    Learner,
    PrivateLearner,
    Shape,
    Training,
    check_private,
    check_shape,
    check_steps,
    private_trainer,
    see_public,
    set_threads,
)

__all__ = [
    "LEAST",
    "RANGES",
    "TORCHVISION",
    "Adapted",
    "Constant",
    "Learner",
    "PrivateLearner",
    "Shape",
    "Training",
    "check",
    "check_mix",
    "check_module",
    "check_private",
    "check_shape",
    "check_steps",
    "check_student",
    "is_factory",
    "learner",
    "make_learner",
    "names_a_file",
    "names_an_address",
    "private_trainer",
    "see_public",
    "set_threads",
    "with_whole_path",
]
