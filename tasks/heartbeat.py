"""Being an owner of a run: beating in the background until the end."""

import dataclasses
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from prefect.runtime import deployment, flow_run

from pareflow.errors import PareflowError
from tasks import owners
from tasks.ownership import FencedError, Owner, beat_s
from tasks.tracking import Tracker

log = logging.getLogger("pareflow.ownership")


@contextmanager
def owned(tracker: Tracker, parent: str, every_s: float | None = None) -> Iterator[Tracker]:
    """The tracker for an owner of the run `parent`, which beats as Prefect does, or so often.

    Once declared dead it records nothing more.

    Afterwards the run has one owner less; without any, and not finished, it is KILLED: the same command goes
    on from there. The process of a deployment's run that finds itself declared dead ends.
    """
    owner = Owner.new(flow_run.id)
    owners.take(tracker, parent, owner)
    stop = threading.Event()
    rhythm = (tracker, parent, owner, stop, beat_s() if every_s is None else every_s)
    beating = threading.Thread(target=_beat, args=rhythm, daemon=True)
    beating.start()
    try:
        yield dataclasses.replace(tracker, owner=owner, parent=parent)
    except FencedError as error:
        if deployment.id is not None:
            _end_without_a_word(error)
        raise
    finally:
        stop.set()
        beating.join()
        _leave(tracker, parent, owner)


def _leave(tracker: Tracker, parent: str, owner: Owner) -> None:
    """What goes wrong here must not hide how the run ended; reconcile does it later."""
    try:
        owners.leave(tracker, parent, owner)
    except PareflowError as error:
        log.warning("the run %s keeps a dead owner: %s", parent, error)


def _end_without_a_word(error: FencedError) -> NoReturn:
    """Prefect's flow run is its successor's by now, and knows of no attempts: a state that this process gave
    it, and an exit code other than 0, would be taken for the successor's."""
    print(error, file=sys.stderr, flush=True)
    os._exit(0)


def _beat(tracker: Tracker, parent: str, owner: Owner, stop: threading.Event, every_s: float) -> None:
    """Until told to stop, or declared dead. A server that is away for a while misses some beats."""
    beats = 0
    while not stop.wait(every_s):
        beats += 1
        try:
            if not owners.beat(tracker, parent, owner, beats):
                return
        except PareflowError as error:
            log.warning("a heartbeat of the run %s was not recorded: %s", parent, error)
