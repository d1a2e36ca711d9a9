"""A process that is asked by lines."""

from __future__ import annotations

import pytest

from . import lines
from .lines import LineProcess, ProcessError


def start(script: str) -> LineProcess:
    return LineProcess(["bash", "-c", script])


def test_a_question_is_answered() -> None:
    process = start("""echo '{"ready": true}'; read; echo '{"id": 1, "ok": 42}'""")
    assert process.greeting == {"ready": True}
    assert process.ask("look") == 42
    process.close()


def test_questions_fail_once_the_output_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "ANSWER_TIMEOUT", 5.0)
    process = start("""echo '{"ready": true}'; exec 1>&-; cat >&2""")
    for _ in range(2):
        with pytest.raises(ProcessError):
            process.ask("look")
    process.close()
