"""Many streams on one engine: one thread computes them in turns of about a frame."""

from .delivery import Delivery, Outcome
from .group import SchedulerGroup
from .pending import StreamOptions
from .scheduler import Scheduler
from .stream import Stream

__all__ = ["Delivery", "Outcome", "Scheduler", "SchedulerGroup", "Stream", "StreamOptions"]
