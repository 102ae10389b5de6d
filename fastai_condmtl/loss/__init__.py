"The loss of a flow. Some chapters add methods to the classes of others: a class is never loaded without them"

from . import sets, settings, summaries, task_losses, temperatures  # noqa: F401
