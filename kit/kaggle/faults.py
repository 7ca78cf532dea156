"""What the words of Kaggle's client mean when it fails, and what to do next."""

import re

from kit.base import RULES_PAGE, SLUG
from kit.kaggle.credentials import SETTINGS_PAGE, credentials, without_secrets

GATEWAY = (
    "the answer came from some gateway or proxy, not from Kaggle: see whether "
    "https://www.kaggle.com opens on this machine without a sign-in page, then try again"
)
SILENCE = "timed out: nothing came for {:g} s"
ACCOUNT = {
    "(weekly|[GT]PU) .*quota": (
        "The week's hours are used up: `kaggle quota` (from client 2.2.5 on) and the settings "
        "say when there are new ones. Until then, push with --no-gpu what a CPU can do"
    ),
    "session count": (
        "Others of the account's kernels run: wait for one to end, or stop one at "
        "https://www.kaggle.com/code (Your Work, its three dots), then push again"
    ),
    r"\bphone\b|verify your": (
        f"Verify the account's phone number at {SETTINGS_PAGE}, then push again; --no-gpu, without "
        "--internet, needs none"
    ),
    "Notebook not found": (
        "Push it under another --name: letters, digits and single hyphens, a letter first"
    ),
}
"""Why Kaggle refuses a kernel to an account, in the words that people have reported, and what to
do: said by the client, or with a status of any kind."""
# What the client's own words mean. It prints a status only when the answer has no JSON body,
# and otherwise the server's message alone, so both are known here. The first match counts.
_FAILURES = {
    "No module named": "the Kaggle client does not start: pip install 'kaggle>=2.2.4,<3' six",
    r"Max retries|RemoteDisconnected|Connection (aborted|broken|refused|reset)|timed out|\b408 ": (
        "no connection to Kaggle, or it was cut: check the network (and https_proxy, if you "
        "use one), then try again"
    ),
    "does not match expected size": (
        "the download broke off: an error page or another file came in the archive's place, as "
        "happens when a download link expires. Try again"
    ),
    "Invalid header value|UnicodeEncodeError: 'latin-1'|UnicodeDecodeError: 'utf-8'": (
        "{credential} has a character that no token has, such as a line break or a typographic "
        "quotation mark: write it again"
    ),
    r"\b401 |Authentication required|Unauthori[sz]ed|Unauthenticated|Invalid credentials": (
        "Kaggle does not accept {credential}.\n"
        f"Create a new API token at {SETTINGS_PAGE} (API, Generate New Token) and put it there"
    ),
    r"\b4\d\d Client Error.* url: (?!.*ApiService)": (
        "Kaggle's file store refused the link that Kaggle gave, as it does once a link has "
        "expired. Try again"
    ),
    **ACCOUNT,
    "Cannot access kernel": (
        "the account has no kernel of that name on Kaggle: push it first, or mend --name"
    ),
    r"\b403 |Forbidden|accept this competition|permission '": (
        f"Kaggle forbids it, most often because the rules are not accepted.\nOpen {RULES_PAGE}, "
        "join the competition and accept its rules, then try again. The account is that of "
        "{credential}"
    ),
    "submission (limit|allowance)|daily (limit|allowance|submission)": (
        "Kaggle takes no more submissions today: try again after 00:00 UTC"
    ),
    r"\b404 |Not ?Found|Could not find": (
        "Kaggle does not find it. See whether the name is right, and whether "
        f"https://www.kaggle.com/c/{SLUG} opens, and bring the client up to date: pip install "
        "--upgrade 'kaggle<3'"
    ),
    r"\b429 |Too Many Requests|Rate limit": (
        "Kaggle has had too many requests from this account: wait some minutes, then try again"
    ),
    r"\b5\d\d (Server )?Error|Internal.*error|Bad Gateway|Service Unavailable|Gateway Time": (
        "Kaggle itself has a fault just now: try again in some minutes"
    ),
    "No space left": "the disk is full: make room, then try again",
    "Expecting value": GATEWAY,
    "Upload unsuccessful": (
        "Kaggle's file store refused a file: try again, what it has taken is not sent again"
    ),
    "Could not submit": "Kaggle's file store refused the upload, nothing was submitted: try again",
}


def explain(said: str) -> str:
    """Turn the client's words for a failure into one plain message with the next step."""
    # Indented lines are a traceback's source code, or more of a text already begun.
    lines = [line for line in without_secrets(said).splitlines() if line[:1].strip()]
    for pattern, meaning in _FAILURES.items():
        for line in lines:
            if re.search(pattern, line, re.I):
                known = ", which hides ".join(credentials()) or "the credential"
                return f"{meaning.replace('{credential}', known)}\n(the client said: {line})"
    last = lines[-1] if lines else "it did not say why"
    return (
        f"the Kaggle client failed: {last}\nTry again, and see whether "
        f"https://www.kaggle.com/c/{SLUG} opens in a browser"
    )
