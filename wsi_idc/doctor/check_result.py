"""A finding of the doctor, and how one is come by: no probe may raise or hang."""

import contextlib
import os
import pwd
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_idc.core.errors import first_line

OK, NOTE, PROBLEM = "ok", "note", "problem"
SECONDS = 15.0


@dataclass(frozen=True)
class CheckResult:
    """One row.

    Attributes:
        name: What was looked at.
        value: What was found.
        state: "ok", "note" (worth knowing) or "problem" (to be mended).
        advice: What to do about a problem, or about a note if anything.
    """

    name: str
    value: str
    state: str = OK
    advice: str = ""


@dataclass(frozen=True)
class Probe:
    """A look at one thing.

    Attributes:
        name: Of what is looked at, for where nothing is found.
        look: Returns the findings.
        seconds: How long it may take: a network disk that is away answers never.
    """

    name: str
    look: Callable[[], Iterable[CheckResult]]
    seconds: float = SECONDS

    def findings(self) -> list[CheckResult]:
        """Return what is found, or why nothing is."""
        found: list[CheckResult] = []
        failed: list[Exception] = []

        def look() -> None:
            try:
                found.extend(self.look())
            except Exception as error:  # noqa: BLE001 - a doctor does not faint
                failed.append(error)

        # One that hangs is left behind, and does not keep the program from ending.
        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        looking.join(self.seconds)
        rows = list(found)
        if looking.is_alive():
            reason = f"no answer in {self.seconds:g} s"
            advice = "what it asks hangs; if that is a network disk, tell the cluster's support"
            rows.append(self._not_found(reason, PROBLEM, advice))
        elif failed and isinstance(failed[0], ImportError):
            advice = "install the program anew, in an environment of its own"
            rows.append(self._not_found(first_line(failed[0]), PROBLEM, advice))
        elif failed:
            rows.append(self._not_found(first_line(failed[0]), NOTE))
        return rows

    def _not_found(self, reason: str, state: str, advice: str = "") -> CheckResult:
        return CheckResult(self.name, f"could not be found: {reason}", state, advice)


def without_names(finding: CheckResult) -> CheckResult:
    """Return a finding that may be shown to anyone: the home folder is ~, the user USER."""
    home, user = "/", ""
    # A container may have a user of whom it knows neither.
    with contextlib.suppress(KeyError, RuntimeError):
        home = str(Path.home())
        user = pwd.getpwuid(os.getuid()).pw_name

    def plain(text: str) -> str:
        if home != "/":
            text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?=[/\s,;:)]|$)", "~", text)
        return re.sub(rf"(?<=/){re.escape(user)}(?=[/\s,;:)]|$)", "USER", text) if user else text

    return replace(finding, value=plain(finding.value), advice=plain(finding.advice))
