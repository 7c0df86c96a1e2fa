"""An engine of its own that begins an operation and dies by SIGKILL at a given moment of a given step.

Arguments: the kind, the protection's id, the operation's arguments as JSON, the step, the moment (begin, acted,
recorded). Exit code 3: the operation ended without having come there.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from matrix_scenes import OP_S, SCENES, answer, begin, wait_for_other_question

from vapor_desktop import app
from vapor_desktop.model.operations import OperationKind


def main(kind: str, protection_id: str, args: str, step: str, moment: str) -> int:
    """The exit code, if it lives."""

    def die(_operation: str, at_step: str, at_moment: str) -> None:
        if (at_step, at_moment) == (step, moment):
            os.kill(os.getpid(), signal.SIGKILL)

    with app.running_engine("service") as program:
        if not program.engine.wait_active(30):
            print("another engine lives", file=sys.stderr)
            return 4
        program.engine.operations.observer = die
        wanted = OperationKind(kind)
        begun = begin(wanted, program.backend, protection_id, json.loads(args))
        while not (seen := program.backend.wait_operation(begun, OP_S)).ended:
            answer(program.backend, begun, SCENES[wanted].answers)
            wait_for_other_question(program.backend, seen)
    return 3


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
