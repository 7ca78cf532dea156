"""Kernels: push a script that runs on Kaggle, look how far it is."""

import re
from dataclasses import dataclass
from pathlib import Path

from kit.base import RULES_PAGE, KitError, printable
from kit.kaggle.client import run_client
from kit.kaggle.credentials import SETTINGS_PAGE, credential, without_secrets
from kit.kaggle.faults import ACCOUNT, explain

_REFUSALS = ACCOUNT | {
    "already (exists|in use)|title": ACCOUNT["Notebook not found"],
    "too large|size|exceeds": "Put large files into a Kaggle dataset, and mount it with --dataset",
    "rules": f"Accept the rules at {RULES_PAGE}, then push again",
}


def username() -> str:
    """Return the name of the account whose credential the client sends.

    Raises
    ------
    KitError
        If there is no credential, or the client does not know the name.
    """
    said = run_client("view", group="config")
    found = re.search(r"^- username: (\S+)$", said, re.M)
    if not found or found[1] == "None":
        raise KitError(
            f"the Kaggle client does not know whose {credential()} is: set KAGGLE_USERNAME as well"
        )
    return found[1]


def push_kernel(folder: Path) -> str:
    """Push the script and metadata of a folder as a kernel, which then runs on Kaggle.

    Returns
    -------
    str
        Its version and its address.

    Raises
    ------
    KitError
        If Kaggle does not take it, or takes it without one of its inputs.
    """
    said = run_client("push", f"--path={folder}", group="kernels")
    # The client exits with 0 either way.
    pushed = re.search(r"^Kernel version (\d+) successfully pushed.* at (\S+)$", said, re.M)
    if not pushed:
        reason = without_secrets(said).strip().removeprefix("Kernel push error: ")
        raise KitError(
            f"Kaggle has not taken the kernel: {reason or 'the client does not say why'}\n"
            f"{_next_step(reason)}"
        )
    refused = re.search(r"^The following are not valid (\w+) sources.*: (.*)$", said, re.M)
    if refused:
        kind, listed = refused.groups()
        names = ", ".join(re.findall(r"[\w./-]+", listed))
        step = {
            "competition": f"accept the rules at {RULES_PAGE}, then push again",
            "kernel": "push it without --resume the first time",
            "model": "see its page for the name, and accept its licence there, then push again",
        }.get(kind, "mend the name, then push again")
        raise KitError(
            f"Kaggle runs version {pushed[1]} without its {kind} {names}, so it will fail: {step}"
        )
    return f"version {pushed[1]}, {pushed[2]}"


def _next_step(reason: str) -> str:
    """Say what to do about a refusal, as far as its words are known."""
    for pattern, step in _REFUSALS.items():
        if re.search(pattern, reason, re.I):
            return step
    return (
        f"See at {SETTINGS_PAGE} what the account may run (phone number, GPU hours), then try again"
    )


@dataclass(frozen=True)
class KernelStatus:
    """How far a kernel's latest version is.

    Attributes
    ----------
    name
        QUEUED, RUNNING, COMPLETE, ERROR, CANCEL_REQUESTED, CANCEL_ACKNOWLEDGED.
    failure
        Why it failed, as Kaggle words it; often empty.
    """

    name: str
    failure: str

    @property
    def has_ended(self) -> bool:
        """Whether it has, in one way or the other."""
        return self.name in ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")


def kernel_status(kernel: str) -> KernelStatus:
    """Return how far a kernel's latest version is.

    Parameters
    ----------
    kernel
        OWNER/NAME.
    """
    said = run_client("status", kernel, group="kernels")
    found = re.search(r'has status "(?:\w+\.)?(\w+)"', said)
    if not found:
        raise KitError(explain(said))
    failure = re.search(r'^Failure message: "(.*)"$', said, re.M | re.S)
    return KernelStatus(found[1].upper(), printable(failure[1]) if failure else "")
